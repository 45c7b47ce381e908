"""GPPO (Su et al., 2025): clipped tokens keep a gradient.

PPO's value; where its clip cuts the gradient off, the gradient is that of a
ratio at the border. The dual clip is the authors' script's (10), not the
paper's. Their supervised term on right rollouts belongs to their recipe, and
is left out. So is the dynamic sampling of their script.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import Algorithm, TokenLoss, outcome_advantages
from rapo_jax.algorithms.settings import PLAIN_PPO, ObjectiveConfig


@dataclasses.dataclass(frozen=True)
class GradientPreserving:
  """The clipped loss whose clipped tokens keep a gradient.

  Attributes:
    low_scale: of tokens below the range; None for PPO's clip there. CE-GPPO
      (arXiv 2509.20712) has 0.25.
    high_scale: of tokens above it; None for PPO's clip there.
  """

  low_scale: float | None = 1.0
  high_scale: float | None = 1.0

  def __call__(
    self,
    log_probs: Float[Array, " N"],
    columns: Mapping[str, Float[Array, " N"]],
    settings: ObjectiveConfig,
  ) -> Float[Array, " N"]:
    """See `objectives.gradient_preserving_loss`."""
    return objectives.gradient_preserving_loss(
      log_probs,
      columns["old_log_probs"],
      columns["advantages"],
      clip_epsilon_low=settings.clip_epsilon_low,
      clip_epsilon_high=settings.clip_epsilon_high,
      dual_clip=settings.dual_clip,
      low_scale=self.low_scale,
      high_scale=self.high_scale,
    )


ALGORITHM = Algorithm(
  name="gppo",
  label="GPPO",
  description="Gradient-preserving clipping (arXiv 2508.07629).",
  advantages=outcome_advantages,
  loss=TokenLoss(GradientPreserving(), vanishes=True),
  changes={**PLAIN_PPO, "clip_epsilon_high": 0.28, "dual_clip": 10.0},
  colour="#9b2fae",
  dark_colour="#dd8fea",
)
