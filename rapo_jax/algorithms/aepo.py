"""AEPO (Dong et al., 2025): forks, gradients and advantages by entropy.

Advantages of tokens are GRPO's times `1 + 0.2 (H - mean) / std`, where H is the
token's entropy. The loss is PPO's, whose tokens above the clip range keep a
gradient as GPPO's do. In the published scripts entropies are never computed,
so the advantages are GRPO's: `aepo_published` is what made the numbers. Mean
and deviation are over all policy tokens of the update, the authors' over a
micro-batch. H is of the policy that sampled, theirs of the current one. The
factor is bounded from below, as RAPO's, so that it turns no sign.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import (
  Algorithm,
  Plan,
  Signals,
  TokenLoss,
  outcome_advantages,
)
from rapo_jax.algorithms.forks import BalancedForks
from rapo_jax.algorithms.gppo import GradientPreserving
from rapo_jax.algorithms.settings import PLAIN_PPO, ObjectiveConfig
from rapo_jax.objectives.advantages import MIN_RETRIEVAL_FACTOR
from rapo_jax.trajectory import TokenKind


@dataclasses.dataclass(frozen=True)
class BalancedAdvantages:
  """Outcome advantages, raised where the policy was unsure.

  Attributes:
    weight: of the normalised entropy.
    min_factor: least factor of an advantage; None for the equation as it is
      written, whatever becomes of the sign.
  """

  weight: float = 0.2
  min_factor: float | None = MIN_RETRIEVAL_FACTOR

  def __call__(
    self, signals: Signals, settings: ObjectiveConfig
  ) -> Float[Array, "B L"]:
    """Advantages of tokens; 0 for all but the policy's."""
    policy = signals.kinds == TokenKind.POLICY
    return objectives.balanced_advantages(
      outcome_advantages(signals, settings),
      signals.entropies,
      where=policy & (signals.group_ids >= 0)[:, None],
      weight=self.weight,
      min_factor=self.min_factor,
    )


LOSS = TokenLoss(GradientPreserving(low_scale=None), vanishes=True)
_AEPO = Algorithm(
  name="aepo",
  label="AEPO",
  description="Forks and gradients balanced by entropy (arXiv 2510.14545).",
  plan=Plan(forks=BalancedForks()),
  advantages=BalancedAdvantages(),
  loss=LOSS,
  # Of the authors' scripts.
  changes={**PLAIN_PPO, "dual_clip": 3.0},
  colour="#4d4d9e",
  dark_colour="#a8a8ec",
)
ALGORITHMS = (
  _AEPO,
  dataclasses.replace(
    _AEPO,
    name="aepo_published",
    label="AEPO, as published",
    description="AEPO as its scripts train: entropies do not count.",
    plan=Plan(forks=BalancedForks(at="next")),
    advantages=outcome_advantages,
    colour="#2f5f8a",
    dark_colour="#8fc0ea",
  ),
)
