"""Trajectories that our own runs log: one a line, by segments.

Runs write them as `records.TrajectoryRecord`, and so does the journal of an
endpoint's agent.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from rapo_jax.records import TrajectoryRecord
from rapo_jax.retrieval.buffer.agent_trajectory import (
  AgentTrajectory,
  question_id,
)
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
  content: Mapping[str, Any], source: str, name: str
) -> AgentTrajectory:
  """Raises InputError, with the reason, for a record that cannot be used."""
  record = TrajectoryRecord.from_json(content)
  steps: dict[int, str] = {}
  for segment in record.segments:
    if segment.step_id >= 0:
      steps[segment.step_id] = steps.get(segment.step_id, "") + segment.text
  return AgentTrajectory(
    question=record.question,
    steps=tuple(steps[step].strip() for step in sorted(steps)),
    reward=float(record.score["value"]),
    source=record.source or source,
    query_id=record.query_id
    if record.query_id.strip()
    else question_id(record.question),
    trajectory_id=name,
    extras={name: content[name] for name in _EXTRAS if name in content},
  )
