"""Outcome rewards of trajectories."""

from rapo_jax.rewards.base import (
  RECIPE_TAGS,
  FunctionReward,
  Reward,
  Sample,
  Score,
  check_reward,
  reward,
  reward_name,
  samples_of,
  score_all,
)
from rapo_jax.rewards.f1 import is_match, token_f1
from rapo_jax.rewards.mathematics import MATH, MathReward, math_equal
from rapo_jax.rewards.outcome import (
  OUTCOME,
  WHOLE_FORMAT,
  OutcomeReward,
  OutcomeScore,
  ScoreStatus,
  last_boxed,
  score,
)

__all__ = [
  "MATH",
  "OUTCOME",
  "RECIPE_TAGS",
  "WHOLE_FORMAT",
  "FunctionReward",
  "MathReward",
  "OutcomeReward",
  "OutcomeScore",
  "Reward",
  "Sample",
  "Score",
  "ScoreStatus",
  "check_reward",
  "is_match",
  "last_boxed",
  "math_equal",
  "reward",
  "reward_name",
  "samples_of",
  "score",
  "score_all",
  "token_f1",
]
