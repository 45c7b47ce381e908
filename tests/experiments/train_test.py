"""When a run stops rather than train on what is broken."""

import shutil
from unittest import mock

import pytest

from experiments import health
from experiments.config import (
  BufferConfig,
  ExperimentConfig,
  GrowConfig,
  TrainConfig,
)
from experiments.stages import runs, train, trainers
from rapo_jax.compilation import Compilation
from rapo_jax.errors import InputError
from rapo_jax.training import TrainState
from tests.tiny_decoder import tiny_decoder

_SOUND = {
  "mismatch/abs_log_prob_mean": 1e-6,
  "loss": 0.1,
  "gradient_norm": 0.4,
  "rollout/retrievals": 0.0,
  "rollout/retrievals_missed": 0.0,
  "rollout/retrievals_failed": 0.0,
}


def _check(**changes):
  config = ExperimentConfig("test")
  run = runs.Run("multihop", "rapo", 0)
  train._stop_if_broken(config, run, 3, _SOUND | changes)


def _tool(name, **counts):
  statuses = ("ok", "error", "timeout", "failed", "refused")
  numbers = dict.fromkeys(statuses, 0.0) | counts
  return {f"tools/{name}/{status}": n for status, n in numbers.items()}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mismatch/abs_log_prob_mean": 1.0}, "has 1.0000"),
    ({"mismatch/abs_log_prob_mean": float("nan")}, "has nan"),
    ({"rollout/retrievals_failed": 2.0}, "every retrieval of update 3"),
    (
      _tool("search", failed=5.0, refused=3.0),
      "call of search .*5 failed, 3 refused",
    ),
    (_tool("open", ok=1.0) | _tool("python", failed=9.0), "call of python"),
    (_tool("python", timeout=8.0), "no call of python was answered .8 timeout"),
    (_tool("search", failed=3.0, timeout=5.0), "call of search"),
    (_tool("python", error=64.0), "every call of python .* 64 in a row"),
    (_tool("python", error=30.0, timeout=2.0), "every call of python"),
  ],
)
def test_stops(changes, message):
  with pytest.raises(RuntimeError, match=message):
    _check(**changes)


def test_retrievals_that_all_fail_are_no_bug_of_ours():
  with pytest.raises(health.HealthStop, match="every retrieval of update 3"):
    _check(**{"rollout/retrievals_failed": 2.0})


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"rollout/retrievals_failed": 2.0, "rollout/retrievals_missed": 1.0},
    _tool("search"),
    _tool("search", failed=7.0),
    _tool("search", failed=100.0, ok=1.0),
    _tool("search", error=100.0, ok=1.0),
    _tool("search", error=31.0),
  ],
)
def test_goes_on(changes):
  _check(**changes)


def test_a_late_compilation_stops_a_strict_run_alone():
  run = runs.Run("multihop", "rapo", 0)
  late = [Compilation("jit(decode)", 1.0), Compilation("jit(add)", 0.1)]
  strict = ExperimentConfig("test", train=TrainConfig(strict_compile=True))
  train._stop_if_compiled(ExperimentConfig("test"), run, 3, late)
  train._stop_if_compiled(strict, run, 3, [])
  with pytest.raises(
    RuntimeError, match=r"update 3 .* jit\(decode\), jit\(add"
  ):
    train._stop_if_compiled(strict, run, 3, late)


class _Traces(trainers.StepTraceBuffer):
  """A buffer of rewards alone."""

  def __init__(self, rewards):
    self._rewards = train.np.array(rewards, float)
    self.traces = rewards


@pytest.mark.parametrize(
  ("rewards", "message"),
  [
    ([], "its buffer holds no trace"),
    ([0.0, -1.0], r"none of the 2 traces .* above retrieval.min_reward .0."),
  ],
)
def test_a_buffer_that_nothing_can_come_from_is_refused(rewards, message):
  run, buffer = runs.Run("multihop", "rapo", 0), _Traces(rewards)
  with pytest.raises(InputError, match=f"rapo retrieves, and {message}"):
    trainers.check_buffer(ExperimentConfig("test"), run, buffer)


def test_a_server_without_traces_is_refused():
  buffer = mock.Mock(trainers.RemoteBuffer)
  buffer.check.return_value = {"version": 1, "num_traces": 0}
  run = runs.Run("multihop", "hybrid", 0)
  with pytest.raises(InputError, match="holds no trace"):
    trainers.check_buffer(ExperimentConfig("test"), run, buffer)


def test_what_needs_no_trace_and_what_has_one_are_let_through():
  config = ExperimentConfig("test")
  trainers.check_buffer(config, runs.Run("multihop", "grpo", 0), None)
  rapo = runs.Run("multihop", "rapo", 0)
  trainers.check_buffer(config, rapo, _Traces([1.0]))
  grows = ExperimentConfig("test", buffer=BufferConfig(grow=GrowConfig()))
  trainers.check_buffer(grows, rapo, _Traces([]))


def test_a_stop_names_its_kind_and_how_to_go_on():
  monitor = health.Monitor(health.HealthConfig(stop_updates=3))
  dead = {"groups/live_fraction": 0.0, "reward/accuracy": 0.0}
  run = runs.Run("multihop", "grpo", 0)
  config, row = ExperimentConfig("test"), _SOUND | dead
  for update in (1, 2):
    train._stop_if_broken(config, run, update, row, monitor)
  with pytest.raises(health.HealthStop) as error:
    train._stop_if_broken(config, run, 3, row, monitor)
  message = str(error.value)
  assert message.startswith("update 3 of multihop grpo-seed0 cannot learn")
  assert "no_signal, updates 1 to 3" in message
  assert "--config.train.health.no_signal=warn" in message


def _watch(row, number, monitor=None):
  """Notes given of an update."""
  notes, writer = [], mock.Mock()
  train._watch(
    ExperimentConfig("test"),
    runs.Run("multihop", "grpo", 0),
    _SOUND | row,
    number,
    monitor or health.Monitor(),
    writer,
    notes.append,
  )
  return notes


def test_the_first_update_says_how_many_close_their_tags():
  few, many = {"reward/format_whole": 0.02}, {"reward/format_whole": 0.93}
  notes = _watch(few, 1)
  assert len(notes) == 1
  assert "2 % of the trajectories of the first update close" in notes[0]
  assert "warm-start the base agent" in notes[0]
  notes = _watch(many, 1)
  assert "93 %" in notes[0]
  assert "warm" not in notes[0]
  assert _watch(few, 2) == []


def test_a_warning_is_noted_where_it_begins():
  monitor = health.Monitor(health.HealthConfig(warn_updates=2))
  cut = {"rollout/finished_length": 1.0}
  assert [len(_watch(cut, n, monitor)) for n in (2, 3, 4)] == [1, 0, 0]
  notes = _watch(cut, 30, monitor)
  assert notes[0].startswith("warning: multihop grpo-seed0: cut_off, updates 1")


def test_a_checkpoint_that_the_disk_has_no_room_for_is_not_begun(
  tmp_path, monkeypatch
):
  state = TrainState(tiny_decoder(), ())
  train._check_room(tmp_path, state, 0)
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    shutil, "disk_usage", lambda path: usage._replace(free=1000)
  )
  with pytest.raises(InputError, match="MB free: free some space there"):
    train._check_room(tmp_path, state, 0)
