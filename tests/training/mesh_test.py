"""Updates and rollouts on eight fake devices equal those on one."""

import json

import jax
import pytest

from rapo_jax.models import sharding
from tests import fake_devices


@pytest.fixture(scope="module")
def report():
  """What the program prints; a process of its own, as devices are global."""
  return json.loads(
    fake_devices.run_python("-m", "tests.training.mesh_program")
  )


@pytest.mark.parametrize("mesh", ["8x1", "4x2", "2x4", "1x8"])
def test_an_update_is_the_same_on_any_mesh(report, mesh):
  there = report["meshes"][mesh]
  assert there["loss"] <= 1e-5
  assert there["gradient_norm"] <= 1e-5
  assert there["gradients"] <= 1e-5
  assert there["placed"], "state must stay where the rules put it"
  # The control: gradients are not all smaller than what is allowed.
  assert report["largest_gradient"] > 1e-2


def test_adapters_are_trained_the_same_on_a_mesh(report):
  there = report["adapters"]
  assert there["loss"] <= 1e-5
  assert there["gradients"] <= 1e-5
  assert there["placed"]
  assert there["largest_gradient"] > 1e-2


@pytest.mark.parametrize(
  "mesh", ["greedy 4x2", "greedy 8", "greedy 2x4", "filtered 2x4"]
)
def test_a_rollout_is_the_same_on_any_mesh(report, mesh):
  there = report["rollouts"][mesh]
  assert there["same_tokens"]
  assert there["num_tokens"] > 200
  assert there["log_probs"] <= 1e-4


def test_computing_in_bfloat16_keeps_parameters_in_float32(report):
  assert report["mixed_precision_dtype"] == "float32"
  assert 0 < report["mixed_precision_loss"] <= 2e-2


def test_rows_that_the_mesh_does_not_divide_are_refused():
  mesh = jax.sharding.AbstractMesh((2, 4, 1), sharding.MESH_AXES)
  sharding.check_rows("num_slots", 16, mesh)
  with pytest.raises(ValueError, match="must be a multiple of data") as error:
    sharding.check_rows("num_slots", 13, mesh)
  assert "(8) of the mesh, got 13: take 8 or 16" in str(error.value)
  with pytest.raises(ValueError, match="got 3: take 8"):
    sharding.check_rows("num_slots", 3, mesh)
