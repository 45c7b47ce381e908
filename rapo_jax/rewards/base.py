"""A reward: samples in, a score for each of them out.

A reward is any object with `score(batch)`. `reward` makes one of a plain
function. `score_all` calls it and checks what it returns.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rapo_jax.data.queries import Query
from rapo_jax.errors import InputError
from rapo_jax.tools.tags import TagSet
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory

_POLL_S = 0.2
RECIPE_TAGS = TagSet(("search", "python", "open"))
"""Tags of the recipe's tools, which count as calls whatever tools there are."""


@dataclasses.dataclass(frozen=True)
class Score:
  """Outcome reward of a trajectory.

  Attributes:
    value: the reward that is trained on; finite.
    status: the rule that decided, in the reward's own words.
    answer: the answer that was found; None without one.
    correct: whether the answer counts as right.
    whole: whether the trajectory keeps the format.
    parts: further numbers, such as F1, by name.
  """

  value: float
  status: str
  answer: str | None = None
  correct: bool = False
  whole: bool = True
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def record(self) -> dict[str, Any]:
    """The score as a JSON object."""
    return {
      "value": self.value,
      "status": str(self.status),
      "answer": self.answer,
      "correct": self.correct,
      "whole": self.whole,
      "parts": dict(self.parts),
    }


@dataclasses.dataclass(frozen=True)
class Sample:
  """A finished trajectory as a reward sees it.

  Attributes:
    query: its question.
    segments: kind and text of each run of tokens, in order.
    finish_reason: why it ended.
    tag_set: tags of the tools that the agent had.
  """

  query: Query
  segments: Sequence[tuple[TokenKind, str]]
  finish_reason: FinishReason
  tag_set: TagSet = RECIPE_TAGS

  @property
  def policy_text(self) -> str:
    """All that the policy wrote."""
    return "".join(t for kind, t in self.segments if kind == TokenKind.POLICY)


def samples_of(
  trajectories: Iterable[Trajectory],
  queries: Sequence[Query],
  tokenizer: Any,
  tag_set: TagSet = RECIPE_TAGS,
) -> list[Sample]:
  """Trajectories as samples.

  Args:
    trajectories: in any order.
    queries: the query of each group id.
    tokenizer: decodes the tokens.
    tag_set: tags of the tools that the agent had.
  """
  return [
    Sample(
      queries[t.group_id], tuple(t.texts(tokenizer)), t.finish_reason, tag_set
    )
    for t in trajectories
  ]


@runtime_checkable
class Reward(Protocol):
  """Scores trajectories. `score` runs in a thread of its own and may block."""

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """Scores a batch; one score a sample, in order."""


@dataclasses.dataclass(frozen=True)
class FunctionReward:
  """A reward that scores one sample at a time with a function.

  Attributes:
    function: takes a sample. It returns a `Score`, a bool (right or wrong) or a
      number. A number of 1 or more is right.
  """

  function: Callable[[Sample], Score | float]

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """Scores each sample by itself."""
    return [_as_score(self.function(sample)) for sample in batch]

  def __call__(self, sample: Sample) -> Score | float:
    """What the function says of one sample."""
    return self.function(sample)


def reward(function: Callable[[Sample], Score | float]) -> FunctionReward:
  """Makes a reward of a function, as a decorator."""
  return FunctionReward(function)


def _as_score(given: Any) -> Any:
  """A number or a bool as a score; anything else as it is."""
  if isinstance(given, bool):
    return Score(float(given), "right" if given else "wrong", correct=given)
  if isinstance(given, int | float):
    right = given >= 1
    status = "right" if right else "partly" if given > 0 else "wrong"
    return Score(float(given), status, correct=right)
  return given


def reward_name(reward: Any) -> str:
  """How errors name a reward."""
  if isinstance(reward, FunctionReward):
    function = reward.function
    return str(getattr(function, "__name__", type(function).__name__))
  return type(reward).__name__


def check_reward(reward: Any) -> None:
  """Refuses what is no reward.

  Raises:
    InputError: it has no method `score`.
  """
  if isinstance(reward, type) or not isinstance(reward, Reward):
    raise InputError(
      f"a reward has a method score(batch), got {reward!r:.80}: write a class "
      "with it, or put @rewards.reward before a function of one sample."
    )


def score_all(reward: Reward, batch: Sequence[Sample]) -> list[Score]:
  """Scores of a batch, checked.

  The reward runs in a thread of its own, one at a time. A signal reaches the
  main thread meanwhile; the thread is left behind then, and ends with the
  process.

  Args:
    reward: scores it.
    batch: samples; an empty batch is not given to the reward.

  Raises:
    InputError: the reward raised, or it returned something else than one
      finite score a sample; names the reward, the question and the rule.
  """
  check_reward(reward)
  if not batch:
    return []
  outcome: list[Any] = []

  def run() -> None:
    try:
      outcome.append(reward.score(batch))
    except BaseException as error:
      outcome.append(error)

  thread = threading.Thread(target=run, name="reward", daemon=True)
  thread.start()
  while thread.is_alive():
    thread.join(_POLL_S)
  (given,) = outcome
  if isinstance(given, InputError):
    raise given
  name = f"the reward {reward_name(reward)}"
  if isinstance(given, BaseException):
    where = traceback.extract_tb(given.__traceback__)[-1]
    raise InputError(
      f"{name} must not raise, got {type(given).__name__}: {given} "
      f"({where.filename}, line {where.lineno}), on {_named(batch)}: return a "
      "score for every sample."
    ) from given
  return _checked(given, batch, name)


def _checked(given: Any, batch: Sequence[Sample], name: str) -> list[Score]:
  if not isinstance(given, Sequence) or isinstance(given, str):
    raise InputError(
      f"{name} must return a list of scores, got {type(given).__name__} for "
      f"{_named(batch)}: return one Score a sample, in order."
    )
  if len(given) != len(batch):
    raise InputError(
      f"{name} must return one score a sample, got {len(given)} for "
      f"{len(batch)} samples ({_named(batch)}): return them all, in order."
    )
  for score, sample in zip(given, batch, strict=True):
    where = f"for question {sample.query.query_id!r}"
    if not isinstance(score, Score):
      raise InputError(
        f"{name} must return a Score, a bool or a number {where}, got "
        f"{type(score).__name__}: return rewards.Score(value, status)."
      )
    numbers = {"value": score.value, **score.parts}
    for part, number in numbers.items():
      if not isinstance(number, int | float) or not math.isfinite(number):
        raise InputError(
          f"{name} must give finite numbers, got {part} = {number!r} {where}: "
          "give a worst value instead."
        )
    if not isinstance(score.status, str) or not score.status:
      raise InputError(
        f"{name} must give a status that is a text, got {score.status!r} "
        f"{where}: name the rule that decided."
      )
  return list(given)


def _named(batch: Sequence[Sample]) -> str:
  """The questions of a batch, as errors name them."""
  ids = list(dict.fromkeys(sample.query.query_id for sample in batch))
  more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
  return f"question {', '.join(map(repr, ids[:3]))}{more}"
