"""Two processes of four fake devices each do what one device does."""

import json
import types

import jax
import numpy as np
import pytest

from rapo_jax import hosts
from tests import fake_devices
from tests.closeness import assert_close


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """What the leader saw, and what the other process was told and did."""
  return _run(2, tmp_path_factory.mktemp("shared"), num_devices=4)


@pytest.fixture(scope="module")
def report(both):
  return both[0]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  """What a process saw that is alone with one device."""
  [report] = _run(1, tmp_path_factory.mktemp("own"), num_devices=1)
  return report


def _run(count, folder, *, num_devices):
  outputs = fake_devices.run_processes(
    count,
    *("-m", "tests.rollout.on_two_processes", str(folder)),
    num_devices=num_devices,
  )
  return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["rollout", "crossed"])
def test_two_processes_give_the_trajectories_of_one_device(
  both, one_device, mesh
):
  report, other = both
  expected = one_device["rollout"]
  # A guard: the loop has done all that it can do.
  events = {e for t in expected["trajectories"] for e in t["events"]}
  assert events == {"ToolEvent", "RetrievalEvent"}
  assert len({t["finish_reason"] for t in expected["trajectories"]}) > 1
  assert report["devices"] == [4, 8]
  found = report[mesh]
  assert found["trajectories"] == expected["trajectories"]
  assert_close(found["log_probs"], expected["log_probs"])
  # Each process has called its own tools.
  calls = found["tool_calls_counted"]
  assert calls == expected["tool_calls"] == expected["tool_calls_counted"]
  others = other["tool_calls"][["rollout", "crossed"].index(mesh)]
  assert found["tool_calls"] == calls - others
  assert 0 < others < calls
  assert found["retrievals"] > 0


@pytest.mark.slow
def test_rollouts_fork_as_on_one_device(report, one_device):
  expected = one_device["forks"]
  assert any(steps for _, steps in expected["parents"])
  assert report["forks"]["parents"] == expected["parents"]
  assert report["forks"]["trajectories"] == expected["trajectories"]
  assert_close(report["forks"]["log_probs"], expected["log_probs"])


@pytest.mark.slow
def test_twins_are_those_of_one_device(report, one_device):
  expected = one_device["twins"]
  assert len(expected["left_out"]) > 3
  assert report["twins"] == expected


@pytest.mark.slow
def test_the_other_process_is_told_of_whole_rollouts(both):
  told = {name.partition(":")[2] for name in both[1]["told"]}
  assert told == {
    "make_policy",
    "make_engine",
    "make_forking_engine",
    "make_probing_engine",
    "RolloutEngine._roll_out_share",
    "update_report",
  }


@pytest.mark.slow
def test_an_error_in_the_host_loop_is_the_leader_s(report):
  assert report["error"] == ["OSError", "the host's disk is full"]


@pytest.mark.slow
def test_an_update_is_that_of_one_device(report, one_device):
  expected = one_device["update"]
  assert np.abs(expected["gradients"]).max() > 1e-2
  assert report["update"]["placed"]
  assert_close(report["update"]["loss"], expected["loss"])
  assert_close(report["update"]["gradients"], expected["gradients"])


class _Mesh:
  """Devices of two processes, or of one of them."""

  is_multi_process = True

  def __init__(self, *processes):
    self.devices = np.array(
      [types.SimpleNamespace(process_index=index) for index in processes]
    )


@pytest.mark.parametrize(
  ("processes", "words"),
  [
    ((0, 0), "devices of all 2, this one has those"),
    ((0, 1), "a mesh of 2 outside of one: decorate it"),
  ],
)
def test_a_mesh_that_cannot_be_led_is_refused(processes, words, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=words):
    hosts.check_led(_Mesh(*processes))
