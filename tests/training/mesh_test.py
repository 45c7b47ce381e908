"""Updates and rollouts on eight fake devices equal those on one."""

import functools
import json

import jax
import pytest

from rapo_jax.models import sharding
from tests import fake_devices

# Each tuple of cases is one process, as the number of devices is global; it
# runs when one of its tests does.
_QUICK = (
  *("update 2x4", "update with KL and entropy", "adapters", "bfloat16"),
  *("greedy 2x4", "filtered 2x4", "restored"),
)
_SLOW = ("update 8x1", "update 4x2", "update 1x8", "greedy 4x2", "greedy 8")


@functools.cache
def _run(cases):
  return json.loads(
    fake_devices.run_python("-m", "tests.training.mesh_program", *cases)
  )


def _report(case):
  return _run(_QUICK if case in _QUICK else _SLOW)[case]


def _all(*starts):
  """Cases with a name that starts so; slow ones are marked."""
  return [
    case if case in _QUICK else pytest.param(case, marks=pytest.mark.slow)
    for case in (*_QUICK, *_SLOW)
    if case.startswith(starts)
  ]


@pytest.mark.parametrize("case", _all("update", "adapters"))
def test_an_update_is_the_same_on_any_mesh(case):
  there = _report(case)
  assert there["loss"] <= 1e-5
  assert there["gradient_norm"] <= 1e-5
  assert there["gradients"] <= 1e-5
  assert there["placed"], "state must stay where the rules put it"
  # The control: gradients are not all smaller than what is allowed.
  assert there["largest_gradient"] > 1e-2


@pytest.mark.parametrize("case", _all("greedy", "filtered"))
def test_a_rollout_is_the_same_on_any_mesh(case):
  there = _report(case)
  assert there["same_tokens"]
  assert there["num_tokens"] > 200
  assert there["log_probs"] <= 1e-5


def test_a_checkpoint_is_restored_on_any_mesh():
  there = _report("restored")
  assert {*there} == {"2x4", "8x1", "one"}
  for mesh, found in there.items():
    assert found == {"same": True, "placed": True}, mesh


def test_computing_in_bfloat16_keeps_parameters_in_float32():
  there = _report("bfloat16")
  assert there["dtype"] == "float32"
  assert 0 < there["loss"] <= 2e-2


def test_rows_that_the_mesh_does_not_divide_are_refused():
  mesh = jax.sharding.AbstractMesh((2, 4, 1), sharding.MESH_AXES)
  sharding.check_rows("num_slots", 16, mesh)
  with pytest.raises(ValueError, match="must be a multiple of data") as error:
    sharding.check_rows("num_slots", 13, mesh)
  assert "(8) of the mesh, got 13: take 8 or 16" in str(error.value)
  with pytest.raises(ValueError, match="got 3: take 8"):
    sharding.check_rows("num_slots", 3, mesh)
