"""Which trajectories of a run the report shows, within a size budget.

Whole groups, so that the rollouts of one question can be compared: from each
run the first, the middle and the last update, the same question for every
method. One seed of every task and method comes first. Further seeds follow,
then further questions, until the budget is used up.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.workdir import TRAJECTORIES_FILE, parse_row
from rapo_jax.errors import InputError
from rapo_jax.records import SegmentRecord, TrajectoryRecord

if TYPE_CHECKING:
  # The viewer reads trajectories before it needs what runs are made with.
  from experiments.report.sources import Run

BUDGET_BYTES = 2_000_000
_MAX_TEXT = 4_000
_GROUPS_PER_UPDATE = 3
_ORIGINS = {"replay": "replayed", "agent": "another agent's"}


def sample_groups(
  runs: Sequence[Run], budget_bytes: int = BUDGET_BYTES
) -> list[dict[str, Any]]:
  """Groups of trajectories in a compact form, by task, method, seed, update.

  Args:
    runs: training runs; those without `trajectories.jsonl` are left out.
    budget_bytes: size of the JSON text that is kept below.

  Returns:
    One dict a group, with its trajectories under `rollouts`.
  """
  ranked = sorted(_candidates(runs), key=lambda c: c[0])
  groups, size = [], 0
  for _, run, update, query_id, offsets in ranked:
    group = _group(run, update, query_id, offsets)
    # Of a group that is larger than the room left, whole rows that fit.
    while group["rollouts"]:
      added = len(json.dumps(group))
      if size + added <= budget_bytes:
        size += added
        groups.append(group)
        break
      if groups:
        break
      group["rollouts"].pop()
  return sorted(
    groups, key=lambda g: (g["task"], g["method"], g["seed"], g["update"])
  )


def _candidates(runs: Sequence[Run]) -> Iterator[tuple[Any, ...]]:
  """(rank, run, update, query, offsets of its lines) of what may be shown."""
  seen: dict[tuple[str, str], int] = {}
  for run in runs:
    seed_rank = seen.get((run.task, run.method), 0)
    seen[run.task, run.method] = seed_rank + 1
    places = _line_places(run.path / TRAJECTORIES_FILE)
    updates = sorted(places)
    if not updates:
      continue
    shown = dict.fromkeys((updates[-1], updates[0], updates[len(updates) // 2]))
    for update_rank, update in enumerate(shown):
      queries = sorted(places[update])[:_GROUPS_PER_UPDATE]
      for query_rank, query_id in enumerate(queries):
        rank = (query_rank, seed_rank, update_rank, run.task, run.method)
        yield rank, run, update, query_id, places[update][query_id]


def _line_places(path: pathlib.Path) -> dict[int, dict[str, list[int]]]:
  """Byte offsets of the rows of each update and query; no row is kept."""
  places: dict[int, dict[str, list[int]]] = {}
  if not path.exists():
    return places
  offset = 0
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):
      if line.endswith(b"\n") and line.strip():
        row = parse_row(line, path, number)
        queries = places.setdefault(int(row["update"]), {})
        queries.setdefault(str(row["query_id"]), []).append(offset)
      offset += len(line)
  return places


def _group(
  run: Run, update: int, query_id: str, offsets: Sequence[int]
) -> dict[str, Any]:
  rows = []
  with (run.path / TRAJECTORIES_FILE).open("rb") as file:
    for offset in offsets:
      file.seek(offset)
      rows.append(TrajectoryRecord.from_json(json.loads(file.readline())))
  first = rows[0]
  prompt = [s.text for s in first.segments if s.kind == "prompt"]
  return {
    "task": run.task,
    "method": run.method,
    "seed": run.seed,
    "update": update,
    "query": query_id,
    "question": _cut(first.question, _MAX_TEXT),
    "truth": _cut(" | ".join(first.ground_truth), _MAX_TEXT),
    "prompt": _cut("".join(prompt), _MAX_TEXT),
    "rollouts": [rollout(row, longest=_MAX_TEXT) for row in rows],
  }


def rollout(row: TrajectoryRecord, *, longest: int | None) -> dict[str, Any]:
  """What a page shows of a trajectory, as JSON.

  Args:
    row: from a log of training.
    longest: characters of a text, of which the rest is left out; None for all.

  Raises:
    InputError: it does not say what training made of it.
  """
  score, training = row.score, row.training
  if training is None:
    raise InputError(
      f"a log of training says what each trajectory was worth, and that of "
      f"question {row.query_id!r} does not: remove the line."
    )
  own = "hybrid" if training.hybrid else "on-policy"
  answer = "" if score["answer"] is None else score["answer"]
  return {
    "index": row.index,
    "origin": _ORIGINS.get(training.origin, own),
    "hybrid": training.hybrid,
    "finish": row.finish_reason,
    "version": training.policy_version,
    "reward": _round(score["value"]),
    "status": score["status"],
    "answer": _cut(str(answer), longest),
    "class": reward_class(score),
    "advantage": _round(training.advantage),
    "z": _round(training.retrieval_reward),
    "retrieved": _round(training.retrieved_fraction),
    "steps": list(_segments(row, longest)),
  }


def reward_class(score: Mapping[str, Any]) -> str:
  """right, partly (reward > 0), broken (not in the format) or wrong."""
  if score["correct"]:
    return "right"
  if not score["whole"]:
    return "broken"
  return "partly" if score["value"] > 0 else "wrong"


def _segments(
  row: TrajectoryRecord, longest: int | None
) -> Iterator[dict[str, Any]]:
  """Segments in order, with the event that made each, and failed retrievals."""
  segments = [s for s in row.segments if s.kind != "prompt"]
  pending = list(row.events)
  for position, segment in enumerate(segments):
    step, kind = segment.step_id, segment.kind
    for event in [e for e in pending if _precedes(e, segment)]:
      pending.remove(event)
      yield {"kind": "missed", "step": step, "outcome": event["outcome"]}
    content = {
      "kind": kind,
      "step": step,
      "text": _cut(segment.text, longest),
      "tokens": segment.num_tokens,
    }
    if kind == "policy":
      content["entropy"] = _round(segment.entropy)
      content["log_prob"] = _round(segment.log_prob)
      # A text that is cut has no place for the rest.
      if longest is None and segment.tokens is not None:
        content["each"] = dataclasses.asdict(segment.tokens)
    wanted = {"observation": "tool", "retrieved": "retrieval"}.get(kind)
    for event in pending:
      if event["type"] == wanted and event["step_id"] == step:
        pending.remove(event)
        content |= _event(event)
        break
    if kind == "retrieved":
      content |= retrieval_effect(segments, position)
    yield content


def _precedes(event: Mapping[str, Any], segment: SegmentRecord) -> bool:
  """Whether an event is a retrieval that inserted nothing before a segment."""
  return (
    event["type"] == "retrieval"
    and event["outcome"] != "hit"
    and event["step_id"] == segment.step_id
    and segment.kind == "policy"
  )


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
  names = (
    ("tool", "status", "seconds")
    if event["type"] == "tool"
    else ("similarity", "reward", "trace_id", "source", "answers", "effect")
  )
  content = {name: _round(event.get(name)) for name in names}
  return content | {"others": event["others"]} if "others" in event else content


def retrieval_effect(
  segments: Sequence[SegmentRecord], position: int
) -> dict[str, Any]:
  """Entropy before and after a retrieved step and its reward (Eq. 5 to 7).

  Args:
    segments: segments of a trajectory in order.
    position: index of the retrieved one.

  Returns:
    `before`, `after` (nats) and `z`; empty without a policy step on each side.
  """
  before = _entropy(reversed(segments[:position]))
  after = _entropy(segments[position + 1 :])
  if before is None or after is None or before <= 0:
    return {}
  change = -(after - before) / before
  return {
    "before": _round(before),
    "after": _round(after),
    "z": _round(math.tanh(2 * change) * before),
  }


def _entropy(segments: Iterable[SegmentRecord]) -> float | None:
  for segment in segments:
    if segment.kind == "policy":
      return segment.entropy
  return None


def _cut(text: str, longest: int | None) -> str:
  left_out = 0 if longest is None else len(text) - longest
  if left_out <= 0:
    return text
  return f"{text[:longest]} … ({left_out:,} characters left out here)"


def _round(value: Any) -> Any:
  if not isinstance(value, float):
    return value
  return float(f"{value:.4g}") if math.isfinite(value) else None
