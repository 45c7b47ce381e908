"""Tasks from JSON lines."""

from __future__ import annotations

import json

import pytest

from rapo_jax.errors import InputError
from rapo_jax.tasks import JsonlTask, SearchSpec, load_questions

ROWS = [{"question": f"{n} + {n}?", "answer": 2 * n} for n in range(5)]


def write(path, rows):
  path.write_text("".join(f"{json.dumps(r)}\n" for r in rows), encoding="utf-8")
  return str(path)


def test_one_file_is_split(tmp_path):
  path = write(tmp_path / "sums.jsonl", [*ROWS, ROWS[0]])
  train, evaluation = load_questions(JsonlTask("t", path=path, held_out=2))
  assert [q.query_id for q in evaluation["held_out"]] == ["sums-1", "sums-2"]
  assert [q.query_id for q in train] == ["sums-3", "sums-4", "sums-5"]
  assert train[0].ground_truth == ("4",)
  assert train[0].task == "t"


def test_files_of_their_own_are_evaluation_sets(tmp_path):
  task = JsonlTask(
    "t",
    path=write(tmp_path / "train.jsonl", ROWS),
    evaluation=(
      write(tmp_path / "easy.jsonl", ROWS[:1]),
      write(tmp_path / "hard.jsonl", ROWS[1:3]),
    ),
    limit=4,
    tools=(SearchSpec(),),
  )
  train, evaluation = load_questions(task)
  assert len(train) == 4
  assert {name: len(q) for name, q in evaluation.items()} == {
    "easy": 1,
    "hard": 2,
  }
  assert "<search>" in train[0].messages[0]["content"]


def test_keys_and_ids_of_one_s_own(tmp_path):
  rows = [{"Q": "One?", "A": ["1", "one"], "key": 7}]
  task = JsonlTask(
    "t",
    evaluation=(write(tmp_path / "x.jsonl", rows),),
    question="Q",
    answer="A",
    id="key",
  )
  (query,) = load_questions(task).evaluation["x"]
  assert (query.query_id, query.ground_truth) == ("7", ("1", "one"))


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([], "must hold questions, and is empty"),
    (["text"], r"x\.jsonl:1: each line must be an object"),
    ([{"prompt": "?"}], r"x\.jsonl:1: the key 'question' is missing"),
    ([{"question": "?"}], r"x\.jsonl:1: the key 'answer' is missing"),
    ([{"question": " ", "answer": 1}], "'question' must be a text that"),
    ([{"question": 3, "answer": 1}], "'question' must be a text that"),
    ([{"question": "?", "answer": " "}], "'answer' is blank"),
    ([{"question": "?", "answer": None}], "holds no answer"),
  ],
)
def test_lines_that_cannot_be_used(tmp_path, rows, message):
  path = write(tmp_path / "x.jsonl", rows)
  with pytest.raises(InputError, match=message):
    load_questions(JsonlTask("t", evaluation=(path,)))


def test_files_that_are_missing_or_share_a_name(tmp_path):
  with pytest.raises(InputError, match=r"the task t reads .* no such file"):
    load_questions(JsonlTask("t", evaluation=("there.jsonl",)))
  (tmp_path / "b").mkdir()
  one = write(tmp_path / "x.jsonl", ROWS)
  two = write(tmp_path / "b" / "x.jsonl", ROWS)
  with pytest.raises(InputError, match="two of the task t are called 'x'"):
    load_questions(JsonlTask("t", evaluation=(one, two)))
  with pytest.raises(InputError, match=r"x\.jsonl: held_out must be at most"):
    load_questions(JsonlTask("t", path=one, held_out=6))
