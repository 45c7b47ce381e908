"""Supervised learning of another agent's trajectories.

`-log p` of the tokens that the agent wrote, averaged over tokens. Rewards and
the policy's own rollouts are not read: a group holds rows of the agent alone.
LUFFY's multi-task baseline adds this loss to GRPO's.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from rapo_jax.algorithms.base import Signals, TokenLoss
from rapo_jax.algorithms.settings import ObjectiveConfig
from rapo_jax.trajectory import Source


def advantages(
  signals: Signals, settings: ObjectiveConfig
) -> Float[Array, " B"]:
  """1 for the trajectories of another agent, 0 for the policy's."""
  del settings
  agent = (signals.sources == Source.AGENT) & (signals.group_ids >= 0)
  return jnp.where(agent, 1.0, 0.0)


def token_loss(
  log_probs: Float[Array, " N"],
  columns: Mapping[str, Float[Array, " N"]],
  settings: ObjectiveConfig,
) -> Float[Array, " N"]:
  """The negative log-likelihood, weighted by the advantage."""
  del settings
  return -columns["advantages"] * log_probs


LOSS = TokenLoss(token_loss, ("advantages",))
CHANGES = {
  "retrieval_coef": 0.0,
  "shaping_coef": 0.0,
  "aggregation": "token",
  "aggregation_length": None,
}
