"""Outcome rewards of trajectories."""

from rapo_jax.rewards.f1 import is_match, token_f1
from rapo_jax.rewards.outcome import (
  WHOLE_FORMAT,
  Score,
  ScoreStatus,
  last_boxed,
  score,
)

__all__ = [
  "WHOLE_FORMAT",
  "Score",
  "ScoreStatus",
  "is_match",
  "last_boxed",
  "score",
  "token_f1",
]
