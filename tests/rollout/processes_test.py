"""Two processes of four fake devices each do what one device does."""

import json

import jax
import numpy as np
import pytest

from rapo_jax.rollout import processes
from tests import fake_devices
from tests.closeness import assert_close


@pytest.fixture(scope="module")
def reports():
  """What each of the two processes saw."""
  return _run(2, num_devices=4)


@pytest.fixture(scope="module")
def one_device():
  """What a process saw that is alone with one device."""
  [report] = _run(1, num_devices=1)
  return report


def _run(count, *, num_devices):
  outputs = fake_devices.run_processes(
    count, "-m", "tests.rollout.on_two_processes", num_devices=num_devices
  )
  return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.slow
def test_both_processes_return_the_trajectories_of_one_device(
  reports, one_device
):
  expected = one_device["rollout"]
  # A guard: the loop has done all that it can do.
  events = {e for t in expected["trajectories"] for e in t["events"]}
  assert events == {"ToolEvent", "RetrievalEvent"}
  assert len({t["finish_reason"] for t in expected["trajectories"]}) > 1
  for report in reports:
    assert report["devices"] == [4, 8]
    assert report["rollout"]["trajectories"] == expected["trajectories"]
    assert_close(report["rollout"]["log_probs"], expected["log_probs"])


@pytest.mark.slow
def test_rollouts_fork_as_on_one_device(reports, one_device):
  expected = one_device["forks"]
  assert any(steps for _, steps in expected["parents"])
  for report in reports:
    assert report["forks"]["parents"] == expected["parents"]
    assert report["forks"]["trajectories"] == expected["trajectories"]
    assert_close(report["forks"]["log_probs"], expected["log_probs"])


@pytest.mark.slow
def test_twins_are_those_of_one_device(reports, one_device):
  expected = one_device["twins"]
  assert len(expected["left_out"]) > 3
  for report in reports:
    assert report["twins"] == expected


@pytest.mark.slow
def test_tools_and_buffer_are_asked_by_the_first_process_alone(
  reports, one_device
):
  leader, follower = (report["rollout"] for report in reports)
  assert leader["tool_calls"] == one_device["rollout"]["tool_calls"] > 0
  assert leader["retrievals"] > 0
  assert follower["tool_calls"] == follower["retrievals"] == 0
  # What is reported of the rollout is known to both.
  for report in (leader, follower):
    assert report["tool_calls_counted"] == leader["tool_calls"]


@pytest.mark.slow
def test_an_error_in_the_host_loop_ends_both(reports):
  leader, follower = (report["error"] for report in reports)
  assert leader == ["OSError", "the host's disk is full"]
  assert follower[0] == "LeaderFailed"
  assert "failed in it: OSError: the host's disk is full" in follower[1]


@pytest.mark.slow
def test_an_update_is_that_of_one_device(reports, one_device):
  expected = one_device["update"]
  assert np.abs(expected["gradients"]).max() > 1e-2
  for report in reports:
    assert report["update"]["placed"]
    assert_close(report["update"]["loss"], expected["loss"])
    assert_close(report["update"]["gradients"], expected["gradients"])


def test_a_mesh_without_some_process_is_refused(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "data")
  with pytest.raises(ValueError, match="devices of all 2, this one has those"):
    processes.run_led(mesh, None, lambda target: None)
