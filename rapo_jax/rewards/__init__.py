"""Outcome rewards of trajectories."""

from rapo_jax.rewards.f1 import token_f1
from rapo_jax.rewards.outcome import Score, ScoreStatus, score

__all__ = ["Score", "ScoreStatus", "score", "token_f1"]
