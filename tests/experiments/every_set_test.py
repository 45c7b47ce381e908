"""Every data set, from its publisher's layout to figures, with one model."""

from __future__ import annotations

import json
import pathlib

import pytest

from experiments import evaluate, health, paper
from experiments.config import RandomModelConfig
from experiments.stages.agents import random_model, train_byte_level_tokenizer
from rapo_jax import models
from rapo_jax.data import end_ids
from rapo_jax.datasets import DATA_SETS
from tests.datasets import files

TOKENS = {
  "dtype": "float32",
  "num_slots": 8,
  "prefill_rows": 4,
  "max_prompt_tokens": 2048,
  "max_response_tokens": 32,
  "max_step_tokens": 32,
  "max_tool_tokens": 24,
  "decode_chunk": 8,
  "insert_chunk": 16,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """An agent that has learned nothing."""
  folder = tmp_path_factory.mktemp("model")
  config = RandomModelConfig(hidden_size=32, intermediate_size=32, num_layers=1)
  texts = ["What is two plus two? How high is the bridge?"]
  tokenizer = train_byte_level_tokenizer(texts, config.vocab_size)
  models.save_pretrained(
    random_model(config),
    folder,
    tokenizer=tokenizer,
    end_ids=end_ids(tokenizer),
  )
  return folder


def test_all_sets_are_evaluated_end_to_end(
  model, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv("RAPO_DATA_DIR", str(tmp_path / "prepared"))
  files.write_all(tmp_path / "files")
  rows = [files.verl(n) for n in range(4)]
  mine = files.write(tmp_path / "files", "train.parquet", rows)
  training = ("tool_star", "hard_search", "search_r1", "webdancer", "websailor")
  overrides = [f"--config.rollout.{k}={v}" for k, v in TOKENS.items()]
  for name in DATA_SETS:
    path = mine if name == "tool_star" else tmp_path / "files"
    overrides.append(f"--config.tasks.{name}.path={path}")
    held_out = int(name in training)
    overrides.append(f"--config.tasks.{name}.held_out={held_out}")
  status = evaluate.main(
    [
      *("--model", str(model), "--tasks", ",".join(DATA_SETS)),
      *("--output", str(tmp_path / "out"), *overrides),
    ]
  )
  assert status == 0
  for name in DATA_SETS:
    result = json.loads(
      (tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8")
    )
    for figures in result["figures"].values():
      assert figures["questions"] > 0
      assert figures["samples"] == figures["questions"]
      # Nobody guesses right by chance, and an interval says so.
      assert figures["pass@1"]["mean"] == 0.0
      assert figures["pass@1"]["interval"][1] > 0.0
  found = json.loads(
    (tmp_path / "out" / "paper.json").read_text(encoding="utf-8")
  )
  assert sum(len(group["sets"]) for group in found.values()) == 14
  printed = capsys.readouterr().out
  assert paper.format_paper(found) in printed
  # Encrypted questions are in clear nowhere on the disk.
  for path in filter(pathlib.Path.is_file, tmp_path.rglob("*")):
    assert b"A secret question" not in path.read_bytes(), path


def arguments_for(model, folder, *questions: str) -> list[str]:
  """Of an evaluation of one file, in a folder of its own."""
  path = folder / "mine.jsonl"
  lines = [json.dumps({"question": q, "answer": "2"}) for q in questions]
  path.write_text("\n".join(lines), encoding="utf-8")
  return [
    *("--model", str(model), "--tasks", "file"),
    *("--output", str(folder / "out")),
    f"--config.tasks.file.evaluation={path}",
    *(f"--config.rollout.{k}={v}" for k, v in TOKENS.items()),
  ]


def test_answers_to_a_file_that_has_changed_are_not_taken(model, tmp_path):
  """Its questions have the same ids, so that nothing else tells them apart."""
  path = tmp_path / "out" / "file.answers.jsonl"
  heads = []
  for question in ("1+1?", "1+1?", "3-1?"):
    assert evaluate.main(arguments_for(model, tmp_path, question)) == 0
    head, *answers = path.read_text(encoding="utf-8").splitlines()
    assert len(answers) == 2
    heads.append(head)
  assert heads[0] == heads[1] != heads[2]


def test_the_chat_template_of_the_command_line_is_taken(
  model, tmp_path, capsys
):
  template = tmp_path / "template.jinja"
  template.write_text("{% no template", encoding="utf-8")
  arguments = arguments_for(model, tmp_path, "1+1?")
  given = f"--config.policy.chat_template={template}"
  assert evaluate.main([*arguments, given]) == 2
  assert "the chat template" in capsys.readouterr().err
  assert evaluate.main([*arguments, "--config.policy.enable_thinking=no"]) == 2
  assert "has none of this name" in capsys.readouterr().err


def test_a_tool_that_answers_nothing_ends_with_a_line(
  model, tmp_path, monkeypatch, capsys
):
  def broken(*arguments):
    raise health.HealthStop("search answered none of its calls.")

  monkeypatch.setattr(health, "check_tools", broken)
  status = evaluate.main(arguments_for(model, tmp_path, "1+1?"))
  assert status == evaluate.NO_VERDICT_STATUS
  assert "error: search answered none" in capsys.readouterr().err


def test_a_broken_file_is_found_before_anything_is_asked(
  model, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv("RAPO_DATA_DIR", str(tmp_path / "prepared"))
  arguments = arguments_for(model, tmp_path, "1+1?")
  arguments[arguments.index("file")] = "file,bamboogle"
  path = files.write(tmp_path, "bamboogle/bamboogle.json", [{"Question": "Q"}])
  arguments.append(f"--config.tasks.bamboogle.path={path}")
  assert evaluate.main(arguments) == 2
  assert "bamboogle.json, row 0: every question" in capsys.readouterr().err
  assert not (tmp_path / "out" / "file.answers.jsonl").exists()
