from __future__ import annotations

import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapo_jax import data
from rapo_jax.tools import SearchTool


def record(index: int = 0, **changes: Any) -> dict[str, Any]:
  question = f"Question {index}?"
  row = {
    "data_source": "DR_grpo_mix",
    "prompt": [
      {"content": "Their system prompt.", "role": "system"},
      {"content": question, "role": "user"},
    ],
    "ability": "qa",
    "reward_model": {"ground_truth": f"answer {index}", "style": "rule"},
    "extra_info": {"index": index, "question": question, "split": "train"},
    "metadata": None,
  }
  return {**row, **changes}


def write(folder: pathlib.Path, rows: list[dict[str, Any]]) -> pathlib.Path:
  path = folder / "train.parquet"
  pq.write_table(pa.Table.from_pylist(rows), path)
  return path


def test_rows_become_queries(tmp_path):
  path = write(tmp_path, [record(0), record(1)])
  queries = data.load_tool_star(path, tools=(SearchTool,))
  assert [q.query_id for q in queries] == ["train-0", "train-1"]
  query = queries[1]
  assert query.question == "Question 1?"
  assert query.ground_truth == ("answer 1",)
  assert query.task == "tool_star"
  assert query.messages == data.chat_messages("Question 1?", (SearchTool,))
  assert "Their" not in query.messages[0]["content"]


def test_limit_counts_rows(tmp_path):
  path = write(tmp_path, [record(i) for i in range(5)])
  assert len(data.load_tool_star(path, limit=3)) == 3
  assert len(data.load_tool_star(path, limit=9)) == 5
  with pytest.raises(ValueError, match="limit"):
    data.load_tool_star(path, limit=0)


def test_the_user_message_stands_in_for_the_question(tmp_path):
  path = write(tmp_path, [record(extra_info={"index": 0, "question": None})])
  assert data.load_tool_star(path)[0].question == "Question 0?"


def test_several_ground_truths(tmp_path):
  path = write(tmp_path, [record(reward_model={"ground_truth": ["a b", "c"]})])
  assert data.load_tool_star(path)[0].ground_truth == ("a b", "c")


@pytest.mark.parametrize(
  ("truth", "expected"),
  [
    ({"target": ["Paris", "Lutetia"]}, ("Paris", "Lutetia")),
    (42, ("42",)),
    (3.5, ("3.5",)),
    (["Paris", "", "Paris"], ("Paris",)),
    ('{"target": ["Paris"]}', ("Paris",)),
    (b"Paris", ("Paris",)),
  ],
)
def test_forms_of_a_ground_truth(tmp_path, truth, expected):
  path = write(tmp_path, [record(reward_model={"ground_truth": truth})])
  assert data.load_tool_star(path)[0].ground_truth == expected


def test_columns_of_json_texts_and_a_prompt_that_is_a_text(tmp_path):
  texts = {
    "reward_model": '{"ground_truth": {"target": ["Paris"]}}',
    "extra_info": '{"index": 0, "question": "Which town?"}',
  }
  query = data.load_tool_star(write(tmp_path, [record(**texts)]))[0]
  assert (query.question, query.ground_truth) == ("Which town?", ("Paris",))
  row = record(prompt="Which town?", extra_info={"index": 0})
  assert (
    data.load_tool_star(write(tmp_path, [row]))[0].question == "Which town?"
  )


def test_the_column_of_questions_goes_before_a_prompt_around_it(tmp_path):
  row = record(question="Which town?", extra_info={"index": 0})
  row["prompt"] = [{"role": "user", "content": "Use tools. Which town?"}]
  assert (
    data.load_tool_star(write(tmp_path, [row]))[0].question == "Which town?"
  )
  del row["extra_info"]
  assert (
    data.load_tool_star(write(tmp_path, [row]))[0].question == "Which town?"
  )


def test_a_blank_answer_is_left_out_and_said(tmp_path, caplog):
  blank = record(1, reward_model={"ground_truth": " ", "style": "rule"})
  path = write(tmp_path, [record(0), blank, record(2)])
  queries = data.load_tool_star(path)
  assert [q.query_id for q in queries] == ["train-0", "train-2"]
  assert "[1]" in caplog.text


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"reward_model": {"ground_truth": None, "style": "rule"}},
      "row 1: reward_model.ground_truth",
    ),
    ({"reward_model": None}, "row 1: reward_model.ground_truth"),
    ({"extra_info": {"question": "a\0b"}}, r"row 1: .*U[+]0000"),
    (
      {"reward_model": {"ground_truth": '["\\ud83d"]', "style": "rule"}},
      r"row 1: reward_model.ground_truth: .*U[+]D83D",
    ),
    (
      {"reward_model": {"ground_truth": None, "style": "rule", "town": "x"}},
      "row 1: reward_model.ground_truth holds no answer",
    ),
    (
      {"extra_info": None, "prompt": [{"content": "x", "role": "system"}]},
      "row 1: no question in extra_info.question",
    ),
  ],
)
def test_errors_name_row_and_column(tmp_path, changes, message: str):
  path = write(tmp_path, [record(0), record(1, **changes)])
  with pytest.raises(ValueError, match=message):
    data.load_tool_star(path)


def test_a_column_that_python_cannot_read_is_named(tmp_path):
  path = write(tmp_path, [record()])
  table = pq.read_table(path).drop_columns("extra_info")
  when = pa.array([{"when": 1}], pa.struct([("when", pa.timestamp("ns"))]))
  pq.write_table(table.append_column("extra_info", when), path)
  with pytest.raises(
    ValueError, match="the column 'extra_info', of type struc"
  ):
    data.load_tool_star(path)


def test_missing_column_and_file(tmp_path):
  row = record()
  del row["reward_model"]
  with pytest.raises(ValueError, match="reward_model"):
    data.load_tool_star(write(tmp_path, [row]))
  with pytest.raises(FileNotFoundError):
    data.load_tool_star(tmp_path / "none.parquet")


@pytest.mark.parametrize(
  ("name", "num_queries"),
  # One of the 10,000 has a blank answer.
  [("train_10k", 9_999), ("valid", 90), ("hard_search_1k", 200)],
)
def test_sample(sample_data, name: str, num_queries: int):
  queries = data.load_tool_star(sample_data / "rl_train" / f"{name}.parquet")
  assert len(queries) == num_queries
  assert len({query.query_id for query in queries}) == num_queries
  assert not any("\b" in m["content"] for q in queries for m in q.messages)
