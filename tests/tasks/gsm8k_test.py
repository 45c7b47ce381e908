"""GSM8K: the authors' files and answers."""

from __future__ import annotations

import json

import pytest

from rapo_jax import rewards
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.tasks import TASKS, load_questions
from rapo_jax.tasks.gsm8k import Gsm8kTask, same_number
from rapo_jax.trajectory import FinishReason, TokenKind

ANSWER = "3 a day.\n1500 * 1.5 = <<1500*1.5=2250>>2,250\n#### 2,250"


@pytest.fixture
def folder(tmp_path):
  for split, count in (("train", 3), ("test", 2)):
    rows = [
      {"question": f"{split} {n}?", "answer": ANSWER} for n in range(count)
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
  return tmp_path


def test_both_files_are_read(folder):
  train, evaluation = load_questions(Gsm8kTask(folder=str(folder)))
  assert [q.query_id for q in train] == ["train-1", "train-2", "train-3"]
  assert [q.ground_truth for q in evaluation["test"]] == [("2250",)] * 2
  assert "<python>" in train[0].messages[0]["content"]
  limited = load_questions(Gsm8kTask(folder=str(folder), limit=1))
  assert len(limited.train) == len(limited.evaluation["test"]) == 1


def scored(answer: str, truth: str) -> rewards.Score:
  query = Query("q", "?", (truth,), ({"role": "user", "content": "?"},), "t")
  text = f"<answer> {answer} </answer>"
  sample = rewards.Sample(
    query, ((TokenKind.POLICY, text),), FinishReason.ANSWER
  )
  (score,) = rewards.score_all(same_number, [sample])
  return score


@pytest.mark.parametrize(
  ("answer", "truth", "right"),
  [
    ("2250", "2250", True),
    ("\\$2,250.00", "2250", True),
    ("2250 dollars", "2250", True),
    ("+2250", "2250", True),
    ("-3", "-3", True),
    ("-3", "3", False),
    ("22.50", "2250", False),
    (".5", "0.5", True),
    ("10 or 12", "10", False),
    ("ten", "10", False),
  ],
)
def test_numbers_are_compared_as_numbers(answer, truth, right):
  score = scored(f"\\boxed{{{answer}}}", truth)
  assert (score.correct, score.value) == (right, float(right))


def test_an_answer_outside_a_box_is_none():
  assert scored("2250", "2250").status == "no_answer"


@pytest.mark.parametrize(
  "row",
  [
    "text",
    {"question": "?"},
    {"question": "?", "answer": "2250"},
    {"question": "?", "answer": "#### ,"},
  ],
)
def test_a_changed_file_is_refused(folder, row):
  (folder / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
  with pytest.raises(InputError, match=r"test\.jsonl:1: .*get the file again"):
    load_questions(Gsm8kTask(folder=str(folder)))


def test_a_missing_file_is_named_with_its_source(folder):
  (folder / "test.jsonl").unlink()
  for given in (str(folder), None):
    with pytest.raises(InputError, match="grade-school-math"):
      load_questions(Gsm8kTask(folder=given))


def test_the_whole_set_is_read(sample_data):
  folder = sample_data / "gsm8k_full"
  if not folder.is_dir():
    pytest.skip("the whole of GSM8K is not there")
  train, evaluation = load_questions(Gsm8kTask(folder=str(folder)))
  assert (len(train), len(evaluation["test"])) == (7473, 1319)
  assert train[0].ground_truth == ("72",)


def test_the_table_has_it():
  assert TASKS["gsm8k"] == Gsm8kTask()
