"""The Tool-Star training file as a task."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapo_jax.errors import InputError
from rapo_jax.tasks import ToolStarTask, load_questions


@pytest.fixture
def path(tmp_path):
  rows = [
    {
      "prompt": [{"role": "user", "content": f"Capital of land {n % 20}?"}],
      "reward_model": {"ground_truth": f"City {n % 20}"},
      "extra_info": {"index": n},
    }
    for n in range(40)
  ]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
  return str(tmp_path / "train.parquet")


def test_a_file_in_which_every_question_stands_twice(path):
  train, evaluation = load_questions(ToolStarTask(path=path, held_out=8))
  assert (len(train), len(evaluation["held_out"])) == (24, 8)
  texts = {q.question for q in evaluation["held_out"]}
  assert not {q.question for q in train} & texts


def test_a_file_that_is_missing_or_too_short(path):
  with pytest.raises(InputError, match="path of the task tool_star must name"):
    load_questions(ToolStarTask())
  with pytest.raises(InputError, match=r"questions \(20\), got 21"):
    load_questions(ToolStarTask(path=path, held_out=21))
