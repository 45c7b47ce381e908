"""LUFFY (Yan et al., 2025): rollouts of another agent in the group.

A group holds seven rollouts of the policy and one of another agent, and all
are compared with each other. The policy's tokens have PPO's loss, the agent's
`-A p / (p + 0.1)`, with `p` the policy's probability of the token.

Settings of the paper's equation are `CHANGES`. The authors' script is
`PUBLISHED` with `PUBLISHED_CHANGES`: no clip, no division by the deviation,
sums over one constant, an entropy bonus. It divides by the padded length, ours
by the response budget and the number of rows; the gradient's length alone
differs. Groups need rows of another agent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import Signals, TokenLoss
from rapo_jax.algorithms.settings import ObjectiveConfig
from rapo_jax.trajectory import Source


@dataclasses.dataclass(frozen=True)
class MixedLoss:
  """PPO's loss for the policy's tokens, a shaped one for another agent's.

  Attributes:
    gamma: of the shaping; None for `-A p`.
    clip: whether the policy's ratio is clipped.
  """

  gamma: float | None = 0.1
  clip: bool = True

  def __call__(
    self,
    log_probs: Float[Array, " N"],
    columns: Mapping[str, Float[Array, " N"]],
    settings: ObjectiveConfig,
  ) -> Float[Array, " N"]:
    """See `objectives.mixed_policy_loss`."""
    return objectives.mixed_policy_loss(
      log_probs,
      columns["old_log_probs"],
      columns["advantages"],
      columns["source"] == Source.AGENT,
      gamma=self.gamma,
      clip_epsilon_low=settings.clip_epsilon_low,
      clip_epsilon_high=settings.clip_epsilon_high,
      clip=self.clip,
    )


def on_policy_advantages(
  signals: Signals, settings: ObjectiveConfig
) -> Float[Array, " B"]:
  """Outcome rewards relative to the policy's own rollouts.

  The authors' variant beside a supervised loss; LUFFY itself compares with all.
  """
  return objectives.reference_advantages(
    signals.rewards,
    signals.group_ids,
    signals.sources != Source.AGENT,
    num_groups=signals.num_groups,
    ddof=settings.advantage_ddof,
    eps=settings.advantage_eps,
    std=settings.advantage_std,
  )


_COLUMNS = ("old_log_probs", "advantages", "source")
LOSS = TokenLoss(MixedLoss(), _COLUMNS)
PUBLISHED = TokenLoss(MixedLoss(clip=False), _COLUMNS)
CHANGES = {
  "retrieval_coef": 0.0,
  "shaping_coef": 0.0,
  "clip_epsilon_low": 0.2,
  "clip_epsilon_high": 0.2,
  "dual_clip": None,
  "aggregation": "token",
  "aggregation_length": None,
}
PUBLISHED_CHANGES = {
  **CHANGES,
  "aggregation": "constant",
  "advantage_std": False,
  "entropy_coef": 0.001,
}
