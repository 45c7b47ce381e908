"""What the page gets of trajectories: rows of lists, whole ones, and keys."""

from __future__ import annotations

import pathlib
from typing import Any

from experiments.report import samples
from experiments.report.folders import run_folders
from experiments.viewer.index import Filters, Row, TrajectoryIndex
from experiments.workdir import Workdir
from rapo_jax.records import TrajectoryRecord

_MOST_SIBLINGS = 500


def key_of(row: Row) -> str:
  """Names a trajectory in links: its run, and where it begins in the log."""
  return f"{row.run}@{row.start}"


def row_to_json(row: Row) -> dict[str, Any]:
  """A row of a list."""
  return {"key": key_of(row), **row._asdict()}


def siblings(index: TrajectoryIndex, row: Row) -> list[Row]:
  """Trajectories of the same question, of all runs of its task."""
  filters = Filters(task=row.task, query_id=row.query_id)
  return index.rows(filters, limit=_MOST_SIBLINGS)


def trajectory_to_json(row: Row, record: TrajectoryRecord) -> dict[str, Any]:
  """A whole trajectory, its row included."""
  training = record.training
  assert training is not None
  prompt = [s.text for s in record.segments if s.kind == "prompt"]
  calls = [
    {
      "step": event["step_id"],
      "tool": event.get("tool"),
      "argument": event.get("argument"),
      "status": event["status"],
    }
    for event in record.events
    if event["type"] == "tool" and event["status"] != "ok"
  ]
  return {
    "row": row_to_json(row),
    "prompt": "".join(prompt),
    "parts": dict(record.score.get("parts", {})),
    "whole": bool(record.score["whole"]),
    "left_out": training.left_out,
    "parent": training.parent,
    "shared_steps": training.shared_steps,
    "buffer_version": training.buffer_version,
    "bad_calls": calls,
    **samples.rollout(record, longest=None),
  }


def retrieved_key(
  root: pathlib.Path, run: str, trace_id: int
) -> dict[str, Any] | None:
  """A trace, with its key: the question and the steps before it.

  Args:
    root: work folder, or folder of a study.
    run: path of the run's folder below the root.
    trace_id: id of the step in the task's buffer.

  Returns:
    None where the buffer is not there or does not hold it.
  """
  # Reading Parquet takes a while to import, and few ask for a key.
  from pyarrow import parquet

  from rapo_jax.retrieval.buffer.manifest import TRACES_FILE

  for folder in run_folders(root):
    if folder.path.relative_to(root).as_posix() == run:
      buffer = Workdir(folder.source.folder).buffer(folder.task)
      path = buffer / TRACES_FILE
      if not path.exists():
        return None
      table = parquet.read_table(
        path,
        columns=[
          "query_id",
          "question",
          "history",
          "key",
          "step_index",
          "step",
        ],
        filters=[("trace_id", "=", trace_id)],
      )
      rows = table.to_pylist()
      return dict(rows[0]) if rows else None
  return None
