"""How much of a trajectory its policy has written before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rapo_jax.trajectory import Trajectory

NGRAM = 4
"""Tokens that are compared at a time."""
MIN_NGRAMS = 32
"""A text of fewer says nothing of a policy that has collapsed."""
REPETITIVE = 0.5
"""A trajectory with at least this share of repeated n-grams is repetitive."""


def repeated_share(tokens: Int[np.ndarray, " T"]) -> float:
  """Share of n-grams that are copies of earlier ones; 0 in a short text.

  Args:
    tokens: what the policy wrote, in order.

  Returns:
    1 - distinct n-grams / n-grams, in [0, 1).
  """
  total = len(tokens) - NGRAM + 1
  if total < MIN_NGRAMS:
    return 0.0
  grams = np.lib.stride_tricks.sliding_window_view(tokens, NGRAM)
  return 1 - len(np.unique(grams, axis=0)) / total


def repetitive_fraction(trajectories: Sequence[Trajectory]) -> float:
  """Share of trajectories that mostly repeat themselves; 0 of none."""
  shares = [repeated_share(t.tokens[t.policy_mask]) for t in trajectories]
  return float(np.mean(np.asarray(shares) >= REPETITIVE)) if shares else 0.0
