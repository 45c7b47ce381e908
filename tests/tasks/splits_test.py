"""How questions are split, and that none is trained on and held out."""

from __future__ import annotations

import pytest

from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.tasks import leaks, split_by_question


def queries(*texts: str) -> list[Query]:
  return [
    Query(f"q{n}", text, ("a",), ({"role": "user", "content": text},), "t")
    for n, text in enumerate(texts)
  ]


def test_copies_of_a_held_out_question_are_left_out(caplog):
  texts = ["One?", "Two?", " one ", "Three?", "ＯＮＥ?", "Four?", "three?"]
  train, held_out = split_by_question(queries(*texts), 2)
  assert [q.query_id for q in held_out] == ["q0", "q1"]
  # Copies of a training question stay together.
  assert [q.query_id for q in train] == ["q3", "q5", "q6"]
  assert "left out 2 rows" in caplog.text


def test_too_few_distinct_questions():
  with pytest.raises(InputError, match=r"distinct questions \(2\), got 3"):
    split_by_question(queries("One?", "Two?", "one"), 3)


def test_questions_that_are_trained_on_and_evaluated():
  train = queries("One?", "two", "Three?", "ONE")
  sets = {"a": queries("one"), "b": queries("Two!", "four"), "c": queries("5")}
  assert leaks(train, sets) == {"a": {"q0", "q3"}, "b": {"q1"}}
