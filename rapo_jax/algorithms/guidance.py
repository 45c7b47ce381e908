"""Rules when hybrid rollouts may retrieve; ours, not the paper's.

A group has a plain half, which never retrieves, and a hybrid half. A rule asks
of the plain half whether its question needs guidance.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from rapo_jax.algorithms.groups import Keep, rewards_differ
from rapo_jax.errors import InputError


def dead(
  rewards: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]
) -> bool:
  """Whether no reward differs; so too where no rollout counts."""
  return not len(rewards) or not rewards_differ(rewards, correct)


def unsolved(
  rewards: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]
) -> bool:
  """Whether no rollout is correct."""
  del rewards
  return not np.any(correct)


@dataclasses.dataclass(frozen=True)
class GuideRule:
  """When the hybrid half of a group may retrieve.

  Attributes:
    needed: says whether a question needs guidance, of the rewards of its plain
      half and of what is correct there. Rollouts that do not count are left
      out.
    by: "group" samples the plain half first. The hybrid half of a question may
      retrieve only if the question needs it. "share" samples both halves at
      once: the probability of a retrieval is scaled by the share of questions
      that needed guidance in the update before, 1 in the first update.

  Raises:
    InputError: `needed` cannot be called, or `by` is neither.
  """

  needed: Keep
  by: Literal["group", "share"] = "group"

  def __post_init__(self) -> None:
    if not callable(self.needed) or self.by not in ("group", "share"):
      raise InputError(
        "GuideRule takes a function `needed`, and group or share as `by`, got "
        f"{self.needed!r} and {self.by!r}: correct it."
      )
