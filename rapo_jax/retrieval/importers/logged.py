"""Trajectories that our own runs log: one a line, by segments.

`experiments.trajectory_log` writes them, and so does the journal of an
endpoint's agent: `question`, `query_id`, `score.value`, and `segments`, each
with its `kind`, `step_id` and `text`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.agent_trajectory import AgentTrajectory
from rapo_jax.retrieval.importers.lines import (
  ImportReport,
  JsonLines,
  OnError,
  one_a_line,
)

_EXTRAS = ("update", "policy_version", "index", "finish_reason", "ground_truth")


def read_logged(
  path: pathlib.Path,
  source: str,
  *,
  report: ImportReport,
  on_error: OnError = "stop",
) -> Iterator[tuple[AgentTrajectory, int]]:
  """Reads trajectories from a log of ours.

  Args:
    path: the JSONL file.
    source: name of the agent; a line's own `source` goes before it.
    report: counts what is read.
    on_error: "stop" raises at the first broken line; "skip" leaves it out.

  Yields:
    Each trajectory, and the bytes of the file read until then.

  Raises:
    InputError: for a broken line, named by its number, if it is to stop.
  """
  yield from one_a_line(
    JsonLines(path, report, on_error),
    lambda line: _trajectory(
      line.content, source, f"{source}/{path.name}:{line.number}"
    ),
  )


def _trajectory(
  record: Mapping[str, Any], source: str, name: str
) -> AgentTrajectory:
  """Raises ValueError, with the reason, for a record that cannot be used."""
  score, segments = record.get("score"), record.get("segments")
  value = score.get("value") if isinstance(score, dict) else None
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError("score.value must be a number")
  for field in ("question", "query_id"):
    if not isinstance(record.get(field), str):
      raise InputError(f"{field} must be a text")
  if not isinstance(record.get("source") or source, str):
    raise InputError(f"source must be a text, got {record['source']!a:.60}")
  if not isinstance(segments, list):
    raise InputError("segments must be a list")
  steps: dict[int, str] = {}
  for segment in segments:
    match segment:
      case {"step_id": int(step), "text": str(text)}:
        if step >= 0:
          steps[step] = steps.get(step, "") + text
      case _:
        raise InputError("a segment must have a step_id and a text")
  return AgentTrajectory(
    question=record["question"],
    steps=tuple(steps[step].strip() for step in sorted(steps)),
    reward=float(value),
    source=record.get("source") or source,
    query_id=record["query_id"],
    trajectory_id=name,
    extras={name: record[name] for name in _EXTRAS if name in record},
  )
