"""RAPO (arXiv 2603.03078): hybrid rollouts, retrieval reward and shaping."""

from __future__ import annotations

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  Algorithm,
  Plan,
  Signals,
  group_relative,
)
from rapo_jax.algorithms.settings import ObjectiveConfig


def advantages(
  signals: Signals, settings: ObjectiveConfig
) -> Float[Array, " B"]:
  """Outcome advantages, scaled by how well was retrieved (Eq. 9-10)."""
  return objectives.rapo_advantages(
    group_relative(signals.rewards, signals, settings),
    group_relative(signals.retrieval_rewards, signals, settings),
    retrieval_coef=settings.retrieval_coef,
    min_factor=settings.min_retrieval_factor,
  )


ALGORITHM = Algorithm(
  name="rapo",
  label="RAPO",
  description="Retrieval-augmented policy optimization (arXiv 2603.03078).",
  plan=Plan(hybrid=True),
  advantages=advantages,
  loss=CLIPPED_LOSS,
  colour="#0067ad",
  dark_colour="#5fb4f2",
)
