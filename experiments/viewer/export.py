"""The viewer's page with its data in it: one file, which needs no server."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.viewer import content, page
from experiments.viewer.curves import X_AXES, Curves
from experiments.viewer.index import Filters, Row, TrajectoryIndex
from rapo_jax import files

PAGE_FILE = "index.html"


def write_page(
  root: pathlib.Path, index: TrajectoryIndex, folder: pathlib.Path, most: int
) -> tuple[int, int]:
  """Writes `index.html`.

  Args:
    root: work folder of a run, or folder of a study.
    index: of its trajectories; read to the end of the logs before.
    folder: to write into; made when missing.
    most: trajectories; of more, whole questions of every run and update.

  Returns:
    Trajectories in the page, and trajectories in the logs.
  """
  curves = Curves(root)
  overview = curves.overview()
  names = overview["metrics"]
  total = index.count(Filters())
  rows, contents = [], {}
  for row in itertools.islice(_ranked(index), most):
    record = index.record(row)
    if record is not None:
      rows.append(row)
      whole = content.trajectory_to_json(row, record)
      contents[whole.pop("row")["key"]] = whole
  rows.sort(key=lambda row: (-row.at_update, row.task, row.run, row.start))
  data = {
    "state": _state(index, rows, total),
    "runs": overview,
    "curves": {x: curves.curves(x, names) for x in X_AXES},
    "rows": [content.row_to_json(row) for row in rows],
    "contents": contents,
  }
  files.replace_text(folder / PAGE_FILE, page.whole(root, data))
  return len(rows), total


def _ranked(index: TrajectoryIndex) -> Iterator[Row]:
  """The first question of every run and update, then the second, and so on."""
  groups: dict[tuple[str, int], dict[str, list[Row]]] = {}
  for row in index.rows(Filters(), limit=-1):
    queries = groups.setdefault((row.run, row.at_update), {})
    queries.setdefault(row.query_id, []).append(row)
  ranked = [[rows for _, rows in sorted(q.items())] for q in groups.values()]
  for questions in itertools.zip_longest(*ranked, fillvalue=()):
    for rows in questions:
      yield from rows


def _state(
  index: TrajectoryIndex, rows: list[Row], total: int
) -> dict[str, Any]:
  choices = {
    name: sorted({getattr(row, name) for row in rows})
    for name in index.choices()
  }
  return {
    "trajectories": len(rows),
    "total": total,
    "read_bytes": 0,
    "log_bytes": 0,
    "troubles": [*index.progress().broken],
    "choices": choices,
  }
