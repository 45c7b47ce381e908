"""GSPO (Zheng et al., 2025): one clipped ratio a trajectory."""

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
  """The clipped loss on the trajectory's ratio (Eq. 5-7 there)."""
  return objectives.clipped_loss(
    objectives.segment_ratio(log_probs, columns["segment_log_ratio"]),
    columns["advantages"],
    clip_epsilon_low=settings.clip_epsilon_low,
    clip_epsilon_high=settings.clip_epsilon_high,
    dual_clip=settings.dual_clip,
  )


ALGORITHM = Algorithm(
  name="gspo",
  label="GSPO",
  description="Group sequence policy optimization (arXiv 2507.18071).",
  advantages=outcome_advantages,
  loss=TokenLoss(
    token_loss,
    ("advantages", "segment_log_ratio"),
    segment="trajectory",
    vanishes=True,
  ),
  changes={
    "retrieval_coef": 0.0,
    "shaping_coef": 0.0,
    "clip_epsilon_low": 3e-4,
    "clip_epsilon_high": 4e-4,
    "dual_clip": None,
    "aggregation": "sequence",
    "aggregation_length": None,
  },
  colour="#8a6d00",
  dark_colour="#d9b740",
)
