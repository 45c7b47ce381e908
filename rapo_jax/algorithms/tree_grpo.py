"""Tree-GRPO (Ji et al., 2025): leaves are compared in question and in tree.

`A = z over the leaves of the question + z over the leaves of the tree`, with
GRPO's z. A shared prefix is trained once a leaf, with each leaf's advantage.
In the authors' code the only leaf of a tree adds its raw reward; here 0.
With `num_generations` of 8 two trees have four leaves each; the scripts have 6.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  Algorithm,
  Plan,
  Signals,
  group_relative,
)
from rapo_jax.algorithms.forks import TreeForks
from rapo_jax.algorithms.settings import PLAIN_PPO, ObjectiveConfig


@dataclasses.dataclass(frozen=True)
class TreeAdvantages:
  """Of leaves.

  Attributes:
    inter: whether a leaf is compared with all leaves of the question.
    intra: whether it is compared with the leaves of its tree.
  """

  inter: bool = True
  intra: bool = True

  def __call__(
    self, signals: Signals, settings: ObjectiveConfig
  ) -> Float[Array, " B"]:
    """The sum of what is compared."""
    advantages = jnp.zeros_like(signals.rewards)
    if self.inter:
      advantages += group_relative(signals.rewards, signals, settings)
    if self.intra:
      advantages += objectives.group_advantages(
        signals.rewards,
        signals.tree_ids,
        num_groups=len(signals.rewards),
        ddof=settings.advantage_ddof,
        eps=settings.advantage_eps,
        std=settings.advantage_std,
      )
    return advantages


ALGORITHM = Algorithm(
  name="tree_grpo",
  label="Tree-GRPO",
  description="Rollouts that grow as trees (arXiv 2509.21240).",
  plan=Plan(forks=TreeForks()),
  advantages=TreeAdvantages(),
  loss=CLIPPED_LOSS,
  # Of the authors' scripts.
  changes={**PLAIN_PPO, "dual_clip": 3.0, "kl_coef": 0.001, "kl_limit": 10.0},
  colour="#3f7d20",
  dark_colour="#93d66b",
)
