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
from rapo_jax.algorithms import (
  ALGORITHMS,
  Algorithm,
  ObjectiveConfig,
  Signals,
)
from rapo_jax.algorithms.base import Advantages, RetrievalReward
from rapo_jax.algorithms.checks import check_advantages
from rapo_jax.algorithms.groups import Keep
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.tools.tags import TagSet
from rapo_jax.training.packing import PackedBatch
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory

RAPO = ALGORITHMS["rapo"]


class Experience(NamedTuple):
  """`B` trajectories and their training signal.

  Attributes:
    queries: the question of each group id.
    trajectories: as sampled.
    scores: outcome reward of each, with its reasons.
    retrieval_rewards: Z_ret (Eq. 7).
    retrieved_fraction: F_ret (Eq. 8).
    advantages: A (Eq. 10), of each trajectory or each of its tokens; 0 for
      what is left out.
    live_groups: for each group, whether the rewards that count differ.
    rewards: the scores' values, less what a response's length costs.
    counted: whether each trajectory counts. One does not if the system cut it
      (`Trajectory.is_cut_by_system`), or by `length_limit="mask"`. It is left
      out of its group's mean and deviation, of the loss and of accuracy.
    skipped: minibatches that the update has not taken, since their loss or
      gradient was not finite.
    trainer_log_probs: of each trajectory its tokens' log-probs, `[T]`, under
      the policy that their minibatch was computed with; NaN for a token that
      is not in the loss. Empty before the update.
  """

  queries: list[Query]
  trajectories: list[Trajectory]
  scores: list[rewards.Score]
  retrieval_rewards: Float[np.ndarray, " B"]
  retrieved_fraction: Float[np.ndarray, " B"]
  advantages: Float[np.ndarray, "B *L"]
  live_groups: Bool[np.ndarray, " groups"]
  rewards: Float[np.ndarray, " B"]
  counted: Bool[np.ndarray, " B"]
  skipped: tuple[PackedBatch, ...] = ()
  trainer_log_probs: tuple[Float[np.ndarray, " T"], ...] = ()

  def mean_advantage(self, index: int) -> float:
    """Advantage of a trajectory: the mean over its policy tokens."""
    values = self.advantages[index]
    if values.ndim == 0:
      return float(values)
    trajectory = self.trajectories[index]
    chosen = values[: len(trajectory.tokens)][trajectory.policy_mask]
    return float(np.mean(chosen)) if len(chosen) else 0.0


def score_trajectories(
  trajectories: Sequence[Trajectory],
  queries: Sequence[Query],
  tokenizer: Any,
  reward: rewards.Reward = rewards.OUTCOME,
  tag_set: TagSet = rewards.RECIPE_TAGS,
) -> list[rewards.Score]:
  """Outcome rewards of the trajectories.

  Args:
    trajectories: any number for each query, in any order.
    queries: the query of each group id.
    tokenizer: decodes policy tokens for the reward.
    reward: scores them.
    tag_set: tags of the agent's tools.

  Raises:
    InputError: the reward fails.
  """
  return rewards.score_all(
    reward, rewards.samples_of(trajectories, queries, tokenizer, tag_set)
  )


def evaluate_trajectories(
  trajectories: Sequence[Trajectory],
  queries: Sequence[Query],
  tokenizer: Any,
  config: ObjectiveConfig,
  *,
  max_length: int,
  max_steps: int,
  max_response_tokens: int | None = None,
  algorithm: Algorithm = RAPO,
  scores: Sequence[rewards.Score] | None = None,
) -> Experience:
  """Rewards and advantages of the trajectories of one rollout.

  Args:
    trajectories: any number for each query, in any order.
    queries: the query of each group id.
    tokenizer: decodes policy tokens for the reward.
    config: coefficients, as the algorithm reads them.
    max_length: most tokens that a trajectory can have. With it shapes are the
      same in every update, and nothing compiles again.
    max_steps: most steps, for the same reason.
    max_response_tokens: the response budget; `length_limit="soft"` needs it.
    algorithm: makes the advantages.
    scores: of the trajectories; None to score them by the recipe.

  Raises:
    InputError: the budget is needed and not given, or advantages are not
      finite.
  """
  if scores is None:
    scores = score_trajectories(trajectories, queries, tokenizer)
  rewards_ = np.asarray([s.value for s in scores], np.float64)
  if config.length_limit == "soft":
    rewards_ = rewards_ + _length_penalties(
      trajectories, max_response_tokens, config.soft_length_share
    )
  values = rewards_.astype(np.float32)
  counted = np.asarray([counts(t, config) for t in trajectories], bool)
  group_ids = np.asarray([t.group_id for t in trajectories], np.int32)
  steps = _steps(trajectories, values, counted, max_steps)
  retrieval, fraction, advantages = _advantages(
    *_pad(trajectories, max_length),
    values,
    # -1 belongs to no group.
    np.where(counted, group_ids, np.int32(-1)),
    steps,
    _forks(trajectories, counted, max_steps),
    np.asarray([t.source for t in trajectories], np.int32),
    num_groups=len(queries),
    retrieval_reward=algorithm.retrieval_reward,
    advantages=algorithm.advantages,
    config=config,
  )
  check_advantages(
    algorithm,
    advantages,
    (len(trajectories), max_length),
    num_steps=max_steps,
  )
  groups = [values[(group_ids == g) & counted] for g in range(len(queries))]
  live = [len(group) > 1 and np.ptp(group) > 0 for group in groups]
  return Experience(
    list(queries),
    list(trajectories),
    list(scores),
    np.asarray(retrieval),
    np.asarray(fraction),
    _by_token(np.asarray(advantages), trajectories, max_length),
    np.asarray(live, bool),
    rewards_,
    counted,
  )


def counts(trajectory: Trajectory, config: ObjectiveConfig) -> bool:
  """Whether a trajectory says something of the agent, as configured."""
  if trajectory.is_cut_by_system:
    return False
  at_limit = trajectory.finish_reason in (
    FinishReason.LENGTH,
    FinishReason.STEP_LIMIT,
  )
  return not (at_limit and config.length_limit == "mask")


def judged(keep: Keep, scores: Sequence[rewards.Score]) -> bool:
  """What a judgement of rewards says of some trajectories.

  Args:
    keep: of rewards, and of what is correct.
    scores: of the trajectories.
  """
  return bool(
    keep(
      np.asarray([score.value for score in scores]),
      np.asarray([score.correct for score in scores], bool),
    )
  )


def _length_penalties(
  trajectories: Sequence[Trajectory], budget: int | None, share: float
) -> Float[np.ndarray, " B"]:
  """What each response costs for its length, see `overlong_penalty`.

  Tool results and retrieved steps are part of a response.
  """
  if budget is None:
    raise InputError(
      'length_limit="soft" needs max_response_tokens: give the budget of the '
      "rollout."
    )
  lengths = np.asarray([int(t.response_mask.sum()) for t in trajectories])
  return np.asarray(
    objectives.overlong_penalty(lengths, limit=budget, share=share), np.float64
  )


class _Steps(NamedTuple):
  """What is known of each step, `[B, S]`; see `Signals`."""

  rewards: Float[Array, "B S"]
  malformed: Bool[Array, "B S"]
  anchors: Int[Array, "B S"]
  effects: Float[Array, "B S"]


def _steps(
  trajectories: Sequence[Trajectory],
  values: Float[np.ndarray, " B"],
  counted: Bool[np.ndarray, " B"],
  num_steps: int,
) -> _Steps:
  """Rewards, malformed calls, anchors and effects of the steps."""
  shape = (len(trajectories), num_steps)
  rewards_ = np.zeros(shape, np.float32)
  malformed = np.zeros(shape, bool)
  effects = np.full(shape, np.nan, np.float32)
  anchors = np.full(shape, -1, np.int32)
  known: dict[tuple[int, bytes], int] = {}
  for row, trajectory in enumerate(trajectories):
    last = -1
    before = b""
    for segment in trajectory.segments():
      span = trajectory.tokens[segment.start : segment.end]
      if segment.kind is TokenKind.POLICY and segment.step_id > last:
        last = segment.step_id
        if counted[row]:
          key = (trajectory.group_id, before)
          anchors[row, last] = known.setdefault(key, len(known))
      before = span.tobytes()
    if last >= 0:
      rewards_[row, last] = values[row]
    for event in trajectory.tool_events:
      malformed[row, event.step_id] |= event.status == "malformed"
    for found in trajectory.retrieval_events:
      if found.effect is not None:
        effects[row, found.step_id] = found.effect
  return _Steps(*map(jnp.asarray, (rewards_, malformed, anchors, effects)))


class _Forks(NamedTuple):
  """What trajectories share, see `Signals`."""

  tree_ids: Int[Array, " B"]
  node_ids: Int[Array, "B S"]


def _forks(
  trajectories: Sequence[Trajectory],
  counted: Bool[np.ndarray, " B"],
  num_steps: int,
) -> _Forks:
  """Trees and nodes; an index is greater than that of the parent."""
  count = len(trajectories)
  trees = np.arange(count, dtype=np.int32)
  nodes = np.arange(count * num_steps, dtype=np.int32).reshape(count, -1)
  rows = {(t.group_id, t.index): row for row, t in enumerate(trajectories)}
  for row in sorted(range(count), key=lambda row: trajectories[row].index):
    trajectory = trajectories[row]
    nodes[row, trajectory.num_steps :] = -1
    if trajectory.parent is not None:
      parent = rows[trajectory.group_id, trajectory.parent]
      shared = slice(0, trajectory.shared_steps)
      trees[row] = trees[parent]
      nodes[row, shared] = nodes[parent, shared]
  trees[~counted], nodes[~counted] = -1, -1
  return _Forks(jnp.asarray(trees), jnp.asarray(nodes))


def _by_token(
  advantages: Float[np.ndarray, "B *_"],
  trajectories: Sequence[Trajectory],
  length: int,
) -> Float[np.ndarray, "B *L"]:
  """Advantages of trajectories as they are, those of steps by token."""
  if advantages.ndim == 1 or advantages.shape[1] == length:
    return advantages
  tokens = np.zeros((len(trajectories), length), np.float32)
  for row, trajectory in enumerate(trajectories):
    of_step = advantages[row, np.maximum(trajectory.step_ids, 0)]
    tokens[row, : len(of_step)] = np.where(trajectory.policy_mask, of_step, 0)
  return tokens


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
  jax.jit,
  static_argnames=("num_groups", "retrieval_reward", "advantages", "config"),
)
def _advantages(
  kinds: Int[Array, "B L"],
  step_ids: Int[Array, "B L"],
  entropies: Float[Array, "B L"],
  rewards_: Float[Array, " B"],
  group_ids: Int[Array, " B"],
  steps_: _Steps,
  forks: _Forks,
  sources: Int[Array, " B"],
  *,
  num_groups: int,
  retrieval_reward: RetrievalReward,
  advantages: Advantages,
  config: ObjectiveConfig,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, "B *_"]]:
  """Retrieval rewards, retrieved fractions and advantages (Eq. 5-10)."""
  num_steps = steps_.rewards.shape[1]
  policy = kinds == TokenKind.POLICY
  retrieved = kinds == TokenKind.RETRIEVED
  steps = step_ids[:, :, None] == jnp.arange(num_steps)
  has_policy = jnp.any(steps & policy[:, :, None], axis=1)
  is_retrieved = jnp.any(steps & retrieved[:, :, None], axis=1)
  step_entropies = objectives.step_entropy(
    entropies, step_ids, num_steps=num_steps, where=policy
  )
  retrieval = retrieval_reward(
    step_entropies,
    is_retrieved,
    where=has_policy | is_retrieved,
    scale=config.quality_scale,
  )
  signals = Signals(
    rewards=rewards_,
    group_ids=group_ids,
    kinds=kinds,
    step_ids=step_ids,
    entropies=entropies,
    step_entropies=step_entropies,
    policy_steps=has_policy,
    retrieved=is_retrieved,
    retrieval_rewards=retrieval,
    retrieval_effects=steps_.effects,
    step_rewards=steps_.rewards,
    malformed=steps_.malformed,
    anchors=steps_.anchors,
    tree_ids=forks.tree_ids,
    node_ids=forks.node_ids,
    sources=sources,
    num_groups=num_groups,
  )
  fraction = objectives.retrieved_fraction(
    retrieved, where=(kinds >= 0) & (kinds != TokenKind.PROMPT)
  )
  return retrieval, fraction, advantages(signals, config)
