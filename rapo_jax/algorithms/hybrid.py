"""Hybrid rollouts alone: RAPO's sampling, GRPO's advantages and loss."""

from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  Algorithm,
  Plan,
  outcome_advantages,
)

ALGORITHM = Algorithm(
  name="hybrid",
  label="hybrid alone",
  description="Hybrid rollouts without retrieval reward and shaping.",
  plan=Plan(hybrid=True),
  advantages=outcome_advantages,
  loss=CLIPPED_LOSS,
  changes={"retrieval_coef": 0.0, "shaping_coef": 0.0},
  colour="#00805d",
  dark_colour="#45c49b",
)
