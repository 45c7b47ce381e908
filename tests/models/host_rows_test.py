"""Each host gets the rows of a batch that its devices hold."""

import jax
import numpy as np
import pytest

from rapo_jax.models import sharding
from tests.hosts.meshes import mesh_of


@pytest.mark.parametrize(
  ("processes", "tensor", "parts"),
  [
    ((0, 0, 1, 1), 1, ((0, 1), (2, 3))),
    # One part lies on both hosts, which both need it.
    ((0, 1), 2, ((0,), (0,))),
    ((1, 0, 0, 1), 1, ((1, 2), (0, 3))),
  ],
)
def test_rows_are_those_of_a_host_s_parts(
  processes, tensor, parts, monkeypatch
):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  batch = {
    "tokens": np.arange(2 * 4 * 3).reshape(2, 4, 3),
    "count": np.int32(7),
  }
  split = sharding.split_rows(batch, mesh_of(processes, tensor))
  assert tuple(own.parts for own in split.parts) == parts
  size = 4 * tensor // len(processes)
  for own in split.parts:
    rows = [part * size + row for part in own.parts for row in range(size)]
    np.testing.assert_array_equal(own.tree["tokens"], batch["tokens"][:, rows])
    assert own.tree["count"] == 7


def test_a_host_that_is_alone_has_all_rows():
  batch = {"tokens": np.zeros((1, 2, 3))}
  assert sharding.split_rows(batch, None) is batch
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  joined = sharding.join_rows(sharding.split_rows(batch, mesh), mesh)
  np.testing.assert_array_equal(joined["tokens"], batch["tokens"])


def test_rows_come_together_on_the_devices():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  tokens = np.arange(12).reshape(2, 2, 3)
  count = np.array(7, np.int32)
  rows = sharding.HostRows((0,), {"tokens": tokens, "count": count})
  joined = sharding.join_rows(rows, mesh)
  np.testing.assert_array_equal(joined["tokens"], tokens)
  assert joined["count"] == 7
  assert joined["tokens"].sharding.mesh == mesh
