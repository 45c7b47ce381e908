from __future__ import annotations

import pytest

from rapo_jax.rewards import f1


@pytest.mark.parametrize(
  ("prediction", "truth", "expected"),
  [
    ("Paris", "paris", 1.0),
    ("The Paris.", "paris", 1.0),
    # 1 shared word; precision 1/2, recall 1/1: 2·½·1 / 1½ = 2/3.
    ("Paris France", "Paris", 2 / 3),
    # Bags: "a b b" (a is an article) -> "b b" against "b c": 1 shared of 2, 2.
    ("a b b", "b c", 0.5),
    # Repetition earns nothing: 1 shared of 100 given and 1 wanted: 2/101.
    ("paris " * 100, "paris", 2 / 101),
    ("London", "Paris", 0.0),
    ("yes", "yes", 1.0),
    ("yes it is", "yes", 0.0),
    ("no", "no way", 0.0),
    ("noanswer", "noanswer", 1.0),
    ("", "Paris", 0.0),
    (" ", "Paris", 0.0),
    ("the", "Paris", 0.0),
    # Nothing is left of the truth: compared as it stands.
    ("a", "A", 1.0),
    ("B", "A", 0.0),
    ("", "A", 0.0),
    ("+", "+", 1.0),
    # The recipe's F1 does not see signs.
    ("-3", "3", 1.0),
    ("3\\sqrt{3} - 6", "3\\sqrt{3}-6", 0.0),
    ("東京", "東京", 1.0),
  ],
)
def test_token_f1(prediction: str, truth: str, expected: float):
  assert f1.token_f1(prediction, truth) == pytest.approx(expected)


def test_normalize_keeps_words_that_begin_like_articles():
  assert f1.normalize("The  Theatre, an ant & a cat") == "theatre ant cat"
