"""CISPO (MiniMax-M1, 2025): weights are clipped, and no token is dropped.

`-sg(clip(r, 1 - low, 1 + high)) A log p`. As in the paper no lower bound acts
(`clip_epsilon_low` 1); it does not say the upper one, and verl's example has
0.2. In TRL `epsilon_high` is the bound itself, here 1 is added.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import Algorithm, TokenLoss, outcome_advantages
from rapo_jax.algorithms.settings import ObjectiveConfig


def token_loss(
  log_probs: Float[Array, " N"],
  columns: Mapping[str, Float[Array, " N"]],
  settings: ObjectiveConfig,
) -> Float[Array, " N"]:
  """Log-probability, weighted by advantage and clipped ratio."""
  return objectives.clipped_weight_loss(
    log_probs,
    columns["old_log_probs"],
    columns["advantages"],
    clip_epsilon_low=settings.clip_epsilon_low,
    clip_epsilon_high=settings.clip_epsilon_high,
  )


ALGORITHM = Algorithm(
  name="cispo",
  label="CISPO",
  description="Clipped importance-sampling weights (arXiv 2506.13585).",
  advantages=outcome_advantages,
  loss=TokenLoss(token_loss, vanishes=True),
  changes={
    "retrieval_coef": 0.0,
    "shaping_coef": 0.0,
    "clip_epsilon_low": 1.0,
    "clip_epsilon_high": 0.2,
    "aggregation": "token",
    "aggregation_length": None,
  },
  colour="#c2410c",
  dark_colour="#fb9a6b",
)
