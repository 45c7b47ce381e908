"""One RAPO update, told as its stages.

    1. rollout       G trajectories a query; hybrid ones retrieve between steps
    2. rewards       outcome reward from policy tokens; retrieval reward from
                     step entropies (Eq. 5-7)
    3. advantages    both normalised in their group and joined (Eq. 9-10)
    4. pack          minibatches of queries, trajectories side by side in rows
    5. update        clipped objective with importance shaping (Eq. 8, 11)

GRPO is the same code with no hybrid trajectories and both coefficients 0.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from rapo_jax import objectives, rewards
from rapo_jax.data import Query
from rapo_jax.models import sharding
from rapo_jax.rollout import (
  RolloutConfig,
  RolloutEngine,
  RolloutStats,
  group_requests,
)
from rapo_jax.training.config import (
  ObjectiveConfig,
  OptimizerConfig,
  UpdateConfig,
)
from rapo_jax.training.experience import Experience, evaluate_trajectories
from rapo_jax.training.packing import PackedBatch, pack
from rapo_jax.training.repetition import repetitive_fraction
from rapo_jax.training.update import (
  TrainState,
  UpdateMetrics,
  update_minibatch,
)
from rapo_jax.trajectory import FinishReason, TokenKind


class Trainer:
  """Runs updates. Holds no state of its own between them.

  Args:
    engine: generates trajectories.
    tokenizer: decodes them for the reward.
    rollout: G, N_hybrid and temperature are read here, the rest by the engine.
    objective: coefficients and clip range.
    optimizer: of the train state.
    update: batch shapes.
    seed: of sampling and retrieval.
    mesh: devices that share the update; None for one device.
    reward: scores the trajectories.
    tools: names of the agent's tools, for the reward.

  Raises:
    ValueError: the mesh does not divide the rows of a micro-batch.
  """

  def __init__(
    self,
    engine: RolloutEngine,
    tokenizer: Any,
    *,
    rollout: RolloutConfig,
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig,
    update: UpdateConfig,
    seed: int,
    mesh: jax.sharding.Mesh | None = None,
    reward: rewards.Reward = rewards.OUTCOME,
    tools: Sequence[str] = (),
  ):
    if mesh is not None:
      sharding.check_rows(
        "rows_per_microbatch", update.rows_per_microbatch, mesh
      )
    self._mesh = mesh
    self._engine = engine
    self._tokenizer = tokenizer
    self._rollout = rollout
    self._objective = objective
    self._optimizer = optimizer
    self._update = update
    self._seed = seed
    self._reward = reward
    self._tools = tuple(tools)

  def step(
    self,
    state: TrainState,
    queries: Sequence[Query],
    prompts: Sequence[Int[np.ndarray, " _"]],
    update: int,
  ) -> tuple[TrainState, Experience, dict[str, float]]:
    """One rollout and the minibatch updates on it.

    Args:
      state: donated.
      queries: `queries_per_update` of them.
      prompts: token ids of each query's prompt.
      update: number of updates before this one.

    Returns:
      The new state, what it was trained on, and metrics of the update.
    """
    began = time.perf_counter()
    requests = group_requests(
      queries,
      prompts,
      num_generations=self._rollout.num_generations,
      num_hybrid=self._rollout.num_hybrid,
    )
    trajectories, stats = self._engine.rollout(
      state.model, requests, seed=self._seed, update=update
    )
    experience = evaluate_trajectories(
      trajectories,
      queries,
      self._tokenizer,
      self._objective,
      max_length=self._engine.max_length,
      max_steps=self._rollout.max_steps,
      max_response_tokens=self._rollout.max_response_tokens,
      reward=self._reward,
      tools=self._tools,
    )
    sampled = time.perf_counter()
    history: list[UpdateMetrics] = []
    padding: list[float] = []
    for _ in range(self._update.epochs):
      for batch in minibatches(experience, self._update, self._objective):
        with sharding.use_mesh(self._mesh):
          state, metrics = update_minibatch(
            state,
            sharding.replicate(batch, self._mesh),
            objective=self._objective,
            optimizer=self._optimizer,
            temperature=self._rollout.temperature,
            dtype=self._rollout.dtype,
            remat=self._update.remat,
            head_chunk=self._update.head_chunk,
          )
        history.append(jax.device_get(metrics))
        padding.append(batch.padding_fraction)
    report = summarise(experience, stats, history)
    report["update/seconds"] = time.perf_counter() - sampled
    report["update/padding_fraction"] = float(np.mean(padding))
    report["step/seconds"] = time.perf_counter() - began
    return state, experience, report


def minibatches(
  experience: Experience, update: UpdateConfig, objective: ObjectiveConfig
) -> list[PackedBatch]:
  """Packed batches of `queries_per_minibatch` groups each, in order.

  Trajectories that do not count are packed too, with weight 0: shapes are
  those of any other minibatch.

  Args:
    experience: all trajectories of an update.
    update: how many groups, rows and tokens a minibatch has.
    objective: how token losses are weighted.
  """
  per_batch = update.queries_per_minibatch
  trajectories = experience.trajectories
  batches = []
  for first in range(0, update.queries_per_update, per_batch):
    members = [
      i
      for i, t in enumerate(trajectories)
      if first <= t.group_id < first + per_batch
    ]
    chosen = [trajectories[i] for i in members]
    where = np.zeros((len(chosen), update.row_length), bool)
    counted = experience.counted[members]
    for row, trajectory in enumerate(chosen):
      length = len(trajectory.tokens)
      where[row, :length] = trajectory.policy_mask & counted[row]
    weights = np.asarray(
      objectives.loss_weights(where, aggregation=objective.aggregation)
    )
    if objective.aggregation == "sequence" and counted.any():
      # The mean is over those that count. A factor of 1 changes no bit.
      weights = weights * np.float32(len(counted) / counted.sum())
    batches.append(
      pack(
        chosen,
        advantages=experience.advantages[members],
        retrieved_fraction=experience.retrieved_fraction[members],
        weights=weights,
        row_length=update.row_length,
        rows_per_microbatch=update.rows_per_microbatch,
      )
    )
  return batches


def summarise(
  experience: Experience, stats: RolloutStats, history: Sequence[UpdateMetrics]
) -> dict[str, float]:
  """Metrics of one update as a flat dictionary of numbers."""
  trajectories = experience.trajectories
  # None, where every trajectory was left out.
  tokens = max(sum(float(m.tokens) for m in history), 1.0)
  first = history[0]

  def count(kind: TokenKind) -> int:
    return sum(int(np.sum(t.kinds == kind)) for t in trajectories)

  retrieving = [
    i
    for i, t in enumerate(trajectories)
    if np.any(t.kinds == TokenKind.RETRIEVED)
  ]
  retrievals = [e for t in trajectories for e in t.retrieval_events]
  outcomes = [e.outcome for e in retrievals]
  hits = [e for e in retrievals if e.outcome == "hit"]
  calls = [e for t in trajectories for e in t.tool_events]
  policy_tokens = count(TokenKind.POLICY)
  entropy = sum(float(np.sum(t.entropies)) for t in trajectories)
  finished = [t.finish_reason for t in trajectories]
  counted = experience.counted
  correct = [s.correct for s in experience.scores]
  values = experience.rewards[counted]
  scored = [
    s for s, counts in zip(experience.scores, counted, strict=True) if counts
  ]
  return {
    **{f"rollout/{k}": value for k, value in stats.numbers().items()},
    "rollout/generated_tokens": policy_tokens,
    "rollout/response_tokens": policy_tokens
    + count(TokenKind.OBSERVATION)
    + count(TokenKind.RETRIEVED),
    "rollout/entropy": entropy / max(policy_tokens, 1),
    "rollout/tool_calls": len(calls),
    "rollout/tool_failures": sum(c.status != "ok" for c in calls),
    "rollout/malformed_calls": sum(c.status == "malformed" for c in calls),
    "rollout/retrievals": len(hits),
    "rollout/retrievals_with_answer": sum(e.answers for e in hits),
    "rollout/retrievals_missed": outcomes.count("miss"),
    "rollout/retrievals_failed": outcomes.count("failed")
    + outcomes.count("open"),
    "rollout/retrievals_open": outcomes.count("open"),
    "rollout/retrievals_without_room": outcomes.count("no_room"),
    "rollout/retrieved_fraction": float(np.mean(experience.retrieved_fraction)),
    **{
      f"rollout/finished_{reason}": finished.count(reason) / len(finished)
      for reason in FinishReason
    },
    "rollout/repetitive_fraction": repetitive_fraction(trajectories),
    # Of those that count; 0 where none does.
    "rollout/left_out": int(np.sum(~counted)),
    "reward/mean": _mean(values),
    "reward/min": float(min(values, default=0.0)),
    "reward/max": float(max(values, default=0.0)),
    "reward/accuracy": _mean(np.asarray(correct, bool)[counted]),
    "reward/format_whole": _mean(np.asarray([score.whole for score in scored])),
    **{
      f"score/{status}": count
      for status, count in collections.Counter(
        str(score.status) for score in scored
      ).items()
    },
    "retrieval/reward": float(np.mean(experience.retrieval_rewards[retrieving]))
    if retrieving
    else 0.0,
    "groups/live_fraction": float(np.mean(experience.live_groups)),
    "loss": float(np.mean([m.loss for m in history])),
    "gradient_norm": float(np.mean([m.gradient_norm for m in history])),
    "clip_fraction_low": sum(float(m.clipped_low) for m in history) / tokens,
    "clip_fraction_high": sum(float(m.clipped_high) for m in history) / tokens,
    # The policy has not moved yet in the first minibatch: what the trainer and
    # the sampler disagree about there is error, not learning.
    "mismatch/abs_log_prob_mean": float(
      first.gap_sum / np.maximum(first.tokens, 1)
    ),
    "mismatch/abs_log_prob_max": float(first.gap_max),
    **stats.tool_numbers(),
  }


def _mean(values: np.ndarray) -> float:
  return float(np.mean(values)) if len(values) else 0.0
