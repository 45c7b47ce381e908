"""REINFORCE++ (Hu et al., 2025): advantages normalised over the whole batch.

`A_t = (x_t - mean) / sqrt(variance + 1e-8)`, with mean and variance over all
policy tokens of the update. `x_t` is the discounted reward from token `t` on;
the baseline's variant takes the reward less the group's mean. KL is in the
loss (`kl_coef`), not in the reward. The variance has ddof 1, as in verl; the
authors' OpenRLHF has ddof 0.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import CLIPPED_LOSS, Algorithm, Signals
from rapo_jax.algorithms.settings import PLAIN_PPO, ObjectiveConfig
from rapo_jax.trajectory import TokenKind


@dataclasses.dataclass(frozen=True)
class WhitenedAdvantages:
  """Rewards of tokens, whitened over the batch.

  Attributes:
    baseline: whether the group's mean is subtracted first.
    discount: of a token's reward, for each policy token that follows.
  """

  baseline: bool = False
  discount: float = 1.0

  def __call__(
    self, signals: Signals, settings: ObjectiveConfig
  ) -> Float[Array, "B L"]:
    """Advantages of tokens; 0 for all but the policy's."""
    del settings
    values = signals.rewards
    if self.baseline:
      values = objectives.group_advantages(
        values, signals.group_ids, num_groups=signals.num_groups, std=False
      )
    policy = signals.kinds == TokenKind.POLICY
    counted = (signals.group_ids >= 0)[:, None] & policy
    tokens = jnp.where(policy, values[:, None], 0)
    if self.discount != 1:
      # Policy tokens from the next one to the end.
      left = jnp.cumsum(policy[:, ::-1], axis=1)[:, ::-1] - 1
      tokens *= self.discount ** jnp.maximum(left, 0)
    return objectives.whiten(tokens, where=counted)


ALGORITHMS = (
  Algorithm(
    name="reinforce_pp",
    label="REINFORCE++",
    description="Rewards normalised over the batch (arXiv 2501.03262).",
    advantages=WhitenedAdvantages(),
    loss=CLIPPED_LOSS,
    changes=PLAIN_PPO,
    colour="#00767f",
    dark_colour="#5cc3cb",
  ),
  Algorithm(
    name="reinforce_pp_baseline",
    label="REINFORCE++ baseline",
    description="Rewards less the group's mean, normalised over the batch "
    "(arXiv 2501.03262).",
    advantages=WhitenedAdvantages(baseline=True),
    loss=CLIPPED_LOSS,
    changes=PLAIN_PPO,
    colour="#2e5e63",
    dark_colour="#93b9be",
  ),
)
