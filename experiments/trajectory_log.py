"""Trajectories as JSON, for people and for the report's browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rapo_jax.data import Query
from rapo_jax.training import Experience
from rapo_jax.trajectory import (
  RetrievalEvent,
  TokenKind,
  ToolEvent,
  Trajectory,
  decode,
)


def records(
  experience: Experience,
  queries: Sequence[Query],
  tokenizer: Any,
  update: int,
) -> Iterator[dict[str, Any]]:
  """One record a trajectory; figures are rounded, ids and text are not.

  Args:
    experience: trajectories with their rewards and advantages.
    queries: the query of each group id.
    tokenizer: decodes the tokens.
    update: number of the update that trained on them.
  """
  for number, trajectory in enumerate(experience.trajectories):
    query = queries[trajectory.group_id]
    score = experience.scores[number]
    yield {
      "update": update,
      "query_id": query.query_id,
      "question": query.question,
      "ground_truth": list(query.ground_truth),
      "index": trajectory.index,
      "hybrid": trajectory.hybrid,
      "policy_version": trajectory.policy_version,
      "buffer_version": trajectory.buffer_version,
      "finish_reason": str(trajectory.finish_reason),
      "score": score.record(),
      "left_out": not bool(experience.counted[number]),
      "advantage": _rounded(experience.advantages[number]),
      "retrieval_reward": _rounded(experience.retrieval_rewards[number]),
      "retrieved_fraction": _rounded(experience.retrieved_fraction[number]),
      "segments": _segments(trajectory, tokenizer),
      "events": [_event(event) for event in trajectory.events],
    }


def _segments(trajectory: Trajectory, tokenizer: Any) -> list[dict[str, Any]]:
  segments = []
  for segment in trajectory.segments():
    span = slice(segment.start, segment.end)
    record: dict[str, Any] = {
      "kind": segment.kind.name.lower(),
      "step_id": segment.step_id,
      "text": decode(tokenizer, trajectory.tokens[span]),
      "num_tokens": segment.end - segment.start,
    }
    if segment.kind is TokenKind.POLICY:
      record["entropy"] = _rounded(np.mean(trajectory.entropies[span]))
      record["log_prob"] = _rounded(np.mean(trajectory.log_probs[span]))
    segments.append(record)
  return segments


def _event(event: ToolEvent | RetrievalEvent) -> dict[str, Any]:
  if isinstance(event, ToolEvent):
    return {
      "type": "tool",
      "step_id": event.step_id,
      "tool": event.name,
      "argument": event.argument,
      "result": event.result,
      "status": str(event.status),
      "seconds": _rounded(event.seconds),
    }
  similarity = event.similarity
  return {
    "type": "retrieval",
    "step_id": event.step_id,
    "outcome": event.outcome,
    "similarity": None if similarity is None else _rounded(similarity),
    "reward": event.reward,
    "trace_id": event.trace_id,
    "source": event.source,
    "answers": event.answers,
  }


def _rounded(value: float | np.floating) -> float:
  return round(float(value), 5)
