"""Whole experiments, small: every stage, a kill, a dry run, bad input."""

import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers

from experiments import answers, checks, export, flags, health, run, tasks
from experiments import evaluate as evaluate_command
from experiments.config import (
  BufferConfig,
  EvaluationConfig,
  ExperimentConfig,
  LoggingConfig,
  PolicyConfig,
  TrainConfig,
  miniature_rollout,
)
from experiments.stages import agents, buffer, evaluate, train
from experiments.stages import runs as run_lib
from experiments.workdir import Workdir, read_json
from rapo_jax import models
from rapo_jax.retrieval import RetrievalConfig, SentenceEncoder, StepTraceBuffer
from rapo_jax.retrieval.serving import server
from rapo_jax.retrieval.serving.config import ServerConfig
from rapo_jax.rollout import RolloutEngine
from rapo_jax.tasks import TASKS
from rapo_jax.tasks.miniature import MiniatureTask
from rapo_jax.tasks.miniature.agents import AgentsConfig, PhaseConfig
from rapo_jax.tasks.miniature.world import WorldConfig
from rapo_jax.training import Checkpoints, OptimizerConfig, UpdateConfig
from rapo_jax.trajectory import TokenKind
from tests.retrieval import loopback

ROOT = pathlib.Path(__file__).resolve().parents[2]
UPDATES = 5

CONFIG_FILE = '''
"""A small experiment for tests."""
from tests.experiments.run_test import small_config as get_config
'''


def small_task(family) -> MiniatureTask:
  return MiniatureTask(
    family,
    world=WorldConfig(num_train=8, num_held_out=6),
    agents=AgentsConfig(
      rows=4,
      clean=PhaseConfig(60, 5e-3),
      expert=PhaseConfig(10, 1e-3),
      corrupted=PhaseConfig(10, 1e-3),
    ),
  )


def small_config() -> ExperimentConfig:
  """Agents that know the format and little else: rewards of -1 and 0.

  That is enough for groups whose rewards differ. The buffer takes any
  trajectory, so that retrieval has something to find.
  """
  return ExperimentConfig(
    name="test",
    tasks=(small_task("compute"),),
    buffer=BufferConfig(num_trajectories=2, top_k_trajectories=2),
    retrieval=RetrievalConfig(min_reward=-2.0),
    rollout=dataclasses.replace(
      miniature_rollout(),
      num_generations=4,
      num_hybrid=2,
      retrieval_prob=1.0,
      num_slots=16,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    update=UpdateConfig(
      queries_per_update=4,
      queries_per_minibatch=2,
      row_length=256,
      rows_per_microbatch=4,
      remat="none",
    ),
    train=TrainConfig(
      seeds=(0,),
      num_updates=UPDATES,
      eval_every=2,
      checkpoint_every=2,
      log_trajectories_every=1,
      strict_compile=True,
    ),
    evaluation=EvaluationConfig(num_samples=2),
    logging=LoggingConfig(tensorboard=False),
  )


def run_whole(folder, config_text):
  """Runs an experiment in one go; gives its config file and its folder."""
  config_file = folder.with_suffix(".py")
  config_file.write_text(config_text, encoding="utf-8")
  status = run.main(["--config", str(config_file), "--workdir", str(folder)])
  assert status == 0
  return config_file, folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The work folder of an experiment that ran in one go."""
  return run_whole(tmp_path_factory.mktemp("runs") / "whole", CONFIG_FILE)


def read_rows(path):
  return [
    json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
  ]


def _parameters(run_folder):
  """Arrays of the newest checkpoint, by name."""
  manager = ocp.CheckpointManager(
    run_folder / "checkpoints", item_names=("state", "metadata")
  )
  restored = manager.restore(
    manager.latest_step(),
    args=ocp.args.Composite(state=ocp.args.StandardRestore()),
  )
  manager.close()
  return {name: np.asarray(value) for name, value in restored.state.items()}


def _same(first, second):
  return first.keys() == second.keys() and all(
    np.array_equal(first[name], second[name]) for name in first
  )


def _largest_mismatch(rows):
  """Over updates; one of which all groups are dead has none."""
  name = "mismatch/abs_log_prob_max"
  gaps = [row[name] for row in rows[1:] if name in row]
  assert gaps
  return max(gaps)


def test_every_stage_leaves_its_files(finished):
  _, folder = finished
  for agent in ("base", "off_policy"):
    path = folder / "agents" / "compute" / agent
    assert json.loads((path / "config.json").read_text(encoding="utf-8"))[
      "model_type"
    ] == ("qwen2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer.decode(tokenizer.encode("<think> Now")) == "<think> Now"
  assert (folder / "buffer" / "compute" / "manifest.json").exists()
  for name in ("grpo-seed0", "rapo-seed0"):
    rows = read_rows(folder / "train" / "compute" / name / "metrics.jsonl")
    assert [row["update"] for row in rows] == list(range(UPDATES + 1))
    assert _largest_mismatch(rows) < 1e-4
  results = read_json(folder / "results.json")
  assert results["unfinished_runs"] == []
  start = results["provenance"][0]
  assert f"--workdir {folder}" in start["command"]
  assert start["devices"]["count"] == jax.device_count()
  assert "compute" in results["tasks"]
  page = (folder / "report.html").read_text(encoding="utf-8")
  assert "rapo" in page.lower()


def test_only_rapo_retrieves_and_rewards_differ(finished):
  _, folder = finished
  runs = folder / "train" / "compute"
  grpo = read_rows(runs / "grpo-seed0" / "metrics.jsonl")[1:]
  rapo = read_rows(runs / "rapo-seed0" / "metrics.jsonl")[1:]
  assert sum(row["rollout/retrievals"] for row in grpo) == 0
  assert sum(row["rollout/retrievals"] for row in rapo) > 0
  # A guard for the kill test: parameters that never move cannot differ.
  assert any(row["gradient_norm"] > 0 for row in rapo)


def test_evaluation_never_retrieves_and_repeats_the_curve(
  finished, monkeypatch
):
  _, folder = finished
  config, workdir = small_config(), Workdir(folder)
  encoder = SentenceEncoder.from_pretrained()
  with tasks.open_task(config, workdir, "compute", encoder) as task:
    model = models.from_pretrained(task.base_path)
    rolled = []
    rollout = RolloutEngine.rollout

    def recorded(*args, **kwargs):
      trajectories, stats = rollout(*args, **kwargs)
      rolled.append(trajectories)
      return trajectories, stats

    monkeypatch.setattr(RolloutEngine, "rollout", recorded)
    for samples in (1, 2):
      kept = answers.AnswerFile(None, "")
      evaluate.ask(config, task, model, kept, samples=samples, greedy=False)
  # The curve's samples are the first ones of the evaluate stage.
  firsts = [t for t in rolled[1] if t.index == 0]
  assert len(firsts) == len(rolled[0]) == config.tasks[0].world.num_held_out
  for curve, stage in zip(rolled[0], firsts, strict=True):
    np.testing.assert_array_equal(curve.tokens, stage.tokens)
  for trajectory in rolled[1]:
    assert not trajectory.retrieval_events
    assert TokenKind.RETRIEVED not in trajectory.kinds


def test_a_checkpoint_evaluated_by_itself_gives_the_stage_s_numbers(
  finished, tmp_path, capsys
):
  config_file, folder = finished
  checkpoints = folder / "train" / "compute" / "rapo-seed0" / "checkpoints"
  arguments = [
    *("--model", str(checkpoints), "--config", str(config_file)),
    *("--tasks", "compute", "--output", str(tmp_path / "out")),
  ]
  assert evaluate_command.main(arguments) == 0
  output = capsys.readouterr().out
  assert "the checkpoint of update" in output
  assert "pass@1" in output
  there = json.loads((tmp_path / "out" / "compute.json").read_bytes())
  stage = folder / "evaluate" / "compute" / "rapo-seed0.json"
  expected = json.loads(stage.read_bytes())
  for name in ("greedy", "sampled", "score_statuses", "figures"):
    assert there[name] == expected[name], name


def test_an_agent_of_nan_has_no_accuracy(finished):
  _, folder = finished
  config, encoder = small_config(), SentenceEncoder.from_pretrained()
  with tasks.open_task(config, Workdir(folder), "compute", encoder) as task:
    model = models.from_pretrained(task.base_path)
    broken = jax.tree.map(lambda x: jax.numpy.full_like(x, np.nan), model)
    with pytest.raises(health.HealthStop, match="evaluation on compute: log-"):
      evaluate.evaluate(config, task, broken)


def test_started_again_nothing_is_repeated(finished, capsys):
  config_file, folder = finished
  before = {
    p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix != ".html"
  }
  assert run.main(["--config", str(config_file), "--workdir", str(folder)]) == 0
  assert capsys.readouterr().out.count("finished before") >= 4
  after = {p: p.stat().st_mtime_ns for p in before}
  changed = {p.name for p in before if before[p] != after[p]}
  assert changed <= {"results.json", "starts.jsonl", folder.name}


@pytest.mark.slow
def test_a_run_that_cannot_learn_keeps_what_it_stopped_at_and_goes_on(
  finished, tmp_path, capsys, monkeypatch
):
  class Second(health.Monitor):
    """Finds fault with update 2."""

    def _signs(self, row):
      text = "it is cut off." if self._update == 2 else ""
      yield health.Sign("cut_off", text, at_once=bool(text))

  config_file, folder = finished
  shutil.copytree(folder / "agents", tmp_path / "w" / "agents")
  command = [
    *("--config", str(config_file), "--workdir", str(tmp_path / "w")),
    "--stage=train",
    "--config.train.health.cut_off=stop",
    "--config.train.methods=grpo,",
    "--config.train.log_trajectories_every=100",
    f"--config.buffer.path={folder / 'buffer' / 'compute'}",
  ]
  with monkeypatch.context() as patch:
    patch.setattr(health, "Monitor", Second)
    assert run.main(command) == run.UNHEALTHY_STATUS
  error = capsys.readouterr().err
  assert "\nerror: update 2 of compute grpo-seed0 cannot learn" in error
  assert "--config.train.health.cut_off=warn" in error
  path = tmp_path / "w" / "train" / "compute" / "grpo-seed0"
  rows = read_rows(path / "metrics.jsonl")
  assert [row["update"] for row in rows] == [0, 1, 2]
  assert rows[2]["health/cut_off"] == 1
  # Update 1 is on the schedule; update 2 is kept for its alert.
  logged = {row["update"] for row in read_rows(path / "trajectories.jsonl")}
  assert logged == {1, 2}
  assert run.main(command) == 0
  rows = read_rows(path / "metrics.jsonl")
  assert [row["update"] for row in rows] == list(range(UPDATES + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
  "ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
)
def test_killed_and_started_again_it_ends_with_the_same_parameters(
  ending, finished, tmp_path
):
  config_file, whole = finished
  folder = tmp_path / "killed"
  for name in ("agents", "buffer"):
    (folder / name).parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", whole / name, folder / name], check=True)
  command = [
    sys.executable,
    "-m",
    "experiments.run",
    "--config",
    str(config_file),
    "--workdir",
    str(folder),
    "--stage=train",
    "--config.train.methods=rapo,grpo",
  ]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  run_folder = folder / "train" / "compute" / "rapo-seed0"
  metrics = run_folder / "metrics.jsonl"
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    encoding="utf-8",
  )
  deadline = time.monotonic() + 240
  # After update 3: one update beyond the checkpoint of update 2 is lost.
  checkpoint = run_folder / "checkpoints" / "2"
  while not (checkpoint.exists() and len(_whole_rows(metrics)) >= 4):
    assert process.poll() is None, "the run ended before it could be killed"
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(ending)
  _, errors = process.communicate()
  assert not (run_folder / "done.json").exists()
  rows_kept = 3
  if ending != signal.SIGKILL:
    # It ends after an update of its own choice, and that one is saved.
    assert process.returncode == 128 + ending
    assert "Traceback" not in errors
    assert "stopped after update" in errors
    assert "start it again to go on" in errors
    rows_kept = len(read_rows(metrics))
    assert (run_folder / "checkpoints" / str(rows_kept - 1)).exists()
  before = _whole_rows(metrics)[:rows_kept]

  subprocess.run(command, cwd=ROOT, env=environment, check=True)
  expected = whole / "train" / "compute" / "rapo-seed0"
  assert _same(_parameters(run_folder), _parameters(expected))
  # The control: another method's parameters are not the same.
  other = whole / "train" / "compute" / "grpo-seed0"
  assert not _same(_parameters(run_folder), _parameters(other))
  # Rows hold wall times: a run that starts afresh would write others.
  assert _whole_rows(metrics)[:rows_kept] == before
  rows = read_rows(metrics)
  assert [row["update"] for row in rows] == list(range(UPDATES + 1))
  logged = [
    (r["update"], r["query_id"], r["index"])
    for r in read_rows(run_folder / "trajectories.jsonl")
  ]
  assert len(logged) == len(set(logged)) == UPDATES * 16


@pytest.mark.slow
def test_a_buffer_that_grows_is_restored_with_the_checkpoint(
  finished, tmp_path, capsys
):
  config_file, whole = finished
  folder = tmp_path / "grown"
  folder.mkdir()
  for name in ("agents", "buffer"):
    subprocess.run(["cp", "-r", whole / name, folder / name], check=True)
  command = [
    *("--config", str(config_file), "--workdir", str(folder), "--stage=train"),
    "--config.train.methods=rapo",
    "--config.train.checkpoint_every=3",
    "--config.buffer.grow.min_reward=-2",
    "--config.buffer.grow.merge_every=2",
  ]
  assert run.main(command) == 0
  run_folder = folder / "train" / "compute" / "rapo-seed0"

  def seen():
    """What each trajectory saw and became; times left out."""
    return [
      (
        row["update"],
        row["buffer_version"],
        row["segments"],
        [e for e in row["events"] if e["type"] == "retrieval"],
      )
      for row in read_rows(run_folder / "trajectories.jsonl")
    ]

  expected, parameters = seen(), _parameters(run_folder)
  rows = read_rows(run_folder / "metrics.jsonl")[1:]
  # Every update adds something, which the next one sees.
  assert [row["buffer/version"] for row in rows] == [2, 3, 4, 5, 6]
  for update, version, _, events in expected:
    assert version in (None, update)
    assert not events or version is not None
  sources = {e["source"] for _, _, _, events in expected for e in events}
  assert "policy" in sources
  assert [row["buffer/tail_traces"] > 0 for row in rows] == [
    *(True, False, True, False, True)
  ]
  # As after a kill: the last checkpoint is of update 3, and what updates 4 and
  # 5 have added, and the merge between them, is there.
  subprocess.run(["rm", "-r", run_folder / "checkpoints" / "5"], check=True)
  (run_folder / "done.json").unlink()
  assert run.main(command) == 0
  assert seen() == expected
  assert _same(_parameters(run_folder), parameters)

  # What a checkpoint saw must be there.
  subprocess.run(["rm", "-r", run_folder / "checkpoints" / "5"], check=True)
  (run_folder / "done.json").unlink()
  (run_folder / "buffer" / "added-000003.parquet").unlink()
  capsys.readouterr()
  assert run.main(command) == 2
  assert "goes on with the buffer that it had" in capsys.readouterr().err


def test_a_buffer_that_is_there_trains_as_one_s_own(finished, tmp_path, capsys):
  config_file, whole = finished
  folder = tmp_path / "elsewhere"
  folder.mkdir()
  subprocess.run(["cp", "-r", whole / "agents", folder / "agents"], check=True)
  path = tmp_path / "a buffer"
  command = [
    *("--config", str(config_file), "--workdir", str(folder)),
    *("--config.train.methods=rapo", f"--config.buffer.path={path}"),
  ]
  assert run.main([*command, "--dry_run"]) == 2
  assert "buffer.path: " in capsys.readouterr().err
  subprocess.run(["cp", "-r", whole / "buffer" / "compute", path], check=True)
  assert run.main([*command, "--stage=buffer"]) == 0
  assert not (folder / "buffer").exists()
  assert run.main([*command, "--stage=train"]) == 0
  name = pathlib.Path("train") / "compute" / "rapo-seed0"
  assert _same(_parameters(folder / name), _parameters(whole / name))


@pytest.mark.slow
def test_a_buffer_that_a_server_holds_trains_as_one_s_own(
  finished, tmp_path, capsys
):
  config_file, whole = finished
  folder = tmp_path / "served"
  folder.mkdir()
  subprocess.run(["cp", "-r", whole / "agents", folder / "agents"], check=True)
  encoder = SentenceEncoder.from_pretrained()
  buffer = StepTraceBuffer.load(whole / "buffer" / "compute", encoder)
  command = [
    *("--config", str(config_file), "--workdir", str(folder)),
    "--config.train.methods=rapo",
    # The server embeds and searches in this process.
    "--config.train.strict_compile=false",
  ]
  with loopback.serving(server.buffer_app(buffer, ServerConfig())) as url:
    command.append(f"--config.buffer.url={url}")
    assert run.main([*command, "--stage=buffer"]) == 0
    assert not (folder / "buffer").exists()
    assert run.main([*command, "--stage=train"]) == 0
  name = pathlib.Path("train") / "compute" / "rapo-seed0"
  assert _same(_parameters(folder / name), _parameters(whole / name))

  # The server is gone, and there is something left to train.
  (folder / name / "done.json").unlink()
  capsys.readouterr()
  assert run.main([*command, "--stage=train"]) == 2
  assert "does not answer" in capsys.readouterr().err


def test_probability_zero_is_grpo_bit_for_bit_at_any_coefficients(
  finished, tmp_path
):
  config_file, whole = finished
  folder = tmp_path / "zero"
  folder.mkdir()
  for name in ("agents", "buffer"):
    subprocess.run(["cp", "-r", whole / name, folder / name], check=True)
  status = run.main(
    [
      "--config",
      str(config_file),
      "--workdir",
      str(folder),
      "--stage=train",
      "--config.rollout.retrieval_prob=0",
      "--config.objective.retrieval_coef=3",
      "--config.objective.shaping_coef=0.7",
      "--config.train.methods=rapo",
    ]
  )
  assert status == 0
  rapo = _parameters(folder / "train" / "compute" / "rapo-seed0")
  grpo = _parameters(whole / "train" / "compute" / "grpo-seed0")
  assert _same(rapo, grpo)


def test_adapters_are_trained_merged_written_apart_and_exported(
  finished, tmp_path
):
  config_file, whole = finished
  folder = tmp_path / "adapters"
  folder.mkdir()
  for name in ("agents", "buffer"):
    subprocess.run(["cp", "-r", whole / name, folder / name], check=True)
  status = run.main(
    [
      *("--config", str(config_file), "--workdir", str(folder)),
      "--stage=train",
      "--config.policy.lora.rank=2",
      "--config.policy.lora.targets=query,value",
      "--config.train.methods=rapo",
      "--config.train.num_updates=2",
    ]
  )
  assert status == 0
  run_folder = folder / "train" / "compute" / "rapo-seed0"
  rows = read_rows(run_folder / "metrics.jsonl")
  assert _largest_mismatch(rows) < 1e-4
  assert any(row["gradient_norm"] > 0 for row in rows[1:])
  saved = _parameters(run_folder)
  assert all("lora_" in name or "count" in name for name in saved)
  # The policy is the base agent with the adapters merged into it.
  base = models.from_pretrained(folder / "agents" / "compute" / "base")
  adapters = run_folder / run_lib.ADAPTERS_FOLDER
  adapted = models.load_adapters(base, adapters)
  assert (adapters / "tokenizer.json").exists()
  policy = models.from_pretrained(run_folder / run_lib.POLICY_FOLDER)
  expected = models.merge_adapters(adapted)
  assert jax.tree.all(jax.tree.map(np.array_equal, policy, expected))
  assert not np.array_equal(
    policy.layers.attention.query.kernel, base.layers.attention.query.kernel
  )
  output = tmp_path / "exported"
  checkpoints = run_folder / "checkpoints"
  assert (
    export.main(["--checkpoint", str(checkpoints), "--output", str(output)])
    == 0
  )
  exported = models.from_pretrained(output)
  assert jax.tree.all(jax.tree.map(np.array_equal, exported, policy))
  assert transformers.AutoTokenizer.from_pretrained(output).get_vocab()


def _whole_rows(path):
  return [
    line
    for line in path.read_text(encoding="utf-8").splitlines(True)
    if "\n" in line
  ]


def test_another_config_does_not_go_on_in_the_folder(finished, capsys):
  config_file, folder = finished
  status = run.main(
    [
      "--config",
      str(config_file),
      "--workdir",
      str(folder),
      "--config.optimizer.learning_rate=1.0",
    ]
  )
  assert status == 2
  message = capsys.readouterr().err
  assert "config.optimizer.learning_rate is 0.001 there and 1.0" in message
  assert "choose another --workdir" in message


def test_a_checkpoint_of_another_prompt_is_not_gone_on_with(
  finished, tmp_path, monkeypatch, capsys
):
  config_file, whole = finished
  folder = tmp_path / "other_prompt"
  subprocess.run(["cp", "-r", whole, folder], check=True)
  (folder / "train" / "compute" / "rapo-seed0" / "done.json").unlink()
  arguments = [
    *("--config", str(config_file), "--workdir", str(folder)),
    "--stage=train",
  ]

  def refuse(*_):
    raise AssertionError("what is refused is not to be restored")

  with monkeypatch.context() as patched:
    patched.setattr(train, "prompt_hash", lambda *_, **__: "another")
    patched.setattr(Checkpoints, "restore", refuse)
    assert run.main(arguments) == 2
  assert "prompt_hash that it began with" in capsys.readouterr().err
  # A checkpoint from before such a hash was kept.
  metadata = Checkpoints.metadata
  monkeypatch.setattr(
    Checkpoints,
    "metadata",
    lambda self, n: {
      k: v for k, v in metadata(self, n).items() if k != "prompt_hash"
    },
  )
  assert run.main(arguments) == 2
  assert "has no prompt_hash: go on with the" in capsys.readouterr().err


def _copied(whole, folder):
  subprocess.run(["cp", "-r", whole, folder], check=True)
  return folder


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(bytes(content))


def test_a_run_goes_on_from_the_last_sound_checkpoint_and_is_extended(
  finished, tmp_path, capsys
):
  config_file, whole = finished
  # A name that TensorStore and glob read as something else.
  folder = _copied(whole, tmp_path / "[x]\\y *")
  command = [
    *("--config", str(config_file), "--workdir", str(folder)),
    "--config.train.methods=rapo",
    "--config.train.num_updates=6",
    "--config.train.seeds=0,",
    "--config.name=longer",
    "--config.logging.tensorboard=true",
  ]
  run_folder = folder / "train" / "compute" / "rapo-seed0"
  before = read_json(folder / "evaluate" / "compute" / "rapo-seed0.json")
  assert before["update"] == UPDATES
  _flip(run_folder / "checkpoints" / "5" / "state" / "_METADATA")
  assert run.main(command) == 0
  said = " ".join(capsys.readouterr().out.split())
  assert "checkpoint 5: state/_METADATA has another checksum" in said
  assert "goes on from the checkpoint of update 4, the newest that is s" in said
  rows = read_rows(run_folder / "metrics.jsonl")
  assert [row["update"] for row in rows] == list(range(7))
  logged = [
    (r["update"], r["query_id"], r["index"])
    for r in read_rows(run_folder / "trajectories.jsonl")
  ]
  assert len(logged) == len(set(logged)) == 6 * 16
  assert read_json(folder / "config.json")["name"] == "longer"
  assert read_json(run_folder / "done.json")["update"] == 6
  after = read_json(folder / "evaluate" / "compute" / "rapo-seed0.json")
  assert after["update"] == 6
  # What nothing has changed for is not evaluated again.
  for name in ("base", "grpo-seed0"):
    path = pathlib.Path("evaluate") / "compute" / f"{name}.json"
    assert (folder / path).read_bytes() == (whole / path).read_bytes()

  # Fewer updates than are done: nothing is lost, and it is said.
  shorter = [*command, "--config.train.num_updates=2", "--stage=train"]
  assert run.main(shorter) == 0
  said = " ".join(capsys.readouterr().out.split())
  assert "rapo-seed0 ended after 6 updates, which is more than" in said
  assert read_json(run_folder / "done.json")["update"] == 6

  # A policy that was damaged is neither evaluated nor kept.
  weights = run_folder / run_lib.POLICY_FOLDER / "model.safetensors"
  whole_policy = weights.read_bytes()
  (folder / "evaluate" / "compute" / "rapo-seed0.json").unlink()
  _flip(weights)
  assert run.main([*command, "--stage=evaluate"]) == 2
  assert "model.safetensors has another checksum" in capsys.readouterr().err
  weights.unlink()
  assert run.main([*command, "--stage=train"]) == 0
  assert weights.read_bytes() == whole_policy


def test_a_run_without_a_sound_checkpoint_is_refused(
  finished, tmp_path, capsys
):
  config_file, whole = finished
  folder = _copied(whole, tmp_path / "unsound")
  command = [
    *("--config", str(config_file), "--workdir", str(folder)),
    *("--stage=train", "--config.train.num_updates=6"),
  ]
  checkpoints = folder / "train" / "compute" / "grpo-seed0" / "checkpoints"
  for number in ("4", "5"):
    _flip(checkpoints / number / "metadata" / "metadata")
  assert run.main(command) == 2
  message = capsys.readouterr().err
  assert "checkpoint 4: metadata/metadata has another checksum" in message
  assert "checkpoint 5: metadata/metadata has another checksum" in message
  assert "or delete the run's folder" in message
  output = tmp_path / "exported"
  exported = ["--checkpoint", str(checkpoints), "--output", str(output)]
  assert export.main(exported) == 2
  assert "holds none" in capsys.readouterr().err
  # A run that has ended cannot be trained from its start unsaid.
  subprocess.run(["rm", "-r", checkpoints], check=True)
  assert run.main(command) == 2
  assert "has ended, and a run goes on from a" in capsys.readouterr().err


def _swap_methods(folder):
  """RAPO's checkpoints, whole, in GRPO's folder."""
  runs = folder / "train" / "compute"
  subprocess.run(["rm", "-r", runs / "grpo-seed0" / "checkpoints"], check=True)
  source = runs / "rapo-seed0" / "checkpoints"
  subprocess.run(["cp", "-r", source, runs / "grpo-seed0"], check=True)


def _other_base(folder):
  base = folder / "agents" / "compute" / "base"
  model = models.from_pretrained(base)
  kernel = model.layers.feed_forward.down.kernel
  kernel[...] = kernel[...].at[-1, -1, -1].add(1.0)
  tokenizer = transformers.AutoTokenizer.from_pretrained(base)
  models.save_pretrained(model, base, tokenizer=tokenizer)


def _other_buffer(folder):
  """A whole buffer with another manifest, as after it was built again."""
  path = folder / "buffer" / "compute" / "manifest.json"
  manifest = json.loads(path.read_text(encoding="utf-8"))
  path.write_text(
    json.dumps(manifest | {"version": manifest["version"] + 1}),
    encoding="utf-8",
  )


@pytest.mark.parametrize(
  ("change", "method", "name"),
  [
    (_swap_methods, "grpo", "the run that it began with"),
    (_other_base, "grpo", "the base_agent that it began with"),
    (_other_buffer, "rapo", "the buffer that it began with"),
  ],
)
def test_a_run_goes_on_with_what_it_began_with_alone(
  change, method, name, finished, tmp_path, capsys
):
  config_file, whole = finished
  folder = _copied(whole, tmp_path / "changed")
  change(folder)
  status = run.main(
    [
      *("--config", str(config_file), "--workdir", str(folder)),
      *("--stage=train", "--config.train.num_updates=6"),
      f"--config.train.methods={method}",
    ]
  )
  assert status == 2
  message = capsys.readouterr().err
  assert f"a run goes on with {name}" in message
  assert "choose another --workdir" in message


def test_a_finished_run_in_the_folder_of_another_is_refused(
  finished, tmp_path, capsys
):
  config_file, whole = finished
  folder = _copied(whole, tmp_path / "copied")
  runs = folder / "train" / "compute"
  subprocess.run(["rm", "-r", runs / "grpo-seed0"], check=True)
  (folder / "evaluate" / "compute" / "grpo-seed0.json").unlink(missing_ok=True)
  subprocess.run(["cp", "-r", runs / "rapo-seed0", runs / "grpo-seed0"])
  command = ["--config", str(config_file), "--workdir", str(folder)]
  assert run.main([*command, "--stage=train"]) == 2
  assert "a run goes on with the run that it began" in capsys.readouterr().err
  run.main([*command, "--stage=evaluate"])
  assert not (folder / "evaluate" / "compute" / "grpo-seed0.json").exists()


def test_a_finished_run_of_another_config_is_refused(
  finished, tmp_path, capsys
):
  config_file, whole = finished
  folder = tmp_path / "other"
  command = [
    *("--config", str(config_file), "--workdir", str(folder)),
    "--config.optimizer.learning_rate=0.5",
  ]
  folder.mkdir()
  for name in ("agents", "buffer", "train"):
    subprocess.run(["cp", "-r", whole / name, folder / name], check=True)
  assert run.main([*command, "--stage=train"]) == 2
  assert "optimizer.learning_rate is" in capsys.readouterr().err


def test_other_code_is_said_and_the_run_goes_on(
  finished, tmp_path, capsys, monkeypatch
):
  config_file, whole = finished
  folder = _copied(whole, tmp_path / "code")
  (folder / "train" / "compute" / "grpo-seed0" / "done.json").unlink()
  other = {"version": "9", "commit": None, "source_sha256": "f" * 64}
  monkeypatch.setattr(train.provenance, "code", lambda: other)
  status = run.main(
    [
      *("--config", str(config_file), "--workdir", str(folder)),
      *("--stage=train", "--config.train.methods=grpo"),
    ]
  )
  assert status == 0
  said = " ".join(capsys.readouterr().out.split())
  assert "was written by other code" in said
  assert "version 9, source ffffffffffff" in said


def test_a_policy_that_diverges_is_not_saved_and_the_remedy_works(
  finished, tmp_path, capsys
):
  config_file, whole = finished
  folder = tmp_path / "diverged"
  folder.mkdir()
  for name in ("agents", "buffer"):
    subprocess.run(["cp", "-r", whole / name, folder / name], check=True)
  command = [
    *("--config", str(config_file), "--workdir", str(folder)),
    *("--config.train.methods=grpo", "--config.train.num_updates=2"),
  ]
  # Which update is the first with a gradient depends on the processor: numbers
  # that are rounded otherwise give other samples.
  assert run.main([*command, "--config.optimizer.learning_rate=1e37"]) == 2
  message = capsys.readouterr().err
  assert re.search(
    r"compute grpo-seed0 has diverged: after update [12] ", message
  )
  assert "--config.optimizer.learning_rate=0.0001 or less" in message
  run_folder = folder / "train" / "compute" / "grpo-seed0"
  assert not (run_folder / "done.json").exists()
  assert not (run_folder / run_lib.POLICY_FOLDER).exists()
  assert not (run_folder / "checkpoints" / "2").exists()
  assert not (folder / "evaluate").exists()
  # The learning rate of the other tests: nothing is compiled again.
  assert run.main([*command, "--stage=train"]) == 0
  assert read_json(run_folder / "done.json")["update"] == 2
  assert not (run_folder / "diverged.json").exists()


def test_a_policy_that_is_not_finite_is_not_evaluated(
  finished, tmp_path, capsys
):
  config_file, whole = finished
  folder = _copied(whole, tmp_path / "nan")
  base = folder / "agents" / "compute" / "base"
  model = models.from_pretrained(base)
  model.final_norm.scale[...] = model.final_norm.scale[...].at[0].set(np.nan)
  tokenizer = transformers.AutoTokenizer.from_pretrained(base)
  models.save_pretrained(model, base, tokenizer=tokenizer)
  arguments = ["--config", str(config_file), "--workdir", str(folder)]
  assert run.main([*arguments, "--stage=evaluate"]) == 2
  message = capsys.readouterr().err
  assert "must be finite" in message
  assert "final_norm.scale" in message


def test_a_wrong_path_is_corrected_in_the_same_folder(tmp_path, capsys):
  folder = tmp_path / "w"
  arguments = [
    *("--config", str(ROOT / "experiments" / "configs" / "tool_star_smoke.py")),
    *("--workdir", str(folder), "--stage=agents"),
    "--config.policy.random.vocab_size=320",
    "--config.tasks.tool_star.limit=12",
  ]
  broken = tmp_path / "broken.parquet"
  broken.write_text("no questions", encoding="utf-8")
  assert run.main([*arguments, f"--config.tasks.tool_star.path={broken}"]) == 2
  assert "another" not in capsys.readouterr().err
  right = f"--config.tasks.tool_star.path={_tool_star_file(tmp_path)}"
  assert run.main([*arguments, right]) == 0
  # Now the agents are made from these questions.
  assert run.main([*arguments, f"--config.tasks.tool_star.path={broken}"]) == 2
  message = capsys.readouterr().err
  assert "config.tasks.tool_star.path is" in message
  assert "agents/tool_star was made with it" in message


@pytest.mark.parametrize("umask", [0, 0o022])
def test_a_work_folder_is_its_owner_s_alone(umask, finished, tmp_path, capsys):
  _, whole = finished
  for path in (
    whole,
    whole / "train" / "compute" / "rapo-seed0",
    whole / "evaluate",
  ):
    assert path.stat().st_mode & 0o777 == 0o700, path
  for name in ("results.json", "report.html", "evaluate/compute/base.json"):
    assert (whole / name).stat().st_mode & 0o777 == 0o600, name
  logs = whole / "train" / "compute" / "rapo-seed0" / "trajectories.jsonl"
  assert logs.stat().st_mode & 0o777 == 0o600
  before = os.umask(umask)
  try:
    with run.claim_workdir(small_config(), Workdir(tmp_path / "a" / "w"), []):
      pass
  finally:
    os.umask(before)
  assert (tmp_path / "a" / "w").stat().st_mode & 0o777 == 0o700
  assert capsys.readouterr().err == ""
  # One that is there keeps its permissions, and that is said.
  (tmp_path / "a" / "w").chmod(0o755)
  with run.claim_workdir(small_config(), Workdir(tmp_path / "a" / "w"), []):
    pass
  assert (tmp_path / "a" / "w").stat().st_mode & 0o777 == 0o755
  assert "others can read it (mode 755)" in capsys.readouterr().err


def test_a_start_may_insist_on_an_earlier_one_or_on_none(tmp_path):
  workdir = Workdir(tmp_path / "w")

  def claim(resume):
    return run.claim_workdir(small_config(), workdir, [], resume)

  with (
    pytest.raises(flags.ConfigError, match="--resume=must needs"),
    claim("must"),
  ):
    pass
  assert not workdir.root.exists()
  with claim("never"):
    pass
  with (
    pytest.raises(flags.ConfigError, match="--resume=never needs"),
    claim("never"),
  ):
    pass
  with claim("must"), claim("auto"):
    pass


def test_one_task_of_several_is_held_and_run_alone(tmp_path):
  config = dataclasses.replace(
    small_config(), tasks=(small_task("compute"), small_task("web"))
  )
  workdir = Workdir(tmp_path / "shared")
  with (
    run.claim_workdir(config, workdir, ["web"]),
    run.claim_workdir(config, workdir, ["compute"]),
    pytest.raises(flags.ConfigError, match="another process works on web"),
    run.claim_workdir(config, workdir, ["web"]),
  ):
    pass
  # Nothing depends on the config yet, but one who works with it.
  other = dataclasses.replace(config, name="other")
  with (
    run.claim_workdir(config, workdir, ["compute"]),
    pytest.raises(flags.ConfigError, match=r"works on compute .* another conf"),
    run.claim_workdir(other, workdir, ["web"]),
  ):
    pass
  with run.claim_workdir(other, workdir, ["web"]):
    assert read_json(workdir.config)["name"] == "other"


def _named_base(finished):
  """Arguments for the finished experiment's base agent, named alone."""
  config_file, whole = finished
  base = whole / "agents" / "compute" / "base"
  return ["--config", str(config_file), f"--config.policy.base={base}"]


def test_one_model_is_evaluated_without_a_run(finished, tmp_path, capsys):
  folder = tmp_path / "evaluated"
  arguments = [*_named_base(finished), "--workdir", str(folder)]
  assert run.main([*arguments, "--stage=evaluate"]) == 0
  out = capsys.readouterr().out
  assert "compute" in out
  assert (
    "Not evaluated, as they are not finished (--stage=train finishes them): "
    "compute grpo-seed0, compute rapo-seed0." in out
  )
  (path,) = folder.rglob("evaluate/*/*.json")
  own = read_json(path)
  # As in the run that made the agent.
  there = read_json(finished[1] / "evaluate" / "compute" / "base.json")
  assert own["sampled"] == there["sampled"]
  assert run.main([*arguments, "--stage=evaluate"]) == 0
  assert "finished before" in capsys.readouterr().out


def test_grpo_needs_neither_an_off_policy_agent_nor_a_buffer(
  finished, tmp_path, capsys
):
  folder = tmp_path / "grpo"
  arguments = [
    *(*_named_base(finished), "--workdir", str(folder)),
    *("--config.train.methods=grpo", "--config.train.num_updates=1"),
  ]
  assert run.main([*arguments, "--dry_run"]) == 0
  assert "off_policy" not in capsys.readouterr().out
  assert run.main(arguments) == 0
  out = capsys.readouterr().out
  assert "buffer: no method retrieves" in out
  assert not (folder / "buffer").exists()
  assert {p.stem for p in folder.rglob("evaluate/*/*.json")} == {
    "base",
    "grpo-seed0",
  }
  assert (folder / "report.html").exists()


def test_what_retrieves_without_a_buffer_says_what_is_missing(
  finished, tmp_path, capsys
):
  arguments = [*_named_base(finished), "--workdir", str(tmp_path / "w")]
  assert run.main(arguments) == 2
  message = capsys.readouterr().err
  assert "(rapo) needs a buffer, and there is no agent that fills it" in message
  assert "set policy.off_policy, or buffer.path" in message


def test_a_file_system_without_locks_is_report_input_errors(
  tmp_path, monkeypatch, capsys
):
  def flock(file, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, "flock", flock)
  config_file = tmp_path / "config.py"
  config_file.write_text(CONFIG_FILE, encoding="utf-8")
  arguments = ["--config", str(config_file), "--workdir", str(tmp_path / "w")]
  assert run.main(arguments) == 2
  assert "has no locks ([Errno 37]" in capsys.readouterr().err


def test_a_broken_config_of_the_folder_is_named(tmp_path, capsys):
  config_file = tmp_path / "config.py"
  config_file.write_text(CONFIG_FILE, encoding="utf-8")
  folder = tmp_path / "w"
  folder.mkdir()
  arguments = ["--config", str(config_file), "--workdir", str(folder)]
  for content in (b"{", b"\xff\xfe"):
    (folder / "config.json").write_bytes(content)
    for more in ([], ["--dry_run"]):
      assert run.main([*arguments, *more]) == 2
      assert "w/config.json must hold the JSON" in capsys.readouterr().err
  (folder / "config.json").unlink()
  (folder / "config.json").mkdir()
  assert run.main(arguments) == 2
  assert "w/config.json must be usable" in capsys.readouterr().err


def test_a_model_s_folder_is_no_work_folder(tmp_path, capsys):
  config_file = tmp_path / "config.py"
  config_file.write_text(CONFIG_FILE, encoding="utf-8")
  folder = tmp_path / "model"
  folder.mkdir()
  content = '{"model_type": "qwen2"}'
  (folder / "config.json").write_text(content, encoding="utf-8")
  arguments = ["--config", str(config_file), "--workdir", str(folder)]
  for more in ([], ["--dry_run"], ["--stage=report"]):
    assert run.main([*arguments, *more]) == 2
    assert "must hold an experiment's config" in capsys.readouterr().err
  assert (folder / "config.json").read_text(encoding="utf-8") == content


def test_a_missing_accelerator_is_report_input_errors(monkeypatch, capsys):
  def devices():
    raise RuntimeError("Unable to initialize backend 'tpu': no libtpu")

  monkeypatch.setattr(jax, "devices", devices)
  assert run.main(["--config", "quickstart", "--dry_run"]) == 2
  message = capsys.readouterr().err
  assert "does not (Unable to initialize backend 'tpu': no libtpu)" in message
  assert "pip install 'jax[cuda12]>=" in message


def test_event_files_are_named_with_the_command_that_shows_them():
  line = run._tensorboard_line(pathlib.Path("runs/a b/train"))
  assert line.startswith("curves: tensorboard --logdir 'runs/a b/train'")


def test_a_command_without_arguments_names_the_configs(capsys):
  with pytest.raises(SystemExit) as error:
    run.main([])
  assert error.value.code == 2
  assert "--config is needed: a Python file, or one of" in (
    capsys.readouterr().err
  )


def test_help_fits_into_80_columns(monkeypatch, capsys):
  monkeypatch.setenv("COLUMNS", "80")
  with pytest.raises(SystemExit):
    run.main(["--help"])
  assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_task_that_is_not_there_is_named(finished, capsys):
  config_file, folder = finished
  arguments = ["--config", str(config_file), "--workdir", str(folder)]
  for more in ([], ["--dry_run"]):
    assert run.main([*arguments, "--task=chess", *more]) == 2
    message = capsys.readouterr().err
    assert "--task must name a task of the experiment (compute)" in message
    assert run.main([*arguments, "--seed=99", *more]) == 2
    assert "--seed must be one of train.seeds" in capsys.readouterr().err


def test_dry_run_checks_and_writes_nothing(tmp_path, capsys):
  config_file = tmp_path / "config.py"
  config_file.write_text(CONFIG_FILE, encoding="utf-8")
  folder = tmp_path / "never"
  arguments = ["--config", str(config_file), "--workdir", str(folder)]
  assert run.main([*arguments, "--dry_run"]) == 0
  out = capsys.readouterr().out
  assert "the chat template only appends" in out
  assert "parameters" in out
  assert not folder.exists()

  wrong = ["--config.update.row_length=200", "--config.policy.base=nowhere"]
  assert run.main([*arguments, "--dry_run", *wrong]) == 2
  message = capsys.readouterr().err
  assert "set it to 256 or more" in message
  assert "nowhere, which does not exist" in message

  assert run.main([*arguments, "--dry_run", "--resume=must"]) == 2
  assert "in which an experiment has begun" in capsys.readouterr().err
  assert not folder.exists()


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.rollout.num_hybird=2", "num_hybrid"),
    ("--config.train.num_updates=many", "num_updates"),
    ("--config.update.queries_per_minibatch=3", "must divide"),
    ("--config.train.num_updates=-3", "num_updates must be at least 1"),
    ("--config.evaluation.temperature=0", "temperature must be > 0"),
    ("--config.tasks=tool_star", "Tool-Star RL, 10k must be prepared"),
    (
      "--config.policy.base=here",
      "(rapo) needs a buffer, and there is no agent",
    ),
    ("--config.policy.off_policy=here", "name the base agent that is trained"),
    ("--dry-run", "unknown argument '--dry-run'. Did you mean --dry_run?"),
    (
      "--config.buffer.url=http://x --config.retrieval.noise_prob=0.5",
      "buffer.url is set: A buffer that a server holds",
    ),
    (
      "--config.buffer.url=http://x --config.buffer.grow.merge_every=9",
      "that a server holds does not grow",
    ),
  ],
)
def test_bad_overrides_fail_at_once(override, message, tmp_path, capsys):
  config_file = tmp_path / "config.py"
  config_file.write_text(CONFIG_FILE, encoding="utf-8")
  status = run.main(
    [
      *("--config", str(config_file), "--workdir", str(tmp_path / "w")),
      *override.split(),
    ]
  )
  assert status == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "w").exists()


def test_missing_data_is_named():
  config = dataclasses.replace(small_config(), tasks=(TASKS["tool_star"],))
  with pytest.raises(
    checks.CheckError, match="Tool-Star RL, 10k must be prepared"
  ):
    checks.dry_run(config, None)


def test_a_stage_without_the_ones_before_it_says_which(tmp_path, capsys):
  config_file = tmp_path / "config.py"
  config_file.write_text(CONFIG_FILE, encoding="utf-8")
  arguments = ["--config", str(config_file), "--workdir", str(tmp_path / "w")]
  assert run.main([*arguments, "--stage=train"]) == 2
  assert "run --stage=agents first" in capsys.readouterr().err


def _tool_star_file(folder):
  """Twelve questions in the layout of the Tool-Star training file."""
  path = folder / "train.parquet"
  rows = [
    {
      "data_source": "DR_grpo_mix",
      "prompt": [
        {"role": "system", "content": "theirs"},
        {"role": "user", "content": f"What is {i} plus one?"},
      ],
      "ability": "math",
      "reward_model": {"ground_truth": str(i + 1), "style": "rule"},
      "extra_info": {
        "index": i,
        "need_tools_kwargs": True,
        "question": f"What is {i} plus one?",
        "split": "train",
      },
      "metadata": None,
    }
    for i in range(12)
  ]
  pq.write_table(pa.Table.from_pylist(rows), path)
  return path


def test_agents_may_have_tokenizers_of_their_own(tmp_path):
  config = dataclasses.replace(
    flags.load_config(ROOT / "experiments" / "configs" / "tool_star_smoke.py"),
    policy=PolicyConfig(
      base=str(tmp_path / "base"), off_policy=str(tmp_path / "off_policy")
    ),
    retrieval=RetrievalConfig(min_reward=-2.0),
  )
  config = flags.apply_overrides(
    config,
    [
      f"--config.tasks.tool_star.path={_tool_star_file(tmp_path)}",
      "--config.tasks.tool_star.held_out=2",
      "--config.rollout.max_response_tokens=64",
      "--config.rollout.max_step_tokens=16",
      "--config.rollout.max_tool_tokens=32",
      "--config.policy.random.vocab_size=300",
    ],
  )
  size = config.policy.random.vocab_size
  for name, text in (("base", "answer"), ("off_policy", "search")):
    tokenizer = agents.train_byte_level_tokenizer([text] * 20, size)
    model = agents.random_model(config.policy.random)
    models.save_pretrained(model, tmp_path / name, tokenizer=tokenizer)
  workdir = Workdir(tmp_path / "w")
  encoder = SentenceEncoder.from_pretrained()
  with tasks.open_task(config, workdir, "tool_star", encoder) as task:
    query = task.train[0]
    other, _ = task.for_off_policy()
    ours, theirs = task.prompt(query), other.prompt(query)
    assert ours.tolist() != theirs.tolist()
    assert task.tokenizer.decode(ours) == other.tokenizer.decode(theirs)
    manifest = buffer.build_buffer(
      config, task, encoder, lambda *_, **__: None, workdir.buffer("tool_star")
    )
  assert manifest.agents.keys() == {"tool_star/off_policy"}
  assert manifest.num_traces > 0


@pytest.mark.slow
def test_tool_star_questions_go_through_every_stage(tmp_path, capsys):
  path = _tool_star_file(tmp_path)
  folder = tmp_path / "w"
  status = run.main(
    [
      "--config",
      str(ROOT / "experiments" / "configs" / "tool_star_smoke.py"),
      "--workdir",
      str(folder),
      f"--config.tasks.tool_star.path={path}",
      "--config.tasks.tool_star.limit=12",
      "--config.train.num_updates=1",
      "--config.train.methods=rapo,",
      "--config.rollout.max_response_tokens=128",
      "--config.rollout.max_step_tokens=32",
      "--config.rollout.max_tool_tokens=64",
      "--config.policy.random.vocab_size=320",
    ]
  )
  assert status == 0
  rows = read_rows(
    folder / "train" / "tool_star" / "rapo-seed0" / "metrics.jsonl"
  )
  # A random model does not write the format; an empty buffer gives no hits.
  assert rows[1]["reward/mean"] < -0.5
  assert rows[1]["rollout/retrievals"] == 0
  assert "0.0" in capsys.readouterr().out


def test_differences_ignore_what_json_cannot_show_alerts():
  config = flags.to_dict(small_config())
  assert checks.differences(json.loads(json.dumps(config)), config) == []


def test_workdir_names():
  workdir = Workdir(pathlib.Path("w"))
  assert workdir.evaluation("t", "a") == pathlib.Path("w/evaluate/t/a.json")
