"""Tests of the leak check."""

import numpy as np
import pytest

from rapo_jax import retrieval
from rapo_jax.retrieval.buffer import leaks
from rapo_jax.retrieval.buffer.agent_trajectory import normalized, question_id
from rapo_jax.retrieval.importers.question_files import read_questions


class FakeEncoder(retrieval.SentenceEncoder):
  """Unit vectors in the plane: a text is its angle in degrees."""

  def __init__(self):
    pass

  def encode(self, texts):
    angles = np.radians([float(text) for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
  ("one", "other", "same"),
  [
    ("Who wrote Emma?", "who  wrote\n“Emma”", True),
    ("Ｗｈｏ wrote ﬁction?", "Who wrote fiction", True),
    (r"Find $x + 3$.", "find x+3", True),
    ("Find 3 + 4.", "Find 3 - 4.", False),
    ("Find 3 \u2212 4.", r"Find \(3 - 4\).", True),
    ("Who wrote\u200b Em\u00adma?", "Who wrote Emma?", True),
    ("Find 1.5 + 2.", "Find 15 + 2.", False),
    ("Find x².", "Find $x^2$.", True),
    ("Find 2³.", "Find 23.", False),
    ("Is No. 5 at 12:30?", "Is No 5 at 12:30", True),
    ("Who wrote Emma?", "Who wrote Persuasion?", False),
    ("Who\u200e wrote\u200f it", "Who wrote it", True),
    ("作者是谁。", "作者是谁", True),
    ("¿Quién?", "Quién", True),
    ("«Emma»?", "„Emma“", True),
    ("**Who** wrote", "Who wrote", True),
    ("Paris — the capital", "Paris, the capital", True),
    ("Is ½ x", "is 1/2 x", True),
    ("2½ cups", "2 1/2 cups", True),
    ("3 × 4", "3*4", True),
    ("1,000 men", "1000 men", True),
    ("f′(2)", "f'(2)", True),
    (r"$\dfrac{1}{2}$", r"\frac{1}{2}", True),
    ("Find 5!", "Find 5", False),
    ("n!!", "n!", False),
    ("f''(2)", "f'(2)", False),
    ("f'(2)", "f(2)", False),
    ("f(1,23)", "f(12,3)", False),
    ("1, 2, 3", "12, 3", False),
    ("1,5", "15", False),
    ("x - y", "x y", False),
    ("2(3+4)", "23+4", False),
    ("?", "!", False),
  ],
)
def test_normalized(one, other, same):
  assert (normalized(one) == normalized(other)) is same
  assert (question_id(one) == question_id(other)) is same


def test_equal_texts_are_found_and_named():
  check = leaks.LeakCheck([("a", ["Who, me?", "What?"]), ("b", ["WHO ME"])])
  assert len(check) == 2
  assert check.overlaps(iter(["Why?", "who me", "who me"])) == [
    leaks.Overlap("who me", "Who, me?", "a", 1.0, True)
  ]


def test_similar_questions_are_found_and_measured():
  check = leaks.LeakCheck([("a", ["0", "90"])], FakeEncoder(), 0.9)
  overlaps = check.overlaps(["80", "45", "90.", "-20"])
  # cos 10° = 0.9848, cos 45° = 0.71, cos 20° = 0.9397.
  assert [(o.question, o.held_out) for o in overlaps] == [
    ("80", "90"),
    ("90.", "90"),
    ("-20", "0"),
  ]
  np.testing.assert_allclose(
    [o.similarity for o in overlaps], [0.9848, 1.0, 0.9397], atol=1e-4
  )
  assert [o.same_text for o in overlaps] == [False, True, False]
  assert leaks.overlap_counts(overlaps) == {"a": (1, 2)}


def test_nothing_is_held_out():
  assert leaks.LeakCheck([], FakeEncoder()).overlaps(["0"]) == []


@pytest.mark.parametrize("value", [0.0, 1.1, float("nan")])
def test_threshold_out_of_range(value):
  with pytest.raises(ValueError, match="is a cosine and must lie"):
    leaks.LeakCheck([], min_similarity=value)


def test_the_real_validation_set_is_a_test_set(sample_data):
  questions = read_questions(sample_data / "rl_train" / "valid.parquet")
  files = [
    sample_data / "arpo_eval" / name / "test.jsonl"
    for name in ("aime24", "bamboogle", "math500")
  ]
  overlaps = leaks.LeakCheck.of_files(files).overlaps(questions)
  counts = leaks.overlap_counts(overlaps)
  # The whole sets overlap by 30, 20 and 30; the samples by these.
  assert [counts[str(path)][0] for path in files] == [15, 11, 11]
