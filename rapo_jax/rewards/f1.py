"""Token F1 between two short answers, as SQuAD and HotpotQA define it."""

from __future__ import annotations

import collections
import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Answers that overlap in part with nothing: "no" is no half of "no answer".
_EXACT = frozenset({"yes", "no", "noanswer"})


def normalize(text: str) -> str:
  """Lower case, without ASCII punctuation, articles and extra white space."""
  bare = text.lower().translate(_NO_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", bare).split())


def token_f1(prediction: str, ground_truth: str) -> float:
  """F1 over the bags of normalised words of two answers.

  It is a measure for words. On mathematics it is only what the recipe does:
  a sign, a decimal point or a brace is punctuation, so "-3" equals "3".

  Args:
    prediction: the answer given; blank scores 0.
    ground_truth: the answer wanted. One that normalisation leaves nothing of
      ("A", "+") is compared as it is, without regard to case.

  Returns:
    F1 in [0, 1].
  """
  wanted = normalize(ground_truth)
  given = normalize(prediction)
  if not wanted:
    raw = prediction.strip().lower()
    return float(bool(raw) and raw == ground_truth.strip().lower())
  if given in _EXACT or wanted in _EXACT:
    return float(given == wanted)
  given_words, wanted_words = given.split(), wanted.split()
  common = collections.Counter(given_words) & collections.Counter(wanted_words)
  shared = common.total()
  if shared == 0:
    return 0.0
  precision = shared / len(given_words)
  recall = shared / len(wanted_words)
  return 2 * precision * recall / (precision + recall)
