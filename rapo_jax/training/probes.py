"""The exact effect of a retrieved step: reward with it, less that without it.

Both trajectories have the same prefix and the same random streams. So the
difference comes from the step alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rapo_jax import rewards
from rapo_jax.rollout import RolloutStats
from rapo_jax.trajectory import RetrievalEvent, Source, ToolEvent, Trajectory

ScoreAll = Callable[[Sequence[Trajectory]], list[rewards.Score]]


def scored_with_effects(
  trajectories: Sequence[Trajectory], score: ScoreAll
) -> tuple[list[Trajectory], list[rewards.Score]]:
  """Scores trajectories, and notes on their events what retrieval changed.

  Args:
    trajectories: as sampled; their twins are scored with them, and dropped.
    score: of trajectories, in order.

  Returns:
    The trajectories with `RetrievalEvent.effect`, and their scores. An effect
    stays None where the system cut the trajectory or its twin.
  """
  twins = [twin for t in trajectories for twin in t.twins]
  scores = score([*trajectories, *twins])
  own = scores[: len(trajectories)]
  others = iter(scores[len(trajectories) :])
  noted = []
  for trajectory, with_step in zip(trajectories, own, strict=True):
    without = itertools.islice(others, len(trajectory.twins))
    effects = {
      twin.shared_steps: with_step.value - one.value
      for twin, one in zip(trajectory.twins, without, strict=True)
      if not (trajectory.is_cut_by_system or twin.is_cut_by_system)
    }
    noted.append(_with_effects(trajectory, effects) if effects else trajectory)
  return [dataclasses.replace(t, twins=()) for t in noted], own


def _with_effects(
  trajectory: Trajectory, effects: dict[int, float]
) -> Trajectory:
  events: list[ToolEvent | RetrievalEvent] = []
  for event in trajectory.events:
    if isinstance(event, RetrievalEvent) and event.outcome == "hit":
      event = dataclasses.replace(event, effect=effects.get(event.step_id))
    events.append(event)
  return dataclasses.replace(trajectory, events=tuple(events))


def probe_numbers(
  trajectories: Iterable[Trajectory], stats: RolloutStats
) -> dict[str, float]:
  """Metrics of the effects that were measured, and what that took.

  The mean effect and the shares by sign are left out where none was measured.

  Args:
    trajectories: of an update; those that were not sampled for it do not count.
    stats: of its rollouts.
  """
  effects = np.asarray(
    [
      event.effect
      for trajectory in trajectories
      if trajectory.source is Source.POLICY
      for event in trajectory.retrieval_events
      if event.effect is not None
    ]
  )
  numbers = {
    "retrieval/num_probed": float(len(effects)),
    "probe/generated_tokens": float(stats.twin_tokens),
    "probe/seconds": stats.twin_seconds,
  }
  if len(effects):
    numbers |= {
      "retrieval/effect": float(np.mean(effects)),
      "retrieval/effect_positive": float(np.mean(effects > 0)),
      "retrieval/effect_negative": float(np.mean(effects < 0)),
    }
  return numbers
