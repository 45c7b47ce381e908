"""Figures of an evaluation, from answers made by hand."""

from __future__ import annotations

import dataclasses

import pytest

from experiments import answers
from experiments.answers import Answer
from experiments.evaluate import format_table

PLAIN = Answer("test", "q0", 0, False, "answer", False, 10, 2, 0, text="a")


def sample(query: str, index: int, text: str, correct: bool, **more) -> Answer:
  return dataclasses.replace(
    PLAIN, query_id=query, index=index, text=text, correct=correct, **more
  )


@pytest.mark.parametrize(
  ("samples", "correct", "k", "expected"),
  [
    (4, 1, 1, 0.25),
    # 1 - C(3, 2) / C(4, 2) = 1 - 3/6.
    (4, 1, 2, 0.5),
    (4, 1, 4, 1.0),
    (4, 0, 4, 0.0),
    (4, 4, 1, 1.0),
  ],
)
def test_pass_at_k(samples, correct, k, expected):
  assert answers.pass_at_k(samples, correct, k) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("texts", "expected"),
  [
    ([("a", True), ("b", False), ("A", True)], 1.0),
    ([("a", True), ("b", False), ("b", False)], 0.0),
    # A tie is half right.
    ([("a", True), ("b", False)], 0.5),
    ([(None, False), (" ", False), ("a", True)], 1.0),
    ([(None, False)], 0.0),
  ],
)
def test_the_majority(texts, expected):
  own = [sample("q", i, text, right) for i, (text, right) in enumerate(texts)]
  assert answers.majority_correct(own) == expected


def test_figures_by_hand():
  given = [
    sample("q0", 0, "a", True, parts={"f1": 1.0}),
    sample("q0", 1, "b", False, parts={"f1": 0.5}),
    sample("q1", 0, "b", False, parts={"f1": 0.0}, tokens=30),
    sample("q1", 1, "b", False, parts={"f1": 0.0}, failed_calls=1),
    sample("q0", 0, "a", True, greedy=True, calls=0),
    sample("q1", 0, "a", True, greedy=True, calls=0),
    sample("q1", 2, "", False, cut=True, calls=0),
  ]
  found = answers.figures(given, max_tool_fail_rate=0.1)
  assert found["questions"] == 2
  assert found["left_out"] == 1
  assert found["pass@1"]["mean"] == 0.25
  assert found["pass@2"] == 0.5
  assert found["majority@2"] == 0.25
  assert found["greedy"] == 1.0
  assert found["f1"] == 0.375
  # One of eight calls.
  assert found["tool_fail_rate"] == 0.125
  assert not found["verdict"]
  # Of five sampled trajectories, the one that was cut among them.
  assert found["tokens"] == 14.0
  assert answers.figures(given)["verdict"]


def test_an_evaluation_without_any_answer():
  found = answers.figures([sample("q", 0, "", False, cut=True)])
  assert "pass@1" not in found
  assert found["left_out"] == 1


def test_the_table_fits_the_terminal():
  own = [sample(f"q{i}", 0, "a", i % 2 == 0) for i in range(8)]
  results = {
    "gsm8k": {"test": answers.figures(own)},
    "mine": {
      "easy": answers.figures(own),
      "hard": answers.figures(
        [dataclasses.replace(a, failed_calls=2) for a in own],
        max_tool_fail_rate=0.5,
      ),
    },
  }
  wide = format_table(results)
  assert "50.0 [12.5, 87.5]" in wide
  assert "mine/hard" in wide
  assert "no verdict" in wide
  # Without a verdict on one of them there is no mean.
  assert "mean" not in wide
  narrow = format_table(results, 60)
  assert "gsm8k: questions 8, pass@1 50.0" in narrow
  del results["mine"]["hard"]
  assert format_table(results).splitlines()[-1].split() == ["mean", "50.0"]


@pytest.mark.parametrize(
  ("correct", "interval"),
  # 0.025 ** (1 / 4) = 0.398.
  [(False, [0.0, 0.602]), (True, [0.398, 1.0])],
)
def test_questions_that_are_all_alike_leave_an_interval(correct, interval):
  own = [sample(f"q{i}", 0, "a", correct) for i in range(4)]
  found = answers.figures(own)["pass@1"]
  assert found["interval"] == pytest.approx(interval, abs=1e-3)
