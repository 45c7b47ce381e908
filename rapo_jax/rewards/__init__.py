"""Outcome rewards of trajectories."""

from collections.abc import Mapping

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
from rapo_jax.rewards.gaia import GAIA, GaiaReward
from rapo_jax.rewards.judge import JudgeReward
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
from rapo_jax.rewards.qa import (
  EXACT_MATCH,
  QA,
  ExactMatchReward,
  QaReward,
  answer_f1,
  exact_match,
  normalized_answer,
)

REWARDS: Mapping[str, Reward] = {
  "recipe": OUTCOME,
  "math": MATH,
  "qa": QA,
  "exact_match": EXACT_MATCH,
  "gaia": GAIA,
}
"""Rewards that a task can be given by name, on the command line."""

__all__ = [
  "EXACT_MATCH",
  "GAIA",
  "MATH",
  "OUTCOME",
  "QA",
  "RECIPE_TAGS",
  "REWARDS",
  "WHOLE_FORMAT",
  "ExactMatchReward",
  "FunctionReward",
  "GaiaReward",
  "JudgeReward",
  "MathReward",
  "OutcomeReward",
  "OutcomeScore",
  "QaReward",
  "Reward",
  "Sample",
  "Score",
  "ScoreStatus",
  "answer_f1",
  "check_reward",
  "exact_match",
  "is_match",
  "last_boxed",
  "math_equal",
  "normalized_answer",
  "reward",
  "reward_name",
  "samples_of",
  "score",
  "score_all",
  "token_f1",
]
