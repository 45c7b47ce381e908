"""GiGPO (Feng et al., 2025): steps after one observation are compared.

The loss is PPO's with the experiment's clips, mean and KL; the authors' scripts
have 0.2 on both sides, a dual clip of 3, the mean over tokens and 0.001 of KL.
They subtract the price of a malformed call from the trajectory's reward, too.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rapo_jax import objectives
from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  Algorithm,
  Signals,
  group_relative,
)
from rapo_jax.algorithms.settings import ObjectiveConfig


@dataclasses.dataclass(frozen=True)
class StepAdvantages:
  """Of the trajectory in its group, plus of the step among its anchor's.

  Attributes:
    discount: of a step's return.
    weight: of the step's advantage.
    malformed_penalty: subtracted from the return of a step whose call could
      not be parsed.
    over_steps: whether a trajectory counts once a step in mean and deviation
      of its group, as in the authors' code. The paper counts it once.
  """

  discount: float = 0.95
  weight: float = 1.0
  malformed_penalty: float = 0.01
  over_steps: bool = False

  def __call__(
    self, signals: Signals, settings: ObjectiveConfig
  ) -> Float[Array, "B S"]:
    """Advantages of steps (Eq. 3-8 of the paper)."""
    returns = objectives.step_returns(
      signals.step_rewards, where=signals.policy_steps, discount=self.discount
    )
    returns -= self.malformed_penalty * signals.malformed
    step = _relative(returns, signals.anchors, returns.size, settings)
    if not self.over_steps:
      episode = group_relative(signals.rewards, signals, settings)[:, None]
      return episode + self.weight * step
    rewards = jnp.broadcast_to(signals.rewards[:, None], returns.shape)
    groups = jnp.where(signals.policy_steps, signals.group_ids[:, None], -1)
    episode = _relative(rewards, groups, signals.num_groups, settings)
    return episode + self.weight * step


def _relative(
  values: Float[Array, "B S"],
  ids: Int[Array, "B S"],
  num_groups: int,
  settings: ObjectiveConfig,
) -> Float[Array, "B S"]:
  """Values of steps relative to the others of their group."""
  return objectives.group_advantages(
    values.ravel(),
    ids.ravel(),
    num_groups=num_groups,
    ddof=settings.advantage_ddof,
    eps=settings.advantage_eps,
    std=settings.advantage_std,
  ).reshape(values.shape)


ALGORITHM = Algorithm(
  name="gigpo",
  label="GiGPO",
  description="Group-in-group policy optimization (arXiv 2505.10978).",
  advantages=StepAdvantages(),
  loss=CLIPPED_LOSS,
  changes={"retrieval_coef": 0.0, "shaping_coef": 0.0},
  colour="#5b4bc4",
  dark_colour="#a79bf5",
)
