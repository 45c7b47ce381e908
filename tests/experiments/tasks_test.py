"""How questions are split, and that none is trained on and held out."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import tasks
from experiments.config import DataConfig, ExperimentConfig, UpdateConfig
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import normalized


def query(number: int, question: str) -> Query:
  messages = ({"role": "user", "content": question},)
  return Query(f"q{number}", question, ("a",), messages, "t")


def test_copies_of_a_held_out_question_are_left_out(caplog):
  texts = ["One?", "Two?", " one ", "Three?", "ＯＮＥ?", "Four?", "three?"]
  train, held_out = tasks.split_by_question(
    [query(n, text) for n, text in enumerate(texts)], 2
  )
  assert [q.query_id for q in held_out] == ["q0", "q1"]
  # Copies of a training question stay together.
  assert [q.query_id for q in train] == ["q3", "q5", "q6"]
  assert "left out 2 rows" in caplog.text


def config(path, **data) -> ExperimentConfig:
  return dataclasses.replace(
    ExperimentConfig(name="t"),
    data=DataConfig(source="tool_star", path=str(path), **data),
    update=UpdateConfig(queries_per_update=4, queries_per_minibatch=2),
  )


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
  return tmp_path / "train.parquet"


def test_a_data_set_in_which_every_question_stands_twice(path):
  train, held_out = tasks.questions(config(path, held_out=8), "tool_star")
  assert (len(train), len(held_out)) == (24, 8)
  assert not {q.question for q in train} & {q.question for q in held_out}


@pytest.mark.parametrize("held_out", [17, 21])
def test_too_few_distinct_questions(path, held_out):
  wanted = config(path, held_out=held_out)
  if held_out == 17:
    # Three questions are left, each twice.
    assert len(tasks.questions(wanted, "tool_star")[0]) == 6
    wanted = config(path, held_out=19)
  with pytest.raises(InputError, match="none of which is both"):
    tasks.questions(wanted, "tool_star")


@pytest.mark.parametrize("family", ["multihop", "compute", "web"])
def test_the_miniature_world_is_split_by_question(family):
  train, held_out = tasks.questions(ExperimentConfig(name="t"), family)
  assert train
  assert held_out
  known = {normalized(q.question) for q in train}
  assert not known & {normalized(q.question) for q in held_out}


def test_two_questions_with_one_id_are_refused(monkeypatch, path):
  twins = [dataclasses.replace(query(n, f"{n}?"), query_id="q") for n in "12"]
  twins += [query(n, f"Question {n}?") for n in range(9)]
  monkeypatch.setattr(tasks, "load_tool_star", lambda *_, **__: twins)
  with pytest.raises(InputError, match="two questions must not have one id"):
    tasks.questions(config(path, held_out=2), "tool_star")
