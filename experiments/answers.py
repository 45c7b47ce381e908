"""An agent's answers to evaluation questions, kept one by one, and figures.

An answer is kept as soon as its batch is scored, so that an evaluation which is
interrupted goes on behind it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.report import bootstrap
from rapo_jax import files
from rapo_jax.errors import InputError
from rapo_jax.rewards import Score, normalized_answer
from rapo_jax.trajectory import SYSTEM_FAULTS, Trajectory

_log = logging.getLogger(__name__)

# Of the questions, for an interval: its ends differ by less than its digits.
_RESAMPLES = 2_000
_TAIL = (1 - bootstrap.LEVEL) / 2


@dataclasses.dataclass(frozen=True)
class Answer:
  """One trajectory of an evaluation.

  Attributes:
    evaluation_set: name of the set of its question.
    query_id: of its question.
    index: number of the sample.
    greedy: whether it took the likeliest tokens.
    finish_reason: why it ended.
    cut: whether the system cut it; it is then not scored.
    tokens: that the agent wrote.
    calls: of tools.
    failed_calls: that the tool or the system failed, not the agent.
    value: reward; None if it is not scored, as for the next ones.
    status: the rule of the reward that decided.
    text: the answer that was found.
    correct: whether it counts as right.
    whole: whether it keeps the format.
    parts: further numbers of the reward, such as F1.
  """

  evaluation_set: str
  query_id: str
  index: int
  greedy: bool
  finish_reason: str
  cut: bool
  tokens: int
  calls: int
  failed_calls: int
  value: float | None = None
  status: str | None = None
  text: str | None = None
  correct: bool = False
  whole: bool = False
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> tuple[str, int, bool]:
    """What tells it apart in an evaluation."""
    return self.query_id, self.index, self.greedy


def answer_of(
  trajectory: Trajectory,
  score: Score | None,
  *,
  evaluation_set: str,
  greedy: bool,
) -> Answer:
  """The record of a trajectory and its score, None if it was cut."""
  scored: dict[str, Any] = {}
  if score is not None:
    scored = {
      "value": float(score.value),
      "status": str(score.status),
      "text": score.answer,
      "correct": bool(score.correct),
      "whole": score.whole,
      "parts": {name: float(part) for name, part in score.parts.items()},
    }
  statuses = [event.status for event in trajectory.tool_events]
  return Answer(
    evaluation_set,
    trajectory.query_id,
    trajectory.index,
    greedy,
    str(trajectory.finish_reason),
    trajectory.is_cut_by_system,
    int(trajectory.policy_mask.sum()),
    len(statuses),
    sum(status in SYSTEM_FAULTS for status in statuses),
    **scored,
  )


class AnswerFile:
  """Answers on the disk, a line each, of one agent and one setting.

  Args:
    path: the file; None keeps nothing.
    made_with: changes with all that an answer depends on. A file of another
      is moved aside, to the same name with ".old" behind it.

  Raises:
    InputError: a line has been changed.
  """

  def __init__(self, path: pathlib.Path | None, made_with: str):
    self._path = path
    self.answers: list[Answer] = []
    if path is None:
      return
    if not self._read(made_with):
      files.make_private_folder(path.parent)
      self._move_aside(path)
      files.replace_text(path, json.dumps({"made_with": made_with}) + "\n")

  def _read(self, made_with: str) -> bool:
    """Whether the file is there and of these settings; takes its answers."""
    assert self._path is not None
    if not self._path.exists():
      return False
    lines = self._path.read_bytes().split(b"\n")
    # A line without an end was being written when the process was killed.
    whole = b"".join(line + b"\n" for line in lines[:-1])
    try:
      records = [json.loads(line) for line in lines[:-1]]
      if not records or records[0]["made_with"] != made_with:
        return False
      self.answers = [Answer(**record) for record in records[1:]]
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"{self._path} must hold the answers that were written there, and does "
        f"not ({error}): restore it, or delete it to begin the evaluation anew."
      ) from error
    if lines[-1]:
      with files.replaced_file(self._path) as new:
        new.write_bytes(whole)
    return True

  @staticmethod
  def _move_aside(path: pathlib.Path) -> None:
    """Keeps answers of other settings: they may have taken days."""
    if not path.exists() or path.read_bytes().count(b"\n") < 2:
      return
    old = path.with_name(f"{path.name}.old")
    path.replace(old)
    _log.warning(
      "%s holds answers of another model, config or data: it is now %s, and "
      "the questions are asked anew",
      *(path, old.name),
    )

  def add(self, answers: Sequence[Answer]) -> None:
    """Keeps further answers."""
    self.answers += answers
    if self._path is not None:
      with files.append_private(self._path) as file:
        for answer in answers:
          line = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
          file.write(line + "\n")


def by_question(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
  """Answers by query id, in the order of their samples."""
  found: dict[str, list[Answer]] = {}
  for answer in sorted(answers, key=lambda answer: answer.index):
    found.setdefault(answer.query_id, []).append(answer)
  return found


def pass_at_k(samples: int, correct: int, k: int) -> float:
  """Chance that k of n samples hold a right one (Chen et al., 2107.03374).

  Unbiased: 1 - C(n - c, k) / C(n, k).

  Args:
    samples: n, at least k.
    correct: c of them are right.
    k: samples that are drawn.
  """
  return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_correct(answers: Sequence[Answer]) -> float:
  """Whether the answer that comes most often is right; ties are averaged.

  Answers are alike after `rewards.normalized_answer`. Without any answer the
  question is wrong.
  """
  votes: dict[str, list[bool]] = {}
  for answer in answers:
    if answer.text is not None and answer.text.strip():
      spelled = normalized_answer(answer.text, punctuation=True)
      votes.setdefault(spelled, []).append(answer.correct)
  if not votes:
    return 0.0
  most = max(map(len, votes.values()))
  return float(
    np.mean([any(right) for right in votes.values() if len(right) == most])
  )


def figures(
  answers: Sequence[Answer], *, max_tool_fail_rate: float = 1.0
) -> dict[str, Any]:
  """What the answers to one evaluation set say of an agent.

  Args:
    answers: sampled and greedy ones.
    max_tool_fail_rate: above this share of failed calls there is no verdict,
      since the accuracy would be of an agent without its tools.

  Returns:
    `questions`, `samples` and `left_out` count. `pass@1` has a mean and a 95 %
    interval over questions. `pass@<k>` is for powers of two up to the samples
    that every question has, and `majority@<k>` for all of these. `greedy`,
    `f1` and `em` are means; the last two only of rewards that give them.
    `tool_fail_rate` is the share of calls that failed, `tokens` and `calls` are
    means a trajectory. `verdict` is false where too many calls failed.
  """
  sampled = [a for a in answers if not a.greedy]
  counted = by_question(a for a in sampled if not a.cut)
  calls = sum(answer.calls for answer in answers)
  failed = sum(answer.failed_calls for answer in answers)
  fail_rate = failed / calls if calls else 0.0
  found: dict[str, Any] = {
    "questions": len({answer.query_id for answer in answers}),
    "samples": len(sampled),
    "left_out": sum(answer.cut for answer in answers),
    "tool_fail_rate": fail_rate,
    "verdict": fail_rate <= max_tool_fail_rate,
    "tokens": _mean(answer.tokens for answer in sampled),
    "calls": _mean(answer.calls for answer in sampled),
  }
  greedy = [a.correct for a in answers if a.greedy and not a.cut]
  if greedy:
    found["greedy"] = _mean(greedy)
  if not counted:
    return found
  shares = [_mean(a.correct for a in own) for own in counted.values()]
  found["pass@1"] = {"mean": _mean(shares), "interval": _interval(shares)}
  fewest = min(map(len, counted.values()))
  for k in (2**power for power in range(1, fewest.bit_length())):
    found[f"pass@{k}"] = _mean(
      pass_at_k(len(own), sum(a.correct for a in own), k)
      for own in counted.values()
    )
  if fewest > 1:
    found[f"majority@{fewest}"] = _mean(
      majority_correct(own[:fewest]) for own in counted.values()
    )
  parts = collections.Counter(name for a in sampled for name in a.parts)
  for name in sorted(parts):
    found[name] = _mean(
      _mean(a.parts.get(name, 0.0) for a in own) for own in counted.values()
    )
  return found


def _interval(shares: Sequence[float]) -> list[float]:
  """95 % interval of a mean over questions, with what each of them has.

  Where all have 0, or all 1, no resample differs. The interval is then that of
  Clopper and Pearson (1934).
  """
  if len({*shares}) == 1 and shares[0] in (0.0, 1.0):
    far = _TAIL ** (1 / len(shares))
    return [0.0, 1.0 - far] if shares[0] == 0.0 else [far, 1.0]
  interval = bootstrap.mean_interval([np.array([shares])], _RESAMPLES)
  return [interval.low, interval.high]


def _mean(values: Iterable[float]) -> float:
  return float(np.mean([*values] or [0.0]))
