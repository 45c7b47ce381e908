"""GAIA's rules on hand-made answers."""

from __future__ import annotations

import pytest

from rapo_jax import rewards
from rapo_jax.data import Query
from rapo_jax.rewards.gaia import GAIA, gaia_match
from rapo_jax.trajectory import FinishReason, TokenKind


@pytest.mark.parametrize(
  ("answer", "truth", "right"),
  [
    ("1,234", "1234", True),
    ("$17.0", "17", True),
    ("17 dollars", "17", False),
    ("egalitarian", "Egalitarian", True),
    ("St. Petersburg", "st petersburg", True),
    ("a, b", "a,b", True),
    ("b, a", "a, b", False),
    ("a; 2.0", "a;2", True),
    ("a, b, c", "a, b", False),
    ("St. Paul, Nice", "St Paul, Nice", False),
    ("", "x", False),
    ("-3", "3", False),
    ("nan", "NaN", True),
    ("Nancy", "Nan", False),
    ("3", "NaN", False),
    (r"\text{Paris}", "Paris", True),
    ("Schrödinger’s cat", "Schrödinger's cat", True),
    ("Cafe\u0301", "Café", True),
    ("−3", "-3", True),
    ("３", "3", True),
    ("北京。", "北京", True),
    ("Spider\u2011Man", "Spider-Man", True),
  ],
)
def test_by_hand(answer, truth, right):
  assert gaia_match(answer, truth) == right


def test_the_reward():
  query = Query("q", "?", ("17",), ({"role": "user", "content": "?"},), "t")

  def sample(text):
    segments = ((TokenKind.POLICY, text),)
    return rewards.Sample(query, segments, FinishReason.ANSWER)

  texts = (
    "<answer> \\boxed{17.0} </answer>",
    "<answer>\\boxed{1}</answer>",
    "17",
  )
  scores = rewards.score_all(GAIA, [sample(text) for text in texts])
  assert [s.value for s in scores] == [1.0, 0.0, -1.0]
