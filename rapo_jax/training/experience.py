"""From trajectories to what the loss needs: rewards, advantages, fractions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rapo_jax import objectives, rewards
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.training.config import ObjectiveConfig
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory


class Experience(NamedTuple):
  """`B` trajectories and their training signal.

  Attributes:
    trajectories: as sampled.
    scores: outcome reward of each, with its reasons.
    retrieval_rewards: Z_ret (Eq. 7).
    retrieved_fraction: F_ret (Eq. 8).
    advantages: A (Eq. 10); 0 for what is left out.
    live_groups: for each group, whether the rewards that count differ.
    rewards: the scores' values, less what a response's length costs.
    counted: whether each trajectory counts. One that does not, as the system
      cut it (`Trajectory.is_cut_by_system`) or by `length_limit="mask"`, is
      left out of its group's mean and deviation, of the loss and of accuracy.
  """

  trajectories: list[Trajectory]
  scores: list[rewards.Score]
  retrieval_rewards: Float[np.ndarray, " B"]
  retrieved_fraction: Float[np.ndarray, " B"]
  advantages: Float[np.ndarray, " B"]
  live_groups: Bool[np.ndarray, " groups"]
  rewards: Float[np.ndarray, " B"]
  counted: Bool[np.ndarray, " B"]


def evaluate_trajectories(
  trajectories: Sequence[Trajectory],
  queries: Sequence[Query],
  tokenizer: Any,
  config: ObjectiveConfig,
  *,
  max_length: int,
  max_steps: int,
  max_response_tokens: int | None = None,
  reward: rewards.Reward = rewards.OUTCOME,
  tools: Sequence[str] = (),
) -> Experience:
  """Rewards and advantages of the trajectories of one rollout.

  Args:
    trajectories: any number for each query, in any order.
    queries: the query of each group id.
    tokenizer: decodes policy tokens for the reward.
    config: coefficients.
    max_length: most tokens that a trajectory can have. With it shapes are the
      same in every update, and nothing compiles again.
    max_steps: most steps, for the same reason.
    max_response_tokens: the response budget; `length_limit="soft"` needs it.
    reward: scores the trajectories.
    tools: names of the tools that the agent had, for the reward.

  Raises:
    InputError: the budget is needed and not given, or the reward fails.
  """
  scores = rewards.score_all(
    reward, rewards.samples_of(trajectories, queries, tokenizer, tools)
  )
  rewards_ = np.asarray([s.value for s in scores], np.float64)
  if config.length_limit == "soft":
    rewards_ = rewards_ + _length_penalties(
      trajectories, max_response_tokens, config.soft_length_share
    )
  values = rewards_.astype(np.float32)
  counted = np.asarray([_counts(t, config) for t in trajectories], bool)
  group_ids = np.asarray([t.group_id for t in trajectories], np.int32)
  retrieval, fraction, advantages = _advantages(
    *_pad(trajectories, max_length),
    values,
    # -1 belongs to no group.
    np.where(counted, group_ids, np.int32(-1)),
    num_steps=max_steps,
    num_groups=len(queries),
    config=config,
  )
  groups = [values[(group_ids == g) & counted] for g in range(len(queries))]
  live = [len(group) > 1 and np.ptp(group) > 0 for group in groups]
  return Experience(
    list(trajectories),
    scores,
    np.asarray(retrieval),
    np.asarray(fraction),
    np.asarray(advantages),
    np.asarray(live, bool),
    rewards_,
    counted,
  )


def _counts(trajectory: Trajectory, config: ObjectiveConfig) -> bool:
  """Whether a trajectory says something of the agent, as configured."""
  if trajectory.is_cut_by_system:
    return False
  at_limit = trajectory.finish_reason in (
    FinishReason.LENGTH,
    FinishReason.STEP_LIMIT,
  )
  return not (at_limit and config.length_limit == "mask")


def _length_penalties(
  trajectories: Sequence[Trajectory], budget: int | None, share: float
) -> Float[np.ndarray, " B"]:
  """Soft overlong punishment (DAPO, arXiv 2503.14476, Eq. 13), in [-1, 0].

  0 for responses of up to `(1 - share) * budget` tokens, tool results and
  retrieved steps included; from there it falls to -1 at the budget.
  """
  if budget is None:
    raise InputError(
      'length_limit="soft" needs max_response_tokens: give the budget of the '
      "rollout."
    )
  lengths = np.asarray([int(t.response_mask.sum()) for t in trajectories])
  over = (lengths - (1 - share) * budget) / (share * budget)
  return -np.clip(over, 0.0, 1.0)


def _pad(
  trajectories: Sequence[Trajectory], length: int
) -> tuple[
  Int[np.ndarray, "B L"], Int[np.ndarray, "B L"], Float[np.ndarray, "B L"]
]:
  """Kinds (-1 for padding), step ids and entropies in rectangles."""
  shape = (len(trajectories), length)
  kinds = np.full(shape, -1, np.int32)
  step_ids = np.full(shape, -1, np.int32)
  entropies = np.zeros(shape, np.float32)
  for row, t in enumerate(trajectories):
    kinds[row, : len(t.tokens)] = t.kinds
    step_ids[row, : len(t.tokens)] = t.step_ids
    entropies[row, : len(t.tokens)] = t.entropies
  return kinds, step_ids, entropies


@functools.partial(
  jax.jit, static_argnames=("num_steps", "num_groups", "config")
)
def _advantages(
  kinds: Int[Array, "B L"],
  step_ids: Int[Array, "B L"],
  entropies: Float[Array, "B L"],
  rewards_: Float[Array, " B"],
  group_ids: Int[Array, " B"],
  *,
  num_steps: int,
  num_groups: int,
  config: ObjectiveConfig,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
  """Retrieval rewards, retrieved fractions and advantages (Eq. 5-10)."""
  policy = kinds == TokenKind.POLICY
  retrieved = kinds == TokenKind.RETRIEVED
  steps = step_ids[:, :, None] == jnp.arange(num_steps)
  has_policy = jnp.any(steps & policy[:, :, None], axis=1)
  is_retrieved = jnp.any(steps & retrieved[:, :, None], axis=1)
  retrieval = objectives.retrieval_reward(
    objectives.step_entropy(
      entropies, step_ids, num_steps=num_steps, where=policy
    ),
    is_retrieved,
    where=has_policy | is_retrieved,
    scale=config.quality_scale,
  )
  normalise = functools.partial(
    objectives.group_advantages,
    group_ids=group_ids,
    num_groups=num_groups,
    ddof=config.advantage_ddof,
    eps=config.advantage_eps,
  )
  advantages = objectives.rapo_advantages(
    normalise(rewards_),
    normalise(retrieval),
    retrieval_coef=config.retrieval_coef,
    min_factor=config.min_retrieval_factor,
  )
  fraction = objectives.retrieved_fraction(
    retrieved, where=(kinds >= 0) & (kinds != TokenKind.PROMPT)
  )
  return retrieval, fraction, advantages
