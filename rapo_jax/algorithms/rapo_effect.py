r"""RAPO whose retrieval reward is the measured effect of each retrieved step.

Of each retrieved step k of a trajectory a twin is sampled: the same prefix and
random streams, without this step. With the outcome reward R,

    Z_ret = mean over k of (R - R of twin k),

in place of the entropies of Eq. 5-7 (arXiv 2603.03078); 0 without a
retrieval. All else is RAPO's: Eq. 9-10 scale the outcome advantage by it. This
is ours, not the paper's. The twins' tokens count in the budget.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import Plan, Signals, group_relative
from rapo_jax.algorithms.rapo import ALGORITHM as RAPO
from rapo_jax.algorithms.settings import ObjectiveConfig


def effect_rewards(signals: Signals) -> Float[Array, " B"]:
  """Mean effect of a trajectory's retrieved steps; 0 where none is measured."""
  measured = ~jnp.isnan(signals.retrieval_effects)
  effects = jnp.where(measured, signals.retrieval_effects, 0)
  count = jnp.sum(measured, axis=1)
  return jnp.sum(effects, axis=1) / jnp.maximum(count, 1)


def advantages(
  signals: Signals, settings: ObjectiveConfig
) -> Float[Array, " B"]:
  """Outcome advantages, scaled by what retrieval changed (Eq. 9-10)."""
  return objectives.rapo_advantages(
    group_relative(signals.rewards, signals, settings),
    group_relative(effect_rewards(signals), signals, settings),
    retrieval_coef=settings.retrieval_coef,
    min_factor=settings.min_retrieval_factor,
  )


ALGORITHM = dataclasses.replace(
  RAPO,
  name="rapo_effect",
  label="RAPO, measured effect",
  description="RAPO whose retrieval reward is the exact effect of each step.",
  plan=Plan(hybrid=True, retrieval_changes={"probe_share": 1.0}),
  advantages=advantages,
  colour="#8a4b2d",
  dark_colour="#d9a483",
)
