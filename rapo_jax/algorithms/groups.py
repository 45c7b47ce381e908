"""Which groups teach anything, by their rewards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

Keep = Callable[[Float[np.ndarray, " G"], Bool[np.ndarray, " G"]], bool]
"""Whether a group is trained on, of its rewards and of what is correct."""


def rewards_differ(
  rewards: Float[np.ndarray, " G"], correct: Bool[np.ndarray, " G"]
) -> bool:
  """Whether a group teaches anything; one of one rollout is kept.

  Rewards are compared exactly: the deviation of equal rewards may be above 0
  by rounding.
  """
  del correct
  return len(rewards) == 1 or bool(np.any(rewards != rewards[0]))
