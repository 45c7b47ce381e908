"""Trajectories of an update as records, for people and for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rapo_jax import records
from rapo_jax.data import Query
from rapo_jax.training.experience import Experience


def trajectory_records(
  experience: Experience,
  queries: Sequence[Query],
  tokenizer: Any,
  update: int,
  *,
  tokens: bool = True,
) -> Iterator[records.TrajectoryRecord]:
  """One record a trajectory.

  Args:
    experience: trajectories with their rewards and advantages.
    queries: the query of each group id.
    tokenizer: decodes the tokens.
    update: number of the update that trained on them.
    tokens: whether records hold figures of each token that the policy wrote.
  """
  for number, trajectory in enumerate(experience.trajectories):
    query = queries[trajectory.group_id]
    yield records.record_of(
      trajectory,
      tokenizer,
      question=query.question,
      ground_truth=tuple(query.ground_truth),
      score=experience.scores[number].record(),
      training=records.TrainingRecord(
        update=update,
        hybrid=trajectory.hybrid,
        policy_version=trajectory.policy_version,
        buffer_version=trajectory.buffer_version,
        left_out=not bool(experience.counted[number]),
        advantage=float(experience.mean_advantage(number)),
        retrieval_reward=float(experience.retrieval_rewards[number]),
        retrieved_fraction=float(experience.retrieved_fraction[number]),
        parent=trajectory.parent,
        shared_steps=trajectory.shared_steps,
        origin=trajectory.source.name.lower(),
      ),
      figures=_figures(experience, number) if tokens else None,
    )


def _figures(experience: Experience, number: int) -> records.TokenFigures:
  """What training knows of each token of a trajectory."""
  advantages = experience.advantages[number]
  length = len(experience.trajectories[number].tokens)
  return records.TokenFigures(
    experience.trainer_log_probs[number],
    advantages[:length] if advantages.ndim else None,
  )
