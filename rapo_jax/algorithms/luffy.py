"""LUFFY (Yan et al., 2025): a rollout of another agent in the group.

A group holds one trajectory of another agent, where there is one on its
question. The others are the policy's, and all are compared with each other. The
policy's tokens have PPO's loss, the agent's `-A p / (p + 0.1)`, with `p` the
policy's probability of the token.

`luffy` is the paper's equation. `luffy_published` is the authors' script: no
clip, no division by the deviation, sums over one constant, an entropy bonus. It
divides by the padded length, ours by the response budget and the number of
rows, which changes the gradient's length alone. Their entropy is the mean over
the tokens of a micro-batch, so that its weight beside the losses depends on the
rows of one; ours has the weights of the losses. Theirs writes an end of turn
behind another agent's answer; ours ends with it, as the policy's rollouts do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import (
  Algorithm,
  Plan,
  Signals,
  TokenLoss,
  outcome_advantages,
)
from rapo_jax.algorithms.settings import PLAIN_PPO, ObjectiveConfig
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
_LUFFY = Algorithm(
  name="luffy",
  label="LUFFY",
  description="A trajectory of another agent in each group (arXiv 2504.14945).",
  plan=Plan(teacher=1),
  advantages=outcome_advantages,
  loss=TokenLoss(MixedLoss(), _COLUMNS, vanishes=True),
  changes=PLAIN_PPO,
  colour="#1f5fbf",
  dark_colour="#86b3f7",
)
ALGORITHMS = (
  _LUFFY,
  dataclasses.replace(
    _LUFFY,
    name="luffy_published",
    label="LUFFY, as published",
    description="LUFFY as its authors' script trains, without a clip.",
    loss=TokenLoss(MixedLoss(clip=False), _COLUMNS, vanishes=True),
    changes={
      **_LUFFY.changes,
      "aggregation": "constant",
      "advantage_std": False,
      "entropy_coef": 0.001,
    },
    colour="#345c8a",
    dark_colour="#a5c4e8",
  ),
)
