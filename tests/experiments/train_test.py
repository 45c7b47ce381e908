"""When a run stops rather than train on what is broken."""

import shutil
import types

import pytest

from experiments.config import ExperimentConfig, TrainConfig
from experiments.input_errors import InputError
from experiments.stages import train
from rapo_jax.compilation import Compilation
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
  run = train.Run("multihop", "rapo", 0)
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
    ({"loss": float("inf")}, "loss must be finite"),
    ({"rollout/retrievals_failed": 2.0}, "every retrieval of update 3"),
    (_tool("search", failed=5.0, refused=3.0), "call of search .* 8 of them"),
    (_tool("open", ok=1.0) | _tool("python", failed=9.0), "call of python"),
  ],
)
def test_stops(changes, message):
  with pytest.raises(RuntimeError, match=message):
    _check(**changes)


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"rollout/retrievals_failed": 2.0, "rollout/retrievals_missed": 1.0},
    _tool("search"),
    _tool("search", failed=7.0),
    _tool("search", failed=100.0, ok=1.0),
    _tool("search", error=100.0),
  ],
)
def test_goes_on(changes):
  _check(**changes)


def test_a_late_compilation_stops_a_strict_run_alone():
  run = train.Run("multihop", "rapo", 0)
  late = [Compilation("jit(decode)", 1.0), Compilation("jit(add)", 0.1)]
  strict = ExperimentConfig("test", train=TrainConfig(strict_compile=True))
  train._stop_if_compiled(ExperimentConfig("test"), run, 3, late)
  train._stop_if_compiled(strict, run, 3, [])
  with pytest.raises(
    RuntimeError, match=r"update 3 .* jit\(decode\), jit\(add"
  ):
    train._stop_if_compiled(strict, run, 3, late)


def test_a_checkpoint_that_the_disk_has_no_room_for_is_not_begun(
  tmp_path, monkeypatch
):
  state = TrainState(tiny_decoder(), ())
  saved = []
  checkpoints = types.SimpleNamespace(save=lambda *args: saved.append(args))
  train._save(checkpoints, 1, state, {}, tmp_path)
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    shutil, "disk_usage", lambda path: usage._replace(free=1000)
  )
  with pytest.raises(InputError, match="MB free: free some space there"):
    train._save(checkpoints, 2, state, {}, tmp_path)
  assert [number for number, *_ in saved] == [1]
