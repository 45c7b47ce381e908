"""Which of the traces that were found is given: the retrieval policy.

Pure host code: numbers in, a choice out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rapo_jax.retrieval.step_trace import StepTrace


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """How one trace is chosen among those found.

  Attributes:
    top_k: traces considered, by similarity, at least 1. The paper has 3.
    min_similarity: least cosine similarity of a key, in [-1, 1]. The paper
      has no threshold, which is -1.
    min_reward: a trace's reward must be above it.
    breaker_failures: failed searches among the last `breaker_window` at which
      no more are tried for a while; at least 1. A search is one batch of
      waiting histories.
    breaker_window: searches that this counts, at least `breaker_failures`.
    breaker_cooldown_s: for how many seconds none is tried then.
  """

  top_k: int = 3
  min_similarity: float = -1.0
  min_reward: float = 0.0
  breaker_failures: int = 4
  breaker_window: int = 8
  breaker_cooldown_s: float = 60.0

  def __post_init__(self) -> None:
    if self.top_k < 1:
      raise ValueError(f"top_k must be at least 1, got {self.top_k}.")
    if not -1 <= self.min_similarity <= 1:
      raise ValueError(
        "min_similarity is a cosine and must lie in [-1, 1], got"
        f" {self.min_similarity}."
      )
    if not 1 <= self.breaker_failures <= self.breaker_window:
      raise ValueError(
        "breaker_failures must lie between 1 and breaker_window "
        f"({self.breaker_window}), got {self.breaker_failures}: lower it or "
        "raise breaker_window."
      )
    if self.breaker_cooldown_s < 0:
      raise ValueError(
        "breaker_cooldown_s must be at least 0 seconds, got "
        f"{self.breaker_cooldown_s}: raise it."
      )


@dataclasses.dataclass(frozen=True)
class Hit:
  """A trace to insert, and the similarity of its key to the history."""

  trace: StepTrace
  similarity: float


@dataclasses.dataclass(frozen=True)
class Miss:
  """Nothing qualified.

  Attributes:
    reason: "empty buffer", "below min_similarity" or "below min_reward".
  """

  reason: str


@dataclasses.dataclass(frozen=True)
class Failed:
  """The search itself failed; nothing is to be inserted.

  Attributes:
    reason: the error, for the log. Never training text.
    attempted: whether there was a search; there is none while too many before
      it have failed.
  """

  reason: str
  attempted: bool = True


def choose(
  similarities: Sequence[float],
  rewards: Sequence[float],
  config: RetrievalConfig,
) -> int | Miss:
  """Chooses one of the traces that were found.

  Those that pass the thresholds compete: the highest reward wins, and among
  equal rewards the greatest similarity.

  Args:
    similarities: of at most `top_k` traces, greatest first.
    rewards: of the same traces.
    config: the thresholds.

  Returns:
    The position of the trace, or why there is none.
  """
  found = list(zip(similarities, rewards, strict=True))
  near = [i for i, (s, _) in enumerate(found) if s >= config.min_similarity]
  if not near:
    return Miss("below min_similarity")
  good = [i for i in near if rewards[i] > config.min_reward]
  if not good:
    return Miss("below min_reward")
  # `max` keeps the first of equals, and they come by similarity.
  return max(good, key=lambda i: rewards[i])
