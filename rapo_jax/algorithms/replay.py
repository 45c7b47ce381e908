"""Which groups of earlier updates are used again, and which questions asked.

Both are of Sun et al., 2025 (arXiv 2506.05316): rollout replay, and questions
chosen by their difficulty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rapo_jax.algorithms.groups import Keep, rewards_differ
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers


class StoredGroup(NamedTuple):
  """The rollouts of one question, as they were trained on.

  Attributes:
    query_id: of the question.
    rewards: of the rollouts.
    correct: which of them are correct.
    content: whatever is needed to train on them again.
  """

  query_id: str
  rewards: Float[np.ndarray, " G"]
  correct: Bool[np.ndarray, " G"]
  content: Any


@dataclasses.dataclass(frozen=True)
class Replay:
  """Groups of earlier updates in place of new rollouts.

  In the authors' code the first epoch replays nothing; here replay begins when
  the store holds as many groups as an update takes.

  Attributes:
    share: of an update's groups that come from the store, in [0, 1).
    capacity: most groups in the store.
    keep: says whether a group is stored.
  """

  share: float = 0.5
  capacity: int = 512
  keep: Keep = rewards_differ

  def __post_init__(self) -> None:
    check_numbers(self, "share", at_least=0, below=1)
    check_numbers(self, "capacity", at_least=1)
    if not callable(self.keep):
      raise InputError(
        f"Replay takes a function `keep`, got {self.keep!r}: hand one in."
      )

  def replayed(self, num_queries: int, num_stored: int) -> int:
    """How many of an update's groups come from the store."""
    wanted = int(self.share * num_queries)
    return wanted if num_stored >= wanted else 0

  def stored(
    self, store: Sequence[StoredGroup], fresh: Sequence[StoredGroup]
  ) -> list[StoredGroup]:
    """The store after an update: the newest group of each question, in order.

    Groups that teach nothing are left out, and the oldest make room.

    Args:
      store: before it.
      fresh: groups that were rolled out for it.
    """
    kept = [g for g in fresh if self.keep(g.rewards, g.correct)]
    newest: dict[str, StoredGroup] = {}
    for group in (*store, *kept):
      # A question that comes again goes to the end.
      newest.pop(group.query_id, None)
      newest[group.query_id] = group
    return list(newest.values())[-self.capacity :]

  def drawn(
    self,
    store: Sequence[StoredGroup],
    num_queries: int,
    rng: np.random.Generator,
  ) -> list[StoredGroup]:
    """Groups that an update takes from the store, uniformly, each once.

    Args:
      store: before the update.
      num_queries: groups of the update.
      rng: of the seed and the update, so that a resumed run draws the same.
    """
    count = self.replayed(num_queries, len(store))
    if not count:
      return []
    chosen = rng.choice(len(store), size=count, replace=False)
    return [store[i] for i in np.sort(chosen)]


def difficulties(
  correct: Bool[np.ndarray, "Q G"],
) -> Float[np.ndarray, " Q"]:
  """Difficulty of questions for the policy: the share of wrong rollouts."""
  return 1 - np.mean(correct, axis=1)


def predicted_difficulties(
  embeddings: Float[np.ndarray, "N D"],
  reference_embeddings: Float[np.ndarray, "Q D"],
  reference_difficulties: Float[np.ndarray, " Q"],
) -> Float[np.ndarray, " N"]:
  """Difficulty of questions that were not tried, from like ones that were.

  The mean of the reference, weighted by `softmax(z . z_i / sqrt(D))`. The
  authors calibrate it by a learned network, which is left out.

  Args:
    embeddings: of the questions.
    reference_embeddings: of questions with rollouts of the current policy.
    reference_difficulties: of these.
  """
  scores = embeddings @ reference_embeddings.T / embeddings.shape[1] ** 0.5
  weights = np.exp(scores - np.max(scores, axis=1, keepdims=True))
  return weights @ reference_difficulties / np.sum(weights, axis=1)


def draw_by_difficulty(
  predicted: Float[np.ndarray, " N"],
  count: int,
  rng: np.random.Generator,
  *,
  target: float = 0.5,
  temperature: float = 1e-3,
) -> Int[np.ndarray, " count"]:
  """Questions near a difficulty, drawn without replacement.

  In the order of `-|d - target| / temperature` plus Gumbel noise, which draws
  by the softmax of the former.

  Args:
    predicted: difficulty of each question.
    count: how many are drawn, at most N.
    rng: of the seed and the update.
    target: difficulty at which a group teaches most, in [0, 1].
    temperature: above 0.

  Returns:
    Places of the questions, the likeliest first.

  Raises:
    InputError: more are asked for than there are.
  """
  if count > len(predicted):
    raise InputError(
      f"{count} questions are to be drawn from {len(predicted)}: draw fewer."
    )
  scores = -np.abs(predicted - target) / temperature
  noisy = scores + rng.gumbel(size=len(predicted))
  return np.argsort(-noisy, kind="stable")[:count]
