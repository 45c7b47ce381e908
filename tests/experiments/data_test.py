"""The commands of `experiments.data`."""

from __future__ import annotations

import json

import pytest

from experiments import data
from rapo_jax.datasets import DATA_SETS
from tests.datasets import files


def run(*arguments) -> int:
  return data.main([str(a) for a in arguments])


def test_check_names_the_data_set_of_every_file(tmp_path, capsys):
  files.write_all(tmp_path)
  files.write(
    tmp_path, "wiki_corpus/corpus.jsonl", [{"id": 1, "contents": "x"}]
  )
  cache = tmp_path / "search_cache" / "search_cache.json"
  cache.parent.mkdir()
  cache.write_text('{"a query": "Page 1: x"}', encoding="utf-8")
  (tmp_path / "README.md").write_text("not data", encoding="utf-8")
  assert run("check", "--source", tmp_path) == 0
  lines = capsys.readouterr().out.splitlines()
  assert (
    lines[-1] == f"{len(files.FILES) + 2} of {len(files.FILES) + 2} files load"
  )
  by_path = dict(line.split(": ", 1) for line in lines[:-1])
  for name, (data_set, _) in files.FILES.items():
    assert by_path[name].startswith(DATA_SETS[data_set].title), name
  assert by_path["search_cache/search_cache.json"].endswith("1 queries")
  assert by_path["rl_train/train_10k.parquet"].endswith(
    "2 rows load (train), 1 without an answer left out; the whole file has "
    "10000"
  )


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("gsm8k/test.jsonl", '{"question": "Q?"', "test.jsonl:1"),
    ("simpleqa/simple_qa_test_set.csv", "metadata,problem\nx,y\n", "an answer"),
    ("wiki_corpus/corpus.jsonl", '{"id": 1}', "corpus.jsonl:1"),
    ("mine/questions.jsonl", '{"question": "Q?"}', "no known layout"),
  ],
)
def test_check_ends_with_1_where_a_file_does_not_load(
  name, content, message, tmp_path, capsys
):
  path = tmp_path / name
  path.parent.mkdir()
  path.write_text(content, encoding="utf-8")
  files.write(
    tmp_path,
    "websailor/sailorfog-QA.jsonl",
    [{"question": "Q?", "answer": "A"}],
  )
  assert run("check", "--source", tmp_path) == 1
  output = capsys.readouterr().out
  assert f"FAILED {name}: " in output
  assert message in output
  assert "1 of 2 files load" in output


def test_check_of_nothing(tmp_path, capsys):
  assert run("check", "--source", tmp_path) == 2
  assert run("check", "--source", tmp_path / "none") == 2
  assert "must be a folder" in capsys.readouterr().err


def test_prepare_show_and_leaks(tmp_path, capsys):
  name = "bamboogle/bamboogle.json"
  files.write(tmp_path, name, [{"Question": "Q0?", "id": "b", "answer": ["A"]}])
  train = [files.verl(0), files.verl(1)]
  path = files.write(tmp_path, "train.parquet", train)
  out = ("--data_dir", tmp_path / "out")
  assert run("prepare", "bamboogle", "--source", tmp_path, *out) == 0
  assert run("prepare", "tool_star", "--source", path, *out) == 0
  assert "tool_star: 2 train in" in capsys.readouterr().out
  assert run("show", "bamboogle", *out) == 0
  row = json.loads(capsys.readouterr().out)
  assert row == {
    "set": "bamboogle",
    "id": "b",
    "question": "Q0?",
    "answers": ["A"],
  }
  # Against all that are prepared.
  assert run("leaks", "tool_star", *out) == 1
  assert "tool_star in bamboogle: 1 of 1 questions" in capsys.readouterr().out
  files.write(tmp_path, name, [{"Question": "Q9?", "id": "b", "answer": "A"}])
  assert run("prepare", "bamboogle", "--source", tmp_path, *out) == 0
  assert run("leaks", "tool_star", "--against", "bamboogle", *out) == 0


def test_what_is_not_prepared_is_named(tmp_path, capsys):
  assert run("show", "math500", "--data_dir", tmp_path) == 2
  assert "MATH500 must be prepared" in capsys.readouterr().err


def test_list(capsys):
  assert run("list") == 0
  output = capsys.readouterr().out
  assert all(name in output for name in DATA_SETS)


def test_check_names_a_link_that_leads_nowhere(tmp_path, capsys):
  files.write_all(tmp_path)
  (tmp_path / "gsm8k" / "test.jsonl").unlink(missing_ok=True)
  (tmp_path / "gsm8k" / "test.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
  assert run("check", "--source", tmp_path) == 1
  assert "FAILED gsm8k/test.jsonl: GSM8K: " in capsys.readouterr().out


def test_a_count_of_rows_is_at_least_one(capsys):
  assert run("show", "gsm8k", "--count", "-3") == 2
  assert "--count must be at least 1, got -3" in capsys.readouterr().err
