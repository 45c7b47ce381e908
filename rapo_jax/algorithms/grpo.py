"""GRPO (Shao et al., 2024): rewards relative to the group, a clipped ratio."""

from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  Algorithm,
  outcome_advantages,
)

ALGORITHM = Algorithm(
  name="grpo",
  label="GRPO",
  description="Group relative policy optimization (arXiv 2402.03300).",
  advantages=outcome_advantages,
  loss=CLIPPED_LOSS,
  changes={"retrieval_coef": 0.0, "shaping_coef": 0.0},
  colour="#c75000",
  dark_colour="#f48e49",
)
