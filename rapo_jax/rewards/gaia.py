"""GAIA's own rules: numbers, lists and short texts (arXiv 2311.12983)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from rapo_jax.rewards.base import Sample, Score
from rapo_jax.rewards.f1 import drop_punctuation
from rapo_jax.rewards.outcome import FORMAT_PENALTY, WHOLE_FORMAT, score
from rapo_jax.rewards.spelling import respell_characters

_SEPARATOR = re.compile("[,;]")
_SPACE = re.compile(r"\s")
_UNITS = str.maketrans("", "", "$%,")


def gaia_match(answer: str, truth: str) -> bool:
  """Whether an answer is right.

  The reference answer decides how it is read. A number is compared as a number,
  without $, % and commas. A list has commas or semicolons. It must have as many
  entries, each right in its place; its texts keep their punctuation. Any other
  text is compared without white space, punctuation and case. Both are read
  after `respell_characters`.

  Args:
    answer: the answer given.
    truth: the reference answer.
  """
  answer, truth = respell_characters(answer), respell_characters(truth)
  if _number(truth) is not None:
    return _number(answer.translate(_UNITS)) == _number(truth)
  if _SEPARATOR.search(truth):
    given, wanted = _SEPARATOR.split(answer), _SEPARATOR.split(truth)
    return len(given) == len(wanted) and all(map(_entry_match, given, wanted))
  return _text(answer, punctuation=False) == _text(truth, punctuation=False)


def _entry_match(given: str, wanted: str) -> bool:
  if _number(wanted) is not None:
    return _number(given.translate(_UNITS)) == _number(wanted)
  return _text(given, punctuation=True) == _text(wanted, punctuation=True)


def _number(text: str) -> float | None:
  try:
    value = float(text)
  except ValueError:
    return None
  # NaN equals nothing; as a text it may be an answer.
  return None if math.isnan(value) else value


def _text(text: str, *, punctuation: bool) -> str:
  bare = _SPACE.sub("", text).lower()
  return bare if punctuation else drop_punctuation(bare)


@dataclasses.dataclass(frozen=True)
class GaiaReward:
  """1 for an answer that is right by GAIA's rules, 0 for another.

  The format is the recipe's (`rewards.score`); a broken one gives -1.
  """

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """Scores each sample by its question's reference answers."""
    return [self._score(sample) for sample in batch]

  def _score(self, sample: Sample) -> Score:
    truths = sample.query.ground_truth
    found = score(sample.segments, truths, sample.tag_set)
    whole = found.status in WHOLE_FORMAT and found.answer is not None
    right = whole and any(
      gaia_match(str(found.answer), truth) for truth in truths
    )
    value = float(right) if whole else FORMAT_PENALTY
    return Score(value, found.status, found.answer, right, whole)


GAIA = GaiaReward()
"""The reward of GAIA's questions."""
