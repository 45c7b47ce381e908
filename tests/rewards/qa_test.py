"""Exact match and F1 as the question-answering sets define them."""

from __future__ import annotations

import pytest

from rapo_jax import rewards
from rapo_jax.data import Query
from rapo_jax.trajectory import FinishReason, TokenKind


@pytest.mark.parametrize(
  ("answer", "truths", "match", "f1"),
  [
    ("The Beatles", ["Beatles"], True, 1.0),
    ("beatles.", ["The Beatles"], True, 1.0),
    # 2 of 3 words, and 2 of 2: 2 * 2/3 / (5/3).
    ("James K. Polk", ["Polk James"], False, 0.8),
    ("yes", ["Yes"], True, 1.0),
    ("yes it is", ["yes"], False, 0.0),
    ("no", ["no answer"], False, 0.0),
    ("Nanking", ["Nanjing", "Nanking"], True, 1.0),
    ("", ["a"], False, 0.0),
    ("the", ["a"], False, 0.0),
    ("A", ["A"], True, 1.0),
    (r"\text{a}.", ["A"], True, 1.0),
    ("!", ["?"], False, 0.0),
    ("?", ["?"], True, 1.0),
    ("A answer", ["A"], False, 0.0),
    # SQuAD's own.
    ("-3", ["3"], True, 1.0),
    (r"\text{Paris}", ["Paris"], True, 1.0),
    ("Schrödinger’s cat", ["Schrödinger's cat"], True, 1.0),
    ("Cafe\u0301", ["Café"], True, 1.0),
    ("−3", ["-3"], True, 1.0),
    ("３", ["3"], True, 1.0),
    ("北京。", ["北京"], True, 1.0),
    ("Spider\u2011Man", ["Spider-Man"], True, 1.0),
  ],
)
def test_of_short_answers(answer, truths, match, f1):
  assert rewards.exact_match(answer, truths) == match
  assert rewards.answer_f1(answer, truths) == pytest.approx(f1)


def test_punctuation_may_count():
  assert rewards.normalized_answer("St. Paul!") == "st paul"
  assert rewards.normalized_answer("St. Paul!", punctuation=True) == "st. paul!"
  assert rewards.exact_match("St Paul", ["St. Paul"])
  assert not rewards.exact_match("St Paul", ["St. Paul"], punctuation=True)


def test_the_reward():
  query = Query(
    "q", "?", ("Polk James",), ({"role": "user", "content": ""},), ""
  )

  def sample(text):
    segments = ((TokenKind.POLICY, text),)
    return rewards.Sample(query, segments, FinishReason.ANSWER)

  batch = [
    sample(f"<answer> \\boxed{{{text}}} </answer>")
    for text in ("James K. Polk", "Polk, James", "")
  ]
  scores = rewards.score_all(rewards.QA, [*batch, sample("Polk James")])
  assert [s.value for s in scores] == pytest.approx([0.8, 1.0, 0.0, -1.0])
  assert [s.correct for s in scores] == [False, True, False, False]
  assert [s.whole for s in scores] == [True, True, True, False]
  assert scores[1].parts == {"f1": 1.0, "em": 1.0}
  exact = rewards.score_all(rewards.EXACT_MATCH, [*batch, sample("Polk James")])
  assert [s.value for s in exact] == [0.0, 1.0, 0.0, 0.0]
  assert [s.whole for s in exact] == [True, True, True, False]
