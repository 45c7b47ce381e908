"""Sampling by a rule when to retrieve: the plain half of a group decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rapo_jax import rewards
from rapo_jax.algorithms.guidance import GuideRule
from rapo_jax.rollout import RolloutStats
from rapo_jax.rollout.requests import RolloutRequest
from rapo_jax.training.experience import judged
from rapo_jax.trajectory import Trajectory

RollOut = Callable[
  [Sequence[RolloutRequest]], tuple[list[Trajectory], RolloutStats]
]
ScoreAll = Callable[
  [Sequence[Trajectory]], tuple[list[Trajectory], list[rewards.Score]]
]


class Guided(NamedTuple):
  """The rollouts of an update, by a rule.

  Attributes:
    trajectories: in the order of the requests.
    scores: of the trajectories.
    stats: of each rollout that was made.
    needed: share of the questions that need guidance.
    given: the probability of a retrieval as a share of the configured one, in
      the mean over the questions.
  """

  trajectories: list[Trajectory]
  scores: list[rewards.Score]
  stats: list[RolloutStats]
  needed: float
  given: float


def roll_out_guided(
  rule: GuideRule,
  requests: Sequence[RolloutRequest],
  roll_out: RollOut,
  score: ScoreAll,
  counts: Callable[[Trajectory], bool],
  share: float,
) -> Guided:
  """Samples the groups of an update.

  Args:
    rule: when to retrieve.
    requests: of whole groups, by group and index.
    roll_out: samples requests.
    score: notes what was measured on trajectories, and scores them.
    counts: whether a trajectory counts.
    share: of the questions that needed guidance in the update before.
  """
  if rule.by == "share":
    scaled = [dataclasses.replace(r, guidance=share) for r in requests]
    sampled, stats = roll_out(scaled)
    trajectories, scores = score(sampled)
    needed = _needed(rule, trajectories, scores, counts)
    return Guided(trajectories, scores, [stats], _mean(needed), share)
  sampled, first = roll_out([r for r in requests if not r.hybrid])
  plain, plain_scores = score(sampled)
  needed = _needed(rule, plain, plain_scores, counts)
  made = [first]
  others: list[Trajectory] = []
  other_scores: list[rewards.Score] = []
  hybrid = [
    dataclasses.replace(r, hybrid=needed[r.group_id])
    for r in requests
    if r.hybrid
  ]
  if hybrid:
    sampled, second = roll_out(hybrid)
    others, other_scores = score(sampled)
    made.append(second)
  found = {
    (t.group_id, t.index): (t, s)
    for t, s in zip(
      [*plain, *others], [*plain_scores, *other_scores], strict=True
    )
  }
  ordered = [found[r.group_id, r.index] for r in requests]
  return Guided(
    [t for t, _ in ordered],
    [s for _, s in ordered],
    made,
    _mean(needed),
    _mean(needed),
  )


def _needed(
  rule: GuideRule,
  trajectories: Sequence[Trajectory],
  scores: Sequence[rewards.Score],
  counts: Callable[[Trajectory], bool],
) -> dict[int, bool]:
  """Whether each question needs guidance, by its plain rollouts that count."""
  plain: dict[int, list[rewards.Score]] = {}
  for trajectory, score in zip(trajectories, scores, strict=True):
    own = plain.setdefault(trajectory.group_id, [])
    if counts(trajectory) and not trajectory.hybrid:
      own.append(score)
  return {group: judged(rule.needed, own) for group, own in plain.items()}


def _mean(needed: dict[int, bool]) -> float:
  return float(np.mean(list(needed.values()))) if needed else 0.0
