"""Equality of mathematical answers, and a reward by it.

The comparison is math-verify's (github.com/huggingface/Math-Verify), in
processes of its own with a deadline.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import pathlib
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rapo_jax.rewards.base import Sample, Score
from rapo_jax.rewards.outcome import FORMAT_PENALTY, WHOLE_FORMAT, score
from rapo_jax.rewards.spelling import respell
from rapo_jax.server_process import ServerLateError, ServerPool

TIMEOUT_S = 3.0
"""Deadline of one comparison."""
MAX_CHARS = 2000
"""A longer answer equals nothing."""
_SERVER = pathlib.Path(__file__).with_name("math_server.py")
_CACHED = 2**16
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]{2,})*")
# Spellings that math-verify does not read, and those that it does.
_ROOT = re.compile(r"√(\{|[^\W_])")
_MIXED = re.compile(r"(?<![\w./])([0-9]+) ([0-9]+)/([0-9]+)(?![\w./])")
_EXPONENT = re.compile(r"(?<=[0-9])[eE]([+-]?[0-9]+)(?!\w)")
_LATEX = str.maketrans({"∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap "})


class _Pool:
  """As many servers as there are processors, and threads to ask them."""

  def __init__(self, size: int):
    self.servers = ServerPool(_SERVER, size)
    self.threads = ThreadPoolExecutor(size, thread_name_prefix="math-equal")

  def equal(self, answer: str, truth: str) -> bool:
    pairs = [[answer, truth], [_latex(answer), _latex(truth)]]
    question = json.dumps(pairs).encode()
    try:
      return self.servers.ask(question, TIMEOUT_S) == b"true"
    except ServerLateError:
      return False


def _latex(text: str) -> str:
  """An answer in one spelling, and in LaTeX where that has no plain form."""
  # A set's braces would become those of a group.
  if r"\{" in text or r"\lbrace" in text:
    return text
  text = respell(text).rstrip(".,; ")
  if _WORDS.fullmatch(text):
    return text.casefold()
  text = _MIXED.sub(r"\1\\frac{\2}{\3}", text.removesuffix("%"))
  text = _ROOT.sub(_root, _EXPONENT.sub(r"*10^{\1}", text))
  return text.translate(_LATEX)


def _root(match: re.Match[str]) -> str:
  under = match.group(1)
  return r"\sqrt{" if under == "{" else rf"\sqrt{{{under}}}"


_lock = threading.Lock()


@functools.cache
def _pool() -> _Pool:
  pool = _Pool(min(8, len(os.sched_getaffinity(0))))
  atexit.register(pool.servers.close)
  return pool


@functools.lru_cache(_CACHED)
def _equal(answer: str, truth: str) -> bool:
  with _lock:
    pool = _pool()
  return pool.equal(answer, truth)


def math_equal(answer: str, ground_truth: str) -> bool:
  r"""Whether an answer is the same mathematics as the ground truth.

  1/2, 0.5 and `\frac{1}{2}` are equal; 3 and -3 are not, nor are (1, 2) and
  (2, 1). Units count as nothing; words for numbers are no units. Both are
  compared as they are and in one spelling (`respell`). Any thread may call it.

  Args:
    answer: without its box, in LaTeX or plain.
    ground_truth: of the same form.

  Returns:
    False, too, for what cannot be read, is longer than `MAX_CHARS`, or takes
    longer than `TIMEOUT_S` seconds to compare.

  """
  answer, ground_truth = answer.strip(), ground_truth.strip()
  if not answer or max(len(answer), len(ground_truth)) > MAX_CHARS:
    return False
  return _equal(answer, ground_truth)


def math_equal_all(pairs: Sequence[tuple[str, str]]) -> list[bool]:
  """`math_equal` of many pairs, on all processors; results in order."""
  with _lock:
    pool = _pool()
  return list(pool.threads.map(lambda pair: math_equal(*pair), pairs))


@dataclasses.dataclass(frozen=True)
class MathReward:
  """1 for an equal answer, 0 for another, -1 for a broken format.

  The format is the recipe's (`rewards.score`). The recipe's own value compares
  words: it refuses 0.5 for 1/2.
  """

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """Compares each answer with every ground truth of its question."""
    recipe = [score(s.segments, s.query.ground_truth, s.tag_set) for s in batch]
    pairs = [
      (index, found.answer, truth)
      for index, (found, sample) in enumerate(zip(recipe, batch, strict=True))
      if found.status in WHOLE_FORMAT and found.answer
      for truth in sample.query.ground_truth
    ]
    equal = math_equal_all([(answer, truth) for _, answer, truth in pairs])
    right = {
      index for (index, _, _), same in zip(pairs, equal, strict=True) if same
    }
    return [
      _scored(found, index in right) for index, found in enumerate(recipe)
    ]


def _scored(found: Score, right: bool) -> Score:
  value = float(right) if found.whole else FORMAT_PENALTY
  return Score(
    value, found.status, found.answer, right, found.whole, found.parts
  )


MATH = MathReward()
"""The reward of mathematical tasks."""
