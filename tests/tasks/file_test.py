"""Tasks from files of a user's own."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapo_jax.errors import InputError
from rapo_jax.tasks import TASKS, FileTask, SearchSpec, load_questions

ROWS = [{"question": f"{n} + {n}?", "answer": 2 * n} for n in range(5)]


def write(path, rows):
  path.write_text("".join(f"{json.dumps(r)}\n" for r in rows), encoding="utf-8")
  return str(path)


def test_one_file_is_split(tmp_path):
  path = write(tmp_path / "sums.jsonl", [*ROWS, ROWS[0]])
  train, evaluation = load_questions(FileTask("t", path=path, held_out=2))
  assert [q.query_id for q in evaluation["held_out"]] == ["sums-1", "sums-2"]
  assert [q.query_id for q in train] == ["sums-3", "sums-4", "sums-5"]
  assert train[0].ground_truth == ("4",)
  assert train[0].task == "t"


def test_files_of_their_own_are_evaluation_sets(tmp_path):
  task = FileTask(
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
  task = FileTask(
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
    (["text"], r"x\.jsonl:1: each row must be an object"),
    ([{"prompt": "?"}], r"x\.jsonl:1: the column 'question' is missing"),
    ([{"question": "?"}], r"x\.jsonl:1: the column 'answer' is missing"),
    ([{"question": " ", "answer": 1}], "'question' must be a text that"),
    ([{"question": 3, "answer": 1}], "'question' must be a text that"),
    ([{"question": "?", "answer": " "}], "'answer' is blank"),
    ([{"question": "?", "answer": None}], "holds no answer"),
  ],
)
def test_lines_that_cannot_be_used(tmp_path, rows, message):
  path = write(tmp_path / "x.jsonl", rows)
  with pytest.raises(InputError, match=message):
    load_questions(FileTask("t", evaluation=(path,)))


def test_files_that_are_missing_or_share_a_name(tmp_path):
  with pytest.raises(InputError, match=r"the task t reads .* no such file"):
    load_questions(FileTask("t", evaluation=("there.jsonl",)))
  (tmp_path / "b").mkdir()
  one = write(tmp_path / "x.jsonl", ROWS)
  two = write(tmp_path / "b" / "x.jsonl", ROWS)
  with pytest.raises(InputError, match="two of the task t are called 'x'"):
    load_questions(FileTask("t", evaluation=(one, two)))
  with pytest.raises(InputError, match=r"x\.jsonl: held_out must be at most"):
    load_questions(FileTask("t", path=one, held_out=6))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.json", "x.parquet"])
def test_other_kinds_of_files(tmp_path, name):
  path = tmp_path / name
  rows = [
    {"question": "One, or two?", "answer": "1"},
    {"question": "?", "answer": "x"},
  ]
  if name.endswith("parquet"):
    pq.write_table(pa.Table.from_pylist(rows), path)
  elif name.endswith("json"):
    path.write_text(json.dumps({"data": rows}), encoding="utf-8")
  else:
    separator = "\t" if name.endswith("tsv") else ","
    lines = ["question" + separator + "answer"]
    lines += [f'"{r["question"]}"{separator}{r["answer"]}' for r in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
  task = FileTask("t", evaluation=(str(path),))
  queries = load_questions(task).evaluation["x"]
  assert [q.question for q in queries] == ["One, or two?", "?"]
  assert [q.ground_truth for q in queries] == [("1",), ("x",)]


@pytest.mark.parametrize(
  ("answers", "expected"),
  [
    (pa.array([3.14, 0.1], pa.float32()), [("3.14",), ("0.1",)]),
    (pa.array([[0.1], [2, 3]], pa.list_(pa.float16())), [("0.1",), ("2", "3")]),
    (
      pa.array(
        [[("target", ["Paris"])], [("target", ["Rome", "Roma"])]],
        pa.map_(pa.string(), pa.list_(pa.string())),
      ),
      [("Paris",), ("Rome", "Roma")],
    ),
    (
      pa.array(
        [{"target": 2.5}, {"target": 0.1}],
        pa.struct([("target", pa.float32())]),
      ),
      [("2.5",), ("0.1",)],
    ),
  ],
)
def test_answers_of_parquet_columns(tmp_path, answers, expected):
  table = pa.table({"question": ["One?", "Two?"], "answer": answers})
  pq.write_table(table, tmp_path / "x.parquet")
  task = FileTask("t", evaluation=(str(tmp_path / "x.parquet"),))
  queries = load_questions(task).evaluation["x"]
  assert [q.ground_truth for q in queries] == expected


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
  table = pa.Table.from_arrays(
    [pa.array(["A?"]), pa.array(["B?"]), pa.array(["1"])],
    names=["question", "question", "answer"],
  )
  pq.write_table(table, tmp_path / "x.parquet")
  task = FileTask("t", evaluation=(str(tmp_path / "x.parquet"),))
  with pytest.raises(InputError, match="2 fields have the name 'question'"):
    load_questions(task)


@pytest.mark.parametrize("value", [None, True, ["a"], 1.5])
def test_an_id_is_a_text_or_a_whole_number(tmp_path, value):
  path = write(tmp_path / "x.jsonl", [{**ROWS[0], "key": value}])
  with pytest.raises(InputError, match="'key' must be a text or a whole"):
    load_questions(FileTask("t", evaluation=(path,), id="key"))


def test_a_file_whose_name_is_no_text_is_refused(tmp_path):
  path = tmp_path / "fr\udce4gen.jsonl"
  write(path, ROWS)
  with pytest.raises(InputError, match=r"gen.jsonl.*U\+DCE4.*Rename it"):
    load_questions(FileTask("t", path=str(path)))


def test_lines_before_the_names_may_be_blank(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text("\n\nquestion;answer\nOne?;1\n", encoding="utf-8")
  task = FileTask("t", evaluation=(str(path),))
  assert load_questions(task).evaluation["x"][0].ground_truth == ("1",)


def test_the_task_of_the_command_line():
  assert TASKS["file"] == FileTask("file")
