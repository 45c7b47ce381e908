"""Dr. GRPO (Liu et al., 2025): GRPO without its two divisions.

`A = R - mean` of the group, not divided by its deviation. The loss of a
trajectory is the sum over its tokens, not their mean, divided by one constant.
The constant is the response budget, as in the authors' code; the paper writes
none, and it changes the gradient's length alone.
"""

from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  Algorithm,
  outcome_advantages,
)
from rapo_jax.algorithms.settings import PLAIN_PPO

ALGORITHM = Algorithm(
  name="dr_grpo",
  label="Dr. GRPO",
  description="GRPO without the divisions by deviation and length "
  "(arXiv 2503.20783).",
  advantages=outcome_advantages,
  loss=CLIPPED_LOSS,
  changes={**PLAIN_PPO, "aggregation": "constant", "advantage_std": False},
  colour="#a14d1f",
  dark_colour="#e8a47c",
)
