"""Groups that later updates train on again: taken, marked, written and read."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rapo_jax import rewards
from rapo_jax.algorithms.replay import StoredGroup
from rapo_jax.data import Query
from rapo_jax.records import event_from_json, event_to_json
from rapo_jax.training.experience import Experience
from rapo_jax.trajectory import FinishReason, Source, Trajectory

_ARRAYS = ("tokens", "kinds", "step_ids", "log_probs", "entropies")


class Content(NamedTuple):
  """What a stored group is trained on with.

  Attributes:
    query: its question.
    trajectories: as they were sampled, those that do not count too.
    scores: of the trajectories.
  """

  query: Query
  trajectories: list[Trajectory]
  scores: list[rewards.Score]


def fresh_groups(experience: Experience) -> list[StoredGroup]:
  """The groups of an update that the policy sampled for it.

  Rewards and what is correct are of the trajectories that count. A group with
  fewer than two of them teaches nothing and is left out.
  """
  members: list[list[int]] = [[] for _ in experience.queries]
  for row, trajectory in enumerate(experience.trajectories):
    members[trajectory.group_id].append(row)
  groups = []
  for query, rows in zip(experience.queries, members, strict=True):
    trajectories = [experience.trajectories[i] for i in rows]
    if any(t.source is not Source.POLICY for t in trajectories):
      continue
    counted = [experience.scores[i] for i in rows if experience.counted[i]]
    if len(counted) < min(2, len(rows)):
      continue
    groups.append(
      StoredGroup(
        query.query_id,
        np.asarray([score.value for score in counted]),
        np.asarray([score.correct for score in counted], bool),
        Content(query, trajectories, [experience.scores[i] for i in rows]),
      )
    )
  return groups


def replayed(group: StoredGroup) -> list[tuple[Trajectory, rewards.Score]]:
  """A stored group's trajectories, marked as replayed, with their scores."""
  return [
    (dataclasses.replace(trajectory, source=Source.REPLAY), score)
    for trajectory, score in zip(
      group.content.trajectories, group.content.scores, strict=True
    )
  ]


def to_bytes(groups: Sequence[StoredGroup]) -> bytes:
  """Stored groups as a file: a NumPy archive without pickled objects."""
  trajectories = [t for g in groups for t in g.content.trajectories]
  head = json.dumps([_plain_group(group) for group in groups]).encode()
  arrays: dict[str, Any] = {
    name: np.concatenate([getattr(t, name) for t in trajectories])
    for name in _ARRAYS
    if trajectories
  }
  file = io.BytesIO()
  np.savez(file, head=np.frombuffer(head, np.uint8), **arrays)
  return file.getvalue()


def from_bytes(content: bytes) -> list[StoredGroup]:
  """Undoes `to_bytes`, bit for bit."""
  with np.load(io.BytesIO(content), allow_pickle=False) as file:
    arrays = dict(file)
  head = json.loads(arrays.pop("head").tobytes())
  lengths = [t["length"] for g in head for t in g["trajectories"]]
  edges = np.cumsum(lengths)[:-1]
  parts = {name: iter(np.split(array, edges)) for name, array in arrays.items()}
  return [_group(plain, parts) for plain in head]


def _plain_group(group: StoredGroup) -> dict[str, Any]:
  content: Content = group.content
  return {
    "query": dataclasses.asdict(content.query),
    "rewards": group.rewards.tolist(),
    "correct": group.correct.tolist(),
    "trajectories": [_plain(t) for t in content.trajectories],
    "scores": [score.record() for score in content.scores],
  }


def _plain(trajectory: Trajectory) -> dict[str, Any]:
  """A trajectory's fields but for its arrays and its place in an update."""
  return {
    "length": len(trajectory.tokens),
    "query_id": trajectory.query_id,
    "index": trajectory.index,
    "hybrid": trajectory.hybrid,
    "policy_version": trajectory.policy_version,
    "finish_reason": trajectory.finish_reason,
    "events": list(map(event_to_json, trajectory.events)),
    "buffer_version": trajectory.buffer_version,
    "parent": trajectory.parent,
    "shared_steps": trajectory.shared_steps,
  }


def _group(
  plain: dict[str, Any], parts: dict[str, Iterator[np.ndarray]]
) -> StoredGroup:
  query = plain["query"]
  query["ground_truth"] = tuple(query["ground_truth"])
  query["messages"] = tuple(query["messages"])
  return StoredGroup(
    query["query_id"],
    np.asarray(plain["rewards"], np.float64),
    np.asarray(plain["correct"], bool),
    Content(
      Query(**query),
      [_trajectory(values, parts) for values in plain["trajectories"]],
      [rewards.Score(**score) for score in plain["scores"]],
    ),
  )


def _trajectory(
  values: dict[str, Any], parts: dict[str, Iterator[np.ndarray]]
) -> Trajectory:
  del values["length"]
  values["finish_reason"] = FinishReason(values["finish_reason"])
  values["events"] = tuple(map(event_from_json, values["events"]))
  arrays: dict[str, Any] = {name: next(part) for name, part in parts.items()}
  # A group gets its place anew in each update.
  return Trajectory(**arrays, **values, group_id=0)
