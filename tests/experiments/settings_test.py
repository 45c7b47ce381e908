"""Baselines that are settings: their configs, small, from small files."""

from __future__ import annotations

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import buffer, evaluate, flags, run
from experiments.config import RandomModelConfig
from experiments.stages import agents
from rapo_jax import models
from rapo_jax.tasks import CondensedSearchSpec
from tests.datasets import files

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "experiments/configs"
ANSWER = "<think> x </think><answer> \\boxed{4} </answer>"
SMALL = (
  "--config.policy.base=none",
  "--config.policy.off_policy=none",
  "--config.policy.random.vocab_size=320",
  "--config.rollout.dtype=float32",
  "--config.rollout.num_slots=16",
  "--config.rollout.prefill_rows=4",
  "--config.rollout.max_response_tokens=64",
  "--config.rollout.max_step_tokens=32",
  "--config.rollout.max_tool_tokens=32",
  "--config.rollout.decode_chunk=16",
  "--config.rollout.insert_chunk=32",
  "--config.update.queries_per_update=2",
  "--config.update.queries_per_minibatch=1",
  "--config.update.row_length=2048",
  "--config.update.rows_per_microbatch=2",
  "--config.train.num_updates=1",
)


@pytest.fixture
def paths(tmp_path):
  """A corpus, and the training files of both sets."""
  (tmp_path / "prepared").mkdir()
  corpus = tmp_path / "corpus.jsonl"
  lines = [{"id": str(i), "contents": f"text {i}"} for i in range(4)]
  corpus.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
  rows = [files.verl(i, {"target": ["4", "four"]}) for i in range(8)]
  search_r1 = tmp_path / "nq_search" / "train.parquet"
  search_r1.parent.mkdir()
  pq.write_table(pa.Table.from_pylist(rows), search_r1)
  tool_star = tmp_path / "train_10k.parquet"
  rows = [files.verl(i) for i in range(8)]
  pq.write_table(pa.Table.from_pylist(rows), tool_star)
  return {"corpus": corpus, "search_r1": search_r1, "tool_star": tool_star}


def _command(name, paths, folder, *more):
  return [
    *("--config", str(CONFIGS / f"{name}.py"), "--workdir", str(folder)),
    *SMALL,
    f"--config.tasks.{name}.path={paths[name]}",
    f"--config.tasks.{name}.held_out=2",
    f"--config.tasks.{name}.data_dir={folder.parent / 'prepared'}",
    f"--config.tasks.{name}.tools.search.corpus={paths['corpus']}",
    *more,
  ]


def _metrics(folder, task, run_name):
  path = folder / "train" / task / run_name / "metrics.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines()
  return json.loads(lines[-1])


@pytest.mark.parametrize("name", ["search_r1", "tool_star"])
def test_a_dry_run_finds_nothing_wrong(name, paths, tmp_path, capsys):
  command = _command(name, paths, tmp_path / "w", "--dry_run")
  assert run.main(command) == 0, capsys.readouterr().err
  assert "all checks passed" in capsys.readouterr().out


@pytest.mark.slow
def test_search_r1_trains(paths, tmp_path):
  folder = tmp_path / "w"
  assert run.main(_command("search_r1", paths, folder)) == 0
  row = _metrics(folder, "search_r1", "grpo-seed0")
  # The reward has no part for the format, which a random model breaks.
  assert row["reward/mean"] == 0
  assert row["reward/format_whole"] == 0
  assert row["budget/leaves"] == 10


@pytest.mark.slow
def test_tool_star_goes_on_from_the_cold_start_s_policy(paths, tmp_path):
  lines = [
    {"key": f"S\nuser\nQ{i}?\nassistant\n", "value": ANSWER, "reward": 1.0}
    for i in range(8)
  ]
  traces = tmp_path / "agent.jsonl"
  traces.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
  path = tmp_path / "traces"
  assert buffer.main(["import", "--output", str(path), str(traces)]) == 0
  cold, folder = tmp_path / "cold", tmp_path / "w"
  more = ("--config.train.methods=sft,", f"--config.buffer.path={path}")
  assert run.main(_command("tool_star", paths, cold, *more)) == 0
  row = _metrics(cold, "tool_star", "sft-seed0")
  assert row["groups/agent_rows"] == row["budget/leaves"] == 16
  base = cold / "train" / "tool_star" / "sft-seed0" / "policy"
  more = (f"--config.policy.base={base}",)
  assert run.main(_command("tool_star", paths, folder, *more)) == 0
  row = _metrics(folder, "tool_star", "grpo-seed0")
  assert row["budget/rollouts"] == 16


def test_search_o1_asks_a_model_with_one_tool(paths, tmp_path):
  config = flags.load_config(CONFIGS / "search_o1.py")
  (spec,) = config.task("bamboogle").tool_specs()
  assert isinstance(spec, CondensedSearchSpec)
  texts = ["A question"] * 4
  tokenizer = agents.train_byte_level_tokenizer(texts, 320)
  model = agents.random_model(RandomModelConfig(vocab_size=320))
  models.save_pretrained(model, tmp_path / "model", tokenizer=tokenizer)
  questions = tmp_path / "bamboogle.json"
  rows = [{"Question": "Q?", "id": "1", "answer": ["A"]}]
  questions.write_text(json.dumps(rows), encoding="utf-8")
  status = evaluate.main(
    [
      *("--config", str(CONFIGS / "search_o1.py"), "--tasks", "bamboogle"),
      *("--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")),
      *(flag for flag in SMALL if ".rollout." in flag),
      f"--config.tasks.bamboogle.path={questions}",
      f"--config.tasks.bamboogle.data_dir={tmp_path / 'prepared'}",
      f"--config.tasks.bamboogle.tools.search.corpus={paths['corpus']}",
    ]
  )
  assert status == 0
  results = json.loads((tmp_path / "out" / "bamboogle.json").read_bytes())
  assert results
