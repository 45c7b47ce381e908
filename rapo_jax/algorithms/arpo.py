"""ARPO (Dong et al., 2025): what was written before a fork is shared.

Soft advantages, the paper's default, are GRPO's: a shared prefix is trained
once a rollout, with each one's advantage. Hard advantages give it the mean of
the rollouts that share it. The authors' code has the soft ones alone.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  Algorithm,
  Plan,
  Signals,
  outcome_advantages,
)
from rapo_jax.algorithms.forks import EntropyForks
from rapo_jax.algorithms.settings import PLAIN_PPO, ObjectiveConfig


def hard_advantages(
  signals: Signals, settings: ObjectiveConfig
) -> Float[Array, "B S"]:
  """Outcome advantages of steps, the mean where rollouts share the step."""
  advantages = outcome_advantages(signals, settings)
  return objectives.shared_means(advantages, signals.node_ids)


_ARPO = Algorithm(
  name="arpo",
  label="ARPO",
  description="Rollouts that fork where entropy rises (arXiv 2507.19849).",
  plan=Plan(forks=EntropyForks()),
  advantages=outcome_advantages,
  loss=CLIPPED_LOSS,
  # Of the authors' scripts.
  changes={**PLAIN_PPO, "dual_clip": 3.0},
  colour="#8c3b3b",
  dark_colour="#e59a9a",
)
ALGORITHMS = (
  _ARPO,
  dataclasses.replace(
    _ARPO,
    name="arpo_published",
    label="ARPO, as published",
    description="ARPO as its authors' code forks, one step late.",
    plan=Plan(forks=EntropyForks(at="next")),
    colour="#6e2f4f",
    dark_colour="#d391b3",
  ),
)
