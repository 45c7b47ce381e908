"""Supervised learning of another agent's trajectories.

`-log p` of the tokens that the agent wrote, averaged over the tokens of a
minibatch, with `p` at the temperature of the rollouts. Rewards are not read and
nothing is rolled out: a group holds rows of the agent alone. A group has as
many rows as one of the other methods. Where the agent has fewer trajectories
they come again, so that each question counts as much. RAPO's paper names this
baseline; LUFFY's multi-task baseline adds the loss to GRPO's.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from rapo_jax.algorithms.base import Algorithm, Plan, Signals, TokenLoss
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


ALGORITHM = Algorithm(
  name="sft",
  label="SFT",
  description="Supervised learning of another agent's trajectories.",
  plan=Plan(teacher="all"),
  advantages=advantages,
  loss=TokenLoss(token_loss, ("advantages",), vanishes=True),
  changes={
    "retrieval_coef": 0.0,
    "shaping_coef": 0.0,
    "aggregation": "token",
    "aggregation_length": None,
    "kl_coef": 0.0,
    "entropy_coef": 0.0,
    "length_limit": "keep",
  },
  colour="#5c5340",
  dark_colour="#cfc3a6",
)
