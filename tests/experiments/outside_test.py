"""A config file of a user's own, as `rapo init` writes it.

Its task, tool, reward and loss are defined in the file, or in one beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import flags, objects, run
from experiments.config import ExperimentConfig, TrainConfig
from experiments.init import write_starter
from rapo_jax import rewards
from rapo_jax.algorithms import ALGORITHMS
from rapo_jax.tasks import FileTask

ROOT = pathlib.Path(__file__).resolve().parents[2]
STARTER = ROOT / "experiments" / "starter"
SMALL = (
  "--config.rollout.max_response_tokens=48",
  "--config.rollout.max_step_tokens=16",
  "--config.rollout.max_tool_tokens=24",
  "--config.rollout.num_slots=8",
  "--config.update.row_length=1600",
  "--config.policy.random.hidden_size=16",
  "--config.policy.random.num_layers=1",
  "--config.train.checkpoint_every=1",
  "--config.tasks.sums.held_out=3",
  "--config.logging.tensorboard=false",
)


@pytest.fixture
def own(tmp_path):
  """The example with its data, outside the repository."""
  folder = tmp_path / "own"
  folder.mkdir()
  write_starter(folder)
  return folder


def test_the_example_stays_short():
  text = (STARTER / "experiment.py").read_text(encoding="utf-8")
  assert len(text.splitlines()) <= 62


def test_it_trains_is_killed_resumes_evaluates_and_reports(own, capsys):
  workdir = own / "run"
  command = [
    *("--config", str(own / "experiment.py"), "--workdir", str(workdir)),
    *SMALL,
  ]
  folder = workdir / "train" / "sums" / "ours-seed0"
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.run", *command],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  deadline = time.monotonic() + 300
  while not (folder / "checkpoints" / "1").exists():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.kill()
  process.communicate()
  assert not (folder / "done.json").exists()

  # Without the file that the run's objects are from.
  (own / "experiment.py").rename(own / "aside.py")
  assert run.main(command) == 2
  error = capsys.readouterr().err
  assert "experiment.py is not there" in error
  for name in (
    "experiment:calculator",
    "experiment:short_and_right",
    "experiment:cispo_loss",
  ):
    assert name in error
  (own / "aside.py").rename(own / "experiment.py")

  assert run.main(command) == 0
  output = capsys.readouterr().out
  rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  assert [json.loads(row)["update"] for row in rows] == [0, 1, 2, 3, 4]
  assert all(json.loads(row)["gradient_norm"] > 0 for row in rows[1:])
  result = json.loads(
    (workdir / "evaluate" / "sums" / "ours-seed0.json").read_text(
      encoding="utf-8"
    )
  )
  assert [*result["sets"]] == ["held_out"]
  assert set(result["score_statuses"]) <= {"right", "wrong"}
  assert "Ours" in output

  # The report needs none of the user's files.
  shutil.rmtree(own / "__pycache__", ignore_errors=True)
  (own / "experiment.py").unlink()
  report = (workdir / "report.html").read_text(encoding="utf-8")
  assert "Ours" in report
  assert ".m-ours { --c: #117733; }" in report

  # Another loss under the same name does not go on with this run's weights.
  config = own / "experiment.py"
  config.write_text(
    (STARTER / "experiment.py")
    .read_text(encoding="utf-8")
    .replace("cispo_loss", "other_loss"),
    encoding="utf-8",
  )
  assert run.main([*command, "--config.train.num_updates=5"]) == 2
  assert "other_loss" in capsys.readouterr().err


def test_a_module_beside_the_file_is_found_or_named(own, capsys):
  text = (own / "experiment.py").read_text(encoding="utf-8")
  (own / "our_sums.py").write_text(text, encoding="utf-8")
  config = own / "imports.py"
  config.write_text(
    '"""Imports all of it."""\nfrom our_sums import get_config\n',
    encoding="utf-8",
  )
  # The data lies beside the module.
  assert run.main(["--config", str(config), "--dry_run", *SMALL]) == 0
  plain = flags.to_dict(flags.load_config(config))
  names = set(objects.names_from_outside(plain))
  assert names == {
    "our_sums:calculator",
    "our_sums:short_and_right",
    "our_sums:cispo_loss",
  }
  (own / "our_sums.py").unlink()
  sys.modules.pop("our_sums")
  workdir = own / "run"
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(plain), encoding="utf-8")
  capsys.readouterr()
  command = ["--config", str(config), "--workdir", str(workdir), *SMALL]
  assert run.main(command) == 2
  error = capsys.readouterr().err
  assert "No module named 'our_sums'" in error
  assert "our_sums:cispo_loss" in error


@dataclasses.dataclass(frozen=True)
class Threshold:
  least: float

  def score(self, batch):
    return [rewards.Score(self.least, "all") for _ in batch]


class Hidden:
  def __init__(self, least):
    self._least = least

  def score(self, batch):
    return [rewards.Score(self._least, "all") for _ in batch]


def config_with(reward) -> ExperimentConfig:
  return ExperimentConfig(name="t", tasks=(FileTask("t", reward=reward),))


def test_an_object_is_named_with_its_arguments():
  plain = flags.to_dict(config_with(Threshold(0.5)))
  assert plain["tasks"]["t"]["reward"] == {
    "object": f"{__name__}:Threshold",
    "least": 0.5,
  }
  other = flags.config_hash(config_with(Threshold(0.25)))
  assert flags.config_hash(config_with(Threshold(0.5))) != other


def test_a_numpy_number_is_named_by_its_value():
  plain = flags.to_dict(config_with(Threshold(np.float32(0.5))))
  assert plain["tasks"]["t"]["reward"]["least"] == 0.5


@dataclasses.dataclass
class Counts:
  most: int
  calls: int = dataclasses.field(default=0, init=False)

  def score(self, batch):
    return []


def test_what_an_object_counts_while_it_works_does_not_name_it():
  used, fresh = Counts(3), Counts(3)
  used.calls = 7
  assert flags.to_dict(config_with(used)) == flags.to_dict(config_with(fresh))


def test_an_algorithm_is_named_by_what_it_computes_with():
  config = ExperimentConfig(
    name="t", train=TrainConfig(methods=("grpo", ALGORITHMS["rapo"]))
  )
  name, plain = flags.to_dict(config)["train"]["methods"]
  assert name == "grpo"
  assert plain["object"] == "rapo_jax.algorithms.base:Algorithm"
  assert plain["advantages"] == {
    "function": "rapo_jax.algorithms.rapo:advantages"
  }
  assert not [*objects.names_from_outside(plain)]


@pytest.mark.parametrize(
  ("reward", "message"),
  [
    (rewards.reward(lambda sample: 1.0), "found again by its name, and .*<lam"),
    (Hidden(0.5), "show the arguments .*Hidden does not: make the class a"),
    (
      rewards.reward(Threshold(0.5).score),
      "the method Threshold.score has those",
    ),
    (Threshold(np.ones(2)), "ndarray does not: .* tuples"),
    (Threshold(frozenset({1})), "frozenset does not"),
  ],
)
def test_what_no_later_start_could_find_is_refused(reward, message):
  with pytest.raises(ValueError, match=message):
    flags.to_dict(config_with(reward))


def test_a_function_within_a_function_is_refused_before_a_run(own, capsys):
  text = (own / "experiment.py").read_text(encoding="utf-8")
  text = text.replace("reward=short_and_right", "reward=rewards.reward(scored)")
  text = text.replace(
    "def get_config():",
    "def get_config():\n  def scored(sample):\n    return 1.0\n",
  )
  (own / "experiment.py").write_text(text, encoding="utf-8")
  workdir = own / "run"
  command = ["--config", str(own / "experiment.py"), "--workdir", str(workdir)]
  for more in ([], ["--dry_run"]):
    assert run.main([*command, *more]) == 2
    assert "get_config.<locals>.scored cannot be" in capsys.readouterr().err
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    # A loss that mixes tokens, advantages of a wrong shape.
    ("* log_probs\n", "* log_probs.mean()\n", "the algorithm ours"),
    ("outcome_advantages, LOSS", "lambda s, o: 1.0, LOSS", "cannot be"),
    ('value, "right"', 'value / 0, "right"', "short_and_right must not raise"),
    ('value, "right"', "float('nan'), \"right\"", "must give finite numbers"),
    ("tools=(calculator,)", "tools=(calculator, str)", "must be a tuple of"),
    ('"sums", path', '"a b", path', "name of a task must be letters"),
    ('"ours", "Ours"', '"base", "Ours"', "the name of an algorithm must"),
  ],
)
def test_what_keeps_no_protocol_is_found_by_the_dry_run(
  own, old, new, message, capsys
):
  text = (own / "experiment.py").read_text(encoding="utf-8")
  assert old in text
  (own / "experiment.py").write_text(text.replace(old, new), encoding="utf-8")
  command = ["--config", str(own / "experiment.py"), "--dry_run"]
  assert run.main(command) == 2
  error = capsys.readouterr().err
  assert message in error
  assert "Traceback" not in error
