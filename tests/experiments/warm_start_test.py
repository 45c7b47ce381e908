"""The warm start of a small experiment: sources, resume, evaluation, errors."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal

import pytest

from experiments import buffer as buffer_command
from experiments import checks, run, study
from experiments.arms import Arm, Study
from experiments.config import (
  BufferConfig,
  EvaluationConfig,
  ExperimentConfig,
  LoggingConfig,
  PolicyConfig,
  RandomModelConfig,
  TrainConfig,
  WarmStartConfig,
)
from experiments.flags import with_setting
from experiments.metrics import MetricsWriter, read_metrics
from experiments.policies import model_digest
from experiments.report.folders import arm_folder
from experiments.stages import warm_start
from experiments.workdir import Workdir, read_json
from rapo_jax import models
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import RetrievalConfig
from rapo_jax.rollout import RolloutConfig
from rapo_jax.tasks import PythonSpec, Questions, Task
from rapo_jax.tools import TagSet
from rapo_jax.training import OptimizerConfig, SupervisedConfig, UpdateConfig
from tests.letters import Letters

STEPS = 6


@dataclasses.dataclass(frozen=True)
class Doubles(Task):
  """A task with worked solutions of its own; three are too long."""

  name: str = "doubles"
  _: dataclasses.KW_ONLY
  count: int = 15

  def questions(self):
    queries = [
      Query(
        f"q{n}",
        f"{n} + {n}?",
        (str(2 * n),),
        ({"role": "user", "content": f"{n} + {n}?"},),
        self.name,
      )
      for n in range(self.count + 2)
    ]
    return Questions(queries[2:], {"test": queries[:2]})

  def tool_specs(self):
    return (PythonSpec(),)

  def solutions(self):
    return {
      f"q{n}": (
        f"<think> Add{'.' * 200 * (n < 5)} </think>"
        f"<python> print({n}+{n}) </python><result> {2 * n} </result>",
        f"<think> Done. </think><answer> \\boxed{{{2 * n}}} </answer>",
      )
      for n in range(2, self.count + 2)
    }


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="test",
    tasks=(Doubles(),),
    policy=PolicyConfig(
      random=RandomModelConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_layers=1
      )
    ),
    warm_start=WarmStartConfig(
      training=SupervisedConfig(
        num_steps=STEPS,
        learning_rate=3e-2,
        warmup_steps=1,
        rows=2,
        row_length=288,
      ),
      retrieved_share=1.0,
      held_out=3,
      eval_every=2,
      checkpoint_every=2,
    ),
    buffer=BufferConfig(num_trajectories=1, top_k_trajectories=1),
    retrieval=RetrievalConfig(min_reward=-2.0),
    rollout=RolloutConfig(
      max_prompt_tokens=64,
      max_response_tokens=224,
      max_step_tokens=96,
      max_tool_tokens=64,
      max_tool_calls=2,
      num_generations=2,
      num_hybrid=0,
      num_slots=4,
      prefill_rows=2,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    update=UpdateConfig(
      queries_per_update=2,
      queries_per_minibatch=2,
      row_length=288,
      rows_per_microbatch=2,
      remat="none",
    ),
    train=TrainConfig(
      methods=("grpo",), seeds=(0,), num_updates=1, eval_every=1
    ),
    evaluation=EvaluationConfig(num_samples=1),
    logging=LoggingConfig(tensorboard=False),
  )


def changed(**fields):
  config = get_config()
  settings = dataclasses.replace(config.warm_start, **fields)
  return dataclasses.replace(config, warm_start=settings)


def start(folder, *arguments):
  return run.main(
    ["--config", __file__, "--workdir", str(folder), *map(str, arguments)]
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("warm") / "whole"
  assert start(folder) == 0
  return Workdir(folder)


@pytest.fixture
def agents(finished, tmp_path):
  """A work folder in which agents are made, and nothing else."""
  shutil.copytree(finished.root / "agents", tmp_path / "run" / "agents")
  return Workdir(tmp_path / "run")


def policy_bytes(workdir):
  folder = workdir.warm_started("doubles")
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def losses(workdir):
  return [
    {name: row.get(name) for name in ("update", "loss", "held_out/loss")}
    for row in read_metrics(workdir.warm_start("doubles"))
  ]


def test_runs_begin_with_what_the_warm_start_gives(finished):
  done = read_json(finished.run("doubles", "grpo-seed0") / "done.json")
  assert done["update"] == 1
  (metadata,) = (finished.run("doubles", "grpo-seed0") / "checkpoints").glob(
    "*/metadata/metadata"
  )
  assert read_json(metadata)["base_agent"] == model_digest(
    finished.warm_started("doubles")
  )
  assert model_digest(finished.warm_started("doubles")) != model_digest(
    finished.agent("doubles", "base")
  )


def test_losses_fall_and_are_reported(finished):
  rows = losses(finished)
  assert [row["update"] for row in rows] == list(range(STEPS + 1))
  assert [r["update"] for r in rows if r["held_out/loss"]] == [0, 2, 4, 6]
  assert rows[-1]["held_out/loss"] < rows[0]["held_out/loss"] - 0.3
  figures = read_json(finished.warm_start("doubles") / "done.json")["figures"]
  assert figures["examples"] == 9
  assert figures["held_out_examples"] == 3
  assert figures["left_out"] == 3
  assert figures["held_out_loss"] == [
    rows[0]["held_out/loss"],
    rows[-1]["held_out/loss"],
  ]
  (shown,) = read_json(finished.root / "results.json")["warm_start"]
  assert shown == {"task": "doubles", "agent": "warm_start", **figures}
  page = (finished.root / "report.html").read_text(encoding="utf-8")
  before, after = figures["held_out_loss"]
  assert f"<td>{before:.3f} → {after:.3f}</td>" in page
  assert not (finished.warm_start("doubles") / "checkpoints").exists()


def test_both_agents_are_evaluated(finished):
  results = read_json(finished.root / "results.json")
  assert results["methods"] == ["base", "warm_start", "off_policy", "grpo"]
  assert {"grpo - warm_start", "warm_start - base"} <= {*results["differences"]}
  assert results["labels"]["warm_start"] == "warm start"
  # Nothing is left to do.
  before = (finished.root / "results.json").stat().st_mtime_ns
  assert start(finished.root, "--stage=evaluate") == 0
  assert (finished.root / "results.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_what_was_stopped_goes_on_bit_for_bit(
  finished, agents, monkeypatch, number
):
  write = MetricsWriter.write

  def stopping(self, update, values):
    if update == 3 and number is None:
      raise KeyboardInterrupt
    write(self, update, values)
    if update == 3:
      os.kill(os.getpid(), number)

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, "write", stopping)
    status = start(agents.root, "--stage=warm_start")
  assert status == (130 if number is None else 128 + number)
  folder = agents.warm_start("doubles")
  there = {path.name for path in (folder / "checkpoints").iterdir()}
  # A signal saves the step that was under way.
  assert ("3" in there) == (number is not None)
  assert not agents.warm_started("doubles").exists()
  assert start(agents.root, "--stage=warm_start") == 0
  assert policy_bytes(agents) == policy_bytes(finished)
  assert losses(agents) == losses(finished)


def test_whole_trajectories_of_a_buffer_are_a_source(
  finished, agents, tmp_path, capsys
):
  out = tmp_path / "buffer"
  arguments = ("--config", __file__, "--output", str(out), "--solutions")
  assert buffer_command.main(["build", *arguments]) == 0
  source = ("--config.warm_start.source=buffer", f"--config.buffer.path={out}")
  assert start(agents.root, *source, "--dry_run") == 0
  assert "9 examples" in capsys.readouterr().out
  assert start(agents.root, *source, "--stage=warm_start") == 0
  # They are the task's solutions.
  assert policy_bytes(agents) == policy_bytes(finished)
  changed = "--config.warm_start.seed=1"
  assert start(agents.root, *source, changed, "--stage=warm_start") == 2
  error = capsys.readouterr().err
  assert "config.warm_start.seed is 0 there and 1 here" in error


def test_adapters_are_merged(finished, agents):
  config = ("--config.warm_start.lora.rank=2", "--stage=warm_start")
  assert start(agents.root, *config) == 0
  written = models.from_pretrained(agents.warm_started("doubles"))
  assert written.config.lora is None
  assert policy_bytes(agents) != policy_bytes(finished)
  rows = losses(agents)
  assert rows[-1]["held_out/loss"] < rows[0]["held_out/loss"]


def test_another_base_agent_than_it_began_with(agents, monkeypatch, capsys):
  def stopping(self, update, values):
    if update == 3:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(MetricsWriter, "write", stopping)
    assert start(agents.root, "--stage=warm_start") == 130
  base = agents.agent("doubles", "base") / "config.json"
  base.write_text(base.read_text(encoding="utf-8") + "\n", encoding="utf-8")
  assert start(agents.root, "--stage=warm_start") == 2
  error = capsys.readouterr().err
  assert "goes on with what it began with" in error
  assert "origin.base_agent" in error


def test_training_needs_a_warm_start_that_has_ended(agents, capsys):
  assert start(agents.root, "--stage=train") == 2
  assert "run --stage=warm_start first" in capsys.readouterr().err


def test_runs_conflict_with_another_warm_start(finished, capsys):
  other = "--config.warm_start.training.learning_rate=0.1"
  assert start(finished.root, other, "--dry_run") == 2
  error = capsys.readouterr().err
  for path in (
    finished.warm_start("doubles"),
    finished.run("doubles", "grpo-seed0"),
  ):
    assert f"{path} was " in error
  # It changes nothing that was made.
  shown = "--config.warm_start.eval_every=3"
  assert start(finished.root, shown, "--dry_run") == 0


def two_arms() -> Study:
  config = get_config()
  faster = with_setting(config, "optimizer.learning_rate", 2e-3)
  return Study(
    "two", "d", (Arm("slow", config, "slow"), Arm("fast", faster, "fast"))
  )


@pytest.mark.slow
def test_arms_of_a_study_share_a_warm_start(tmp_path, finished):
  file = tmp_path / "two.py"
  file.write_text(
    '"""Two arms."""\n'
    "from tests.experiments.warm_start_test import two_arms as get_study\n",
    encoding="utf-8",
  )
  arguments = ["--study", str(file), "--workdir", str(tmp_path / "study")]
  assert study.main([*arguments, "--processes=1"]) == 0
  arms = [
    Workdir(arm_folder(tmp_path / "study", name)) for name in ("slow", "fast")
  ]
  first, second = (arm.warm_start("doubles") for arm in arms)
  assert first == second
  # It is the one of the experiment.
  assert policy_bytes(arms[0]) == policy_bytes(finished)
  results = read_json(tmp_path / "study" / "results.json")
  assert len(results["warm_start"]) == 1
  assert results["methods"][:2] == ["base", "warm_start"]


class TestDryRun:
  def test_says_what_is_learned_from(self):
    said = checks.dry_run(get_config(), None)
    assert "6 steps × 2 rows × 288 tokens = 3,456 tokens" in said
    assert "9 examples" in said
    assert "3 examples held out, 3 left out" in said
    assert "warm_start: 1 × 6 steps × 2 rows of 288 tokens" in said
    assert "the warm start teaches it" in said
    assert re.search(r"warm_start: [\d,]+ parameters; about .* memory", said)

  @pytest.mark.parametrize(
    ("fields", "rule"),
    [
      ({"held_out": 11}, r"each of the 2 rows .* has 1, beside 11"),
      (
        {
          "training": SupervisedConfig(6, rows=2, row_length=64),
        },
        "has 0, .*15 do not fit.*raise warm_start.training.row_length",
      ),
    ],
  )
  def test_too_few_demonstrations(self, fields, rule):
    with pytest.raises(InputError, match=rule):
      checks.dry_run(changed(**fields), None)

  def test_a_buffer_that_is_no_folder(self):
    config = dataclasses.replace(
      changed(source="buffer"), buffer=BufferConfig(url="http://127.0.0.1:1")
    )
    with pytest.raises(InputError, match=r"buffer\.url is 'http"):
      checks.quick_checks(config)

  def test_a_buffer_that_nobody_fills(self, finished):
    base = str(finished.agent("doubles", "base"))
    config = dataclasses.replace(
      changed(source="buffer"), policy=PolicyConfig(base=base)
    )
    with pytest.raises(InputError, match="a warm start from the buffer needs"):
      checks.quick_checks(config)
    # That of the run is not there yet.
    said = checks.dry_run(changed(source="buffer"), None)
    assert "known once the buffer is built" in said


def test_a_tokenizer_that_loses_tags_is_refused(monkeypatch):
  monkeypatch.setattr(warm_start, "TextEncoder", lambda *_: lambda text: [0, 1])
  with pytest.raises(InputError, match=r"write the tags .* <think> .* 'ab'"):
    warm_start.check_tags(Letters(), TagSet(("python",)))


def test_a_loss_that_is_not_finite_stops_the_run(agents, capsys):
  rate = "--config.warm_start.training.learning_rate=1e30"
  assert start(agents.root, rate, "--stage=warm_start") == 3
  assert "warm_start.training.learning_rate" in capsys.readouterr().err
