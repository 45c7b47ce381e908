"""Exact search over a mesh, in a process with eight devices."""

import jax
import numpy as np
import pytest

from rapo_jax.models import sharding
from rapo_jax.retrieval import ExactIndex
from tests import fake_devices


def test_over_eight_devices_it_finds_the_same():
  output = fake_devices.run_python(
    "-m", "tests.retrieval.exact_on_eight_devices"
  )
  assert output.split() == ["same"]


def test_a_mesh_of_one_device_finds_the_same(tmp_path):
  vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  index = ExactIndex(vectors, encoder_sha256="e", mesh=mesh)
  expected = ExactIndex.build(vectors).search(vectors, 60)
  found = index.search(vectors, 60)
  np.testing.assert_array_equal(found.ids, expected.ids)
  index.save(tmp_path / "index")
  loaded = ExactIndex.load(tmp_path / "index", mesh=mesh, axis="fsdp")
  assert loaded.encoder_sha256 == "e"
  np.testing.assert_array_equal(loaded.search(vectors, 60).ids, expected.ids)


def test_an_axis_that_the_mesh_lacks_is_refused():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with pytest.raises(ValueError, match=r"'fsdp', 'tensor'.*got 'rows'"):
    ExactIndex(np.eye(2, dtype=np.float32), mesh=mesh, axis="rows")
