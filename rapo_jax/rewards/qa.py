"""Exact match and F1 of short answers, as the question-answering sets score."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

from rapo_jax.rewards.base import Sample, Score
from rapo_jax.rewards.f1 import drop_punctuation
from rapo_jax.rewards.outcome import FORMAT_PENALTY, WHOLE_FORMAT, score
from rapo_jax.rewards.spelling import respell_characters

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# In the official scripts these overlap with nothing in part.
_WHOLE = frozenset({"yes", "no", "noanswer"})


def normalized_answer(text: str, *, punctuation: bool = False) -> str:
  """An answer in lower case, without articles, in single spaces.

  It is the rule of SQuAD, HotpotQA, 2WikiMultihopQA and MuSiQue, after
  `respell_characters`. It drops all punctuation, so 3 is -3 and 3.5 is 35.

  Args:
    text: an answer.
    punctuation: whether punctuation stays, as in ARPO's evaluation.
  """
  text = respell_characters(text).lower()
  if not punctuation:
    text = drop_punctuation(text)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(
  answer: str, truths: Sequence[str], *, punctuation: bool = False
) -> bool:
  """Whether an answer is one of those accepted, after `normalized_answer`.

  Where both are articles or punctuation alone, these are compared.
  """
  given = _compared(answer, punctuation=punctuation)
  return bool(given) and given in {
    _compared(truth, punctuation=punctuation) for truth in truths
  }


def answer_f1(
  answer: str, truths: Sequence[str], *, punctuation: bool = False
) -> float:
  """Largest F1 of the words of an answer and of one that is accepted."""
  given = _compared(answer, punctuation=punctuation)
  return max(
    _f1(given, _compared(truth, punctuation=punctuation)) for truth in truths
  )


def _compared(text: str, *, punctuation: bool) -> str:
  """The normalized answer, or what it consists of if nothing is left of it."""
  normal = normalized_answer(text, punctuation=punctuation)
  if normal:
    return normal
  lower = respell_characters(text).lower()
  return drop_punctuation(lower).strip() or lower


def _f1(given: str, wanted: str) -> float:
  if {given, wanted} & _WHOLE and given != wanted:
    return 0.0
  common = collections.Counter(given.split()) & collections.Counter(
    wanted.split()
  )
  shared = common.total()
  if not shared:
    return 0.0
  precision = shared / len(given.split())
  recall = shared / len(wanted.split())
  return 2 * precision * recall / (precision + recall)


@dataclasses.dataclass(frozen=True)
class QaReward:
  """F1 with the accepted answers; correct if one of them is met exactly.

  The format is the recipe's (`rewards.score`); a broken one gives -1. `parts`
  holds `f1` and `em`.

  Attributes:
    punctuation: whether punctuation counts, see `normalized_answer`.
  """

  punctuation: bool = False

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """Scores each sample by its question's accepted answers."""
    return [self._score(sample) for sample in batch]

  def _score(self, sample: Sample) -> Score:
    truths = sample.query.ground_truth
    found = score(sample.segments, truths, sample.tag_set)
    if found.status not in WHOLE_FORMAT or found.answer is None:
      parts = {"f1": 0.0, "em": 0.0}
      value = FORMAT_PENALTY
      return Score(value, found.status, found.answer, False, False, parts)
    f1 = answer_f1(found.answer, truths, punctuation=self.punctuation)
    match = exact_match(found.answer, truths, punctuation=self.punctuation)
    parts = {"f1": f1, "em": float(match)}
    return Score(f1, found.status, found.answer, match, True, parts)


@dataclasses.dataclass(frozen=True)
class ExactMatchReward:
  """1 for an accepted answer, 0 for another and for a broken format.

  The rule of Search-R1 (Jin et al., 2025), whose reward has no part for the
  format. Status, answer and `parts` are those of `QaReward`.

  Attributes:
    punctuation: whether punctuation counts, see `normalized_answer`.
  """

  punctuation: bool = False

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """Scores each sample by its question's accepted answers."""
    return [
      dataclasses.replace(found, value=float(found.correct))
      for found in QaReward(self.punctuation).score(batch)
    ]


QA = QaReward()
"""The reward of tasks with short answers."""
EXACT_MATCH = ExactMatchReward()
"""The same without credit for a part of an answer."""
