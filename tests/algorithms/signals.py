"""Signals by hand."""

import jax.numpy as jnp
import numpy as np

from rapo_jax.algorithms import Signals
from rapo_jax.trajectory import Source


def make(
  rewards,
  group_ids,
  *,
  anchors=None,
  returns=None,
  retrieval=None,
  tokens=None,
  trees=None,
  nodes=None,
  sources=None,
  effects=None,
) -> Signals:
  """Trajectories of as many policy steps as they have anchors.

  Args:
    rewards: of each.
    group_ids: of each.
    anchors: of each step, -1 for none; one step each by default.
    returns: rewards of the steps; by default the reward on the last one.
    retrieval: retrieval rewards; 0 by default.
    tokens: of each trajectory, all in its first step; by default one a step.
    trees: of each trajectory; by default one of its own.
    nodes: ids of the steps; by default none is shared.
    sources: of each trajectory; the policy by default.
    effects: of retrieved steps, NaN for none; by default none was measured.
  """
  rows = len(rewards)
  if anchors is None:
    anchors = np.arange(rows)[:, None]
  anchors = np.asarray(anchors, np.int32)
  policy = anchors >= 0
  if returns is None:
    returns = np.zeros(anchors.shape)
    last = policy.shape[1] - 1 - np.argmax(policy[:, ::-1], axis=1)
    returns[np.arange(rows), last] = rewards
  kinds = np.where(policy, 1, -1).astype(np.int32)
  step_ids = np.where(policy, np.arange(policy.shape[1]), -1)
  if tokens is not None:
    kinds = np.ones((rows, tokens), np.int32)
    step_ids = np.zeros((rows, tokens), np.int32)
  if trees is None:
    trees = np.arange(rows)
  if nodes is None:
    nodes = np.where(policy, np.arange(policy.size).reshape(policy.shape), -1)
  return Signals(
    rewards=jnp.asarray(rewards, jnp.float32),
    group_ids=jnp.asarray(group_ids, jnp.int32),
    kinds=jnp.asarray(kinds),
    step_ids=jnp.asarray(step_ids),
    entropies=jnp.zeros(kinds.shape),
    step_entropies=jnp.zeros(anchors.shape),
    policy_steps=jnp.asarray(policy),
    retrieved=jnp.zeros(anchors.shape, bool),
    retrieval_rewards=jnp.asarray(
      np.zeros(rows) if retrieval is None else retrieval, jnp.float32
    ),
    retrieval_effects=jnp.asarray(
      np.full(anchors.shape, np.nan) if effects is None else effects,
      jnp.float32,
    ),
    step_rewards=jnp.asarray(returns, jnp.float32),
    malformed=jnp.zeros(anchors.shape, bool),
    anchors=jnp.asarray(anchors),
    tree_ids=jnp.asarray(trees, jnp.int32),
    node_ids=jnp.asarray(nodes, jnp.int32),
    sources=jnp.asarray(
      np.full(rows, Source.POLICY) if sources is None else sources, jnp.int32
    ),
    num_groups=int(max(group_ids)) + 1,
  )
