"""Equality of mathematical answers, and the reward by it."""

from __future__ import annotations

import time

import pytest

from rapo_jax import rewards
from rapo_jax.data import Query
from rapo_jax.rewards import MATH, math_equal, mathematics
from rapo_jax.trajectory import FinishReason, TokenKind


@pytest.mark.parametrize(
  ("answer", "truth"),
  [
    ("3/2", r"\frac{3}{2}"),
    (r"\dfrac12", "0.5"),
    ("1.50", r"\frac{3}{2}"),
    (r"-\frac{1}{2}", "-0.5"),
    ("1,000", "1000"),
    (r"\$2,250", "2250"),
    ("10 cm", "10"),
    (r"10\,\text{cm}^2", "10"),
    ("2250 dollars", "2250"),
    ("3 million dollars", "3 million"),
    ("3 million", "3000000"),
    (r"\$2.5 million", "2,500,000"),
    (r"5.4\text{ million people}", "5400000"),
    ("1,200 Thousand", r"1.2\,\text{million}"),
    (r"\log_{2}{8}", "3"),
    ("x + 1", "1+x"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("x=5", "5"),
    (r"\text{Paris}", "Paris"),
    ("5.", "5"),
    ("–3", "-3"),
    ("３", "3"),
    ("½", "1/2"),
    ("2½", "2.5"),
    ("2 1/2", "5/2"),
    (r"1\,000", "1000"),
    ("€5", "5"),
    ("90°", "90"),
    ("√2", r"\sqrt2"),
    ("√8", r"2\sqrt{2}"),
    ("3×10⁸", "3e8"),
    ("5 cm^2", "5"),
    ("**5**", "5"),
    ("A.", "A"),
    ("True", "true"),
    ("18.0%", "18"),
    ("(-∞, 3]", r"(-\infty,3]"),
    ("4 to 2", "2:1"),
    ("1/2:1", "1:2"),
    (r"\text{ABC}", "ABC"),
    ("infinity", r"\infty"),
    ("6 pm", "6 pm"),
    ("2516_{8}", "2516_8"),
    ("2020-01-02", "2020-01-02"),
  ],
)
def test_the_same_mathematics(answer, truth):
  assert math_equal(answer, truth)


@pytest.mark.parametrize(
  ("answer", "truth"),
  [
    ("-3", "3"),
    ("3", "-3"),
    ("35", "3.5"),
    ("2/3", r"\frac{3}{2}"),
    ("(1,2)", "(2,1)"),
    ("[1,2)", "[1,2]"),
    ("5 x", "5"),
    ("5i", "5"),
    ("3 sin x", "3"),
    ("10 or 12", "12"),
    ("2251 dollars", "2250"),
    ("A", "B"),
    ("1,5", "15"),
    ("3 million", "3"),
    ("3 million", "3 thousand"),
    ("1/2 million", "1/2"),
    ("1/2 million", "500"),
    ("3 million", "3 billion"),
    ("3 thousand", "3"),
    (r"3\text{ dozen}", "3"),
    ("2 factorial", "2"),
    ("12 squared", "12"),
    ("5 negative", "5"),
    ("5 xy^2", "5"),
    ("2 to 1", "1 to 2"),
    ("3:4:5", "3:5:4"),
    ("0:1:2", "0:1:3"),
    ("0:0", "3:4"),
    ("BCA", "ABC"),
    (r"\text{CAB}", "ABC"),
    ("on", "no"),
    ("2020-01-02", "2020-02-01"),
    ("10:30 am", "10:30 pm"),
    ("2516_8", "2516_7"),
    (r"10\% \text{ increase}", r"10\% \text{ decrease}"),
    ("", "0"),
    ("1" * (mathematics.MAX_CHARS + 1), "1"),
  ],
)
def test_other_mathematics(answer, truth):
  assert not math_equal(answer, truth)


def test_an_answer_that_takes_for_ever_is_wrong_and_harms_no_other(monkeypatch):
  assert math_equal("1", "1.0")
  monkeypatch.setattr(mathematics, "TIMEOUT_S", 0.5)
  hostile = ["9^{9^{9^9}}", "(" * 900, "10^{10^{10}} + 1"]
  started = time.monotonic()
  pairs = [(text, "1") for text in hostile] + [("2/4", "0.5"), ("7", "7.0")]
  assert mathematics.math_equal_all(pairs) == [False] * 3 + [True] * 2
  assert time.monotonic() - started < 30


def test_two_texts_that_are_no_mathematics():
  assert not math_equal("\0\ud800", "1")
  assert not math_equal("\\frac" * 300, "1")


def sample(text: str, *truths: str) -> rewards.Sample:
  query = Query("q", "?", truths, ({"role": "user", "content": "?"},), "t")
  segments = ((TokenKind.POLICY, text),)
  return rewards.Sample(query, segments, FinishReason.ANSWER)


def test_the_reward():
  batch = [
    sample("<answer> \\boxed{0.5} </answer>", "7", "\\frac{1}{2}"),
    sample("<answer> \\boxed{-3} </answer>", "3"),
    sample("<answer> \\boxed{} </answer>", "3"),
    sample("\\boxed{3}", "3"),
  ]
  scores = rewards.score_all(MATH, batch)
  assert [(s.value, s.correct, s.whole) for s in scores] == [
    (1.0, True, True),
    (0.0, False, True),
    (0.0, False, True),
    (-1.0, False, False),
  ]
  assert scores[1].answer == "-3"
  assert scores[3].status == "answer_missing"
