"""Runs, their metrics and their warnings, followed while they train.

Every metric of `metrics.jsonl` is a column of numbers. A log is read on from
where it was left, and from its beginning where a resumed run has cut it.
"""

from __future__ import annotations

import array
import itertools
import math
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from experiments import health
from experiments.metrics import METRICS_FILE
from experiments.report.folders import RunFolder, run_folders
from experiments.report.methods import Shown, method_order
from experiments.report.sources import health_settings, shown_methods
from experiments.viewer import followed
from experiments.workdir import Workdir, parse_row, read_config
from rapo_jax.errors import InputError

X_AXES = ("update", "seconds", "generated_tokens")
"""Metrics that curves are drawn over."""
MOST_POINTS = 400
"""Points of a curve; of more, the highest and the lowest of each part."""


class RunCurves:
  """The metrics of one run.

  Args:
    folder: where it lies.
    shown: what is shown of its method.
  """

  def __init__(self, folder: RunFolder, shown: Shown):
    self.folder = folder
    self.shown = shown
    self.trouble = ""
    self._path = folder.path / METRICS_FILE
    self._settings, hybrid = health_settings(folder.source.folder)
    self._retrieves = hybrid and shown.retrieves
    self._start()

  def _start(self) -> None:
    self._place = followed.START
    self._columns: dict[str, array.array[float]] = {}
    self._rows = 0
    self._stretches = health.Stretches(
      self._settings, retrieves=self._retrieves
    )

  @property
  def names(self) -> list[str]:
    return [*self._columns]

  @property
  def alerts(self) -> list[health.Alert]:
    return self._stretches.alerts

  @property
  def bytes_read(self) -> int:
    return self._place.position

  @property
  def written(self) -> float:
    """When the run last wrote metrics, in seconds since the epoch."""
    return self._path.stat().st_mtime if self._path.exists() else 0.0

  def refresh(self) -> None:
    """Reads on."""
    if not self._path.exists():
      return
    if not followed.is_continued(self._path, self._place):
      self._start()
    for _, line, place in followed.lines_from(self._path, self._place):
      self._place = place
      try:
        self._add(_numbers(line, self._path))
      except InputError as error:
        self.trouble = str(error)

  def last(self, name: str) -> float | None:
    """The last finite value of a metric."""
    column = np.array(self._columns.get(name, ()), np.float64)
    finite = column[np.isfinite(column)]
    return float(finite[-1]) if len(finite) else None

  def curve(self, x: str, y: str) -> tuple[list[float], list[float]]:
    """A metric over another one, at `MOST_POINTS` updates or fewer.

    Args:
      x: one of `X_AXES`.
      y: name of a metric.

    Returns:
      Values of both, where both are finite.
    """
    if x not in self._columns or y not in self._columns:
      return [], []
    table = np.array([self._columns[x], self._columns[y]], np.float64)
    table = table[:, np.isfinite(table).all(axis=0)]
    table = table[:, _kept(table[1])]
    return table[0].tolist(), table[1].tolist()

  def _add(self, row: dict[str, float]) -> None:
    for name, value in row.items():
      column = self._columns.get(name)
      if column is None:
        column = array.array("d", [math.nan] * self._rows)
        self._columns[name] = column
      column.append(value)
    self._rows += 1
    for column in self._columns.values():
      if len(column) < self._rows:
        column.append(math.nan)
    self._stretches.add(row)


class Curves:
  """The metrics of all runs of a work folder or a study.

  Several threads may use it.

  Args:
    root: work folder of a run, or folder of a study.
  """

  def __init__(self, root: pathlib.Path):
    self._root = root
    self._lock = threading.Lock()
    self._runs: dict[str, RunCurves] = {}

  def overview(self) -> dict[str, Any]:
    """Runs, warnings and names of metrics, as JSON; reads on before."""
    with self._lock:
      self._refresh()
      runs = self._runs.items()
      names = dict.fromkeys(name for _, run in runs for name in run.names)
      return {
        "runs": [_run(name, run) for name, run in runs],
        "warnings": [
          _warning(name, alert) for name, run in runs for alert in run.alerts
        ],
        "troubles": [run.trouble for _, run in runs if run.trouble],
        "metrics": [name for name in names if name != "update"],
        "bytes": sum(run.bytes_read for _, run in runs),
      }

  def curves(self, x: str, names: Sequence[str]) -> dict[str, Any]:
    """Metrics by name and run, as JSON: `{name: {run: [xs, ys]}}`.

    Args:
      x: one of `X_AXES`.
      names: of metrics; unknown ones have no runs.

    Raises:
      InputError: `x` is another one.
    """
    if x not in X_AXES:
      raise InputError(f"x must be one of {', '.join(X_AXES)}, got {x!a:.60}")
    with self._lock:
      self._refresh()
      found: dict[str, Any] = {}
      for name in names:
        curves = {run: c.curve(x, name) for run, c in self._runs.items()}
        found[name] = {run: pair for run, pair in curves.items() if pair[0]}
      return found

  def _refresh(self) -> None:
    """Finds new runs, forgets those that are gone, reads on in all."""
    folders = sorted(
      run_folders(self._root),
      key=lambda f: (f.task, method_order(f.method), f.seed),
    )
    shown = shown_methods(self._root, folders)
    known, self._runs = self._runs, {}
    for folder in folders:
      name = folder.path.relative_to(self._root).as_posix()
      run = known.get(name)
      if run is None or run.shown != shown[folder.method]:
        run = RunCurves(folder, shown[folder.method])
      run.refresh()
      self._runs[name] = run


def _numbers(line: bytes, path: pathlib.Path) -> dict[str, float]:
  """Metrics of a line; null is NaN.

  Raises:
    InputError: it is damaged.
  """
  try:
    return {
      name: math.nan if value is None else float(value)
      for name, value in parse_row(line, path).items()
    }
  except (ValueError, TypeError) as error:
    raise InputError(
      f"{path} holds a line that is no row of metrics ({error}): it is left "
      "out."
    ) from error


def _kept(values: Float64[np.ndarray, " N"]) -> Int[np.ndarray, " K"]:
  """Indices of the highest and the lowest of each part, in order."""
  if len(values) <= MOST_POINTS:
    return np.arange(len(values))
  bounds = np.linspace(0, len(values), MOST_POINTS // 2 + 1).astype(int)
  kept = {0, len(values) - 1}
  for begin, end in itertools.pairwise(bounds):
    part = values[begin:end]
    kept |= {begin + int(part.argmin()), begin + int(part.argmax())}
  return np.array(sorted(kept))


def _run(name: str, run: RunCurves) -> dict[str, Any]:
  folder = run.folder
  figures = (
    "update",
    "eval/accuracy",
    "reward/mean",
    "reward/accuracy",
    "rollout/entropy",
    "seconds",
    "generated_tokens",
  )
  return {
    "run": name,
    "task": folder.task,
    "method": folder.method,
    "label": run.shown.label,
    "colour": run.shown.colour,
    "dark_colour": run.shown.dark_colour,
    "seed": folder.seed,
    "finished": folder.finished,
    "written": run.written,
    "planned": _planned(folder.source.folder),
    "last": {figure: run.last(figure) for figure in figures},
  }


def _planned(folder: pathlib.Path) -> int | None:
  """Updates of a run by the config of its work folder."""
  workdir = Workdir(folder)
  config = read_config(workdir) if workdir.config.exists() else {}
  return config.get("train", {}).get("num_updates")


def _warning(run: str, alert: health.Alert) -> dict[str, Any]:
  return {
    "run": run,
    "kind": alert.kind,
    "tool": alert.tool,
    "when": health.updates_text(alert.first, alert.last),
    "stopped": alert.stops,
    "text": alert.text,
  }
