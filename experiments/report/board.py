"""The leader board: each method at equal leaves and at equal generated tokens.

Methods spend differently: one rolls out again where groups teach nothing, one
trains on stored groups and generates less. So each stands here with its budget
of an update, and its accuracy is shown twice:

- at equal leaves: after its last update, all methods having had as many
  trajectories to learn from;
- at equal generated tokens: on its learning curve, where it had generated as
  many tokens as the reference had in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report import bootstrap
from experiments.report.methods import method_order
from experiments.report.sources import Run

MEAN = "mean"
"""Key of the mean over tasks in all parts of the results."""
BUDGETS = {
  "leaves": ("budget/leaves",),
  "generated tokens": ("budget/generated_tokens",),
  "tool calls": ("budget/tool_calls",),
  "device seconds": (
    "rollout/decode_seconds",
    "rollout/cache_seconds",
    "update/seconds",
  ),
}
"""What an update spends, and the metrics whose sum it is."""


class _Point(NamedTuple):
  """Accuracy of a run at its reference's tokens.

  Attributes:
    accuracy: there, or at the run's end.
    reached: whether the run generated as many.
  """

  accuracy: float
  reached: bool


_Points = Mapping[int, _Point]
"""Points by seed."""


def make_board(runs: Sequence[Run], reference: str | None) -> dict[str, Any]:
  """Budgets and accuracy at equal generated tokens, by task and method.

  Args:
    runs: with metrics.
    reference: name of the method whose tokens are the measure; None for none.

  Returns:
    `{task or "mean": {method: row}}`. A row has `budget` (means over updates
    and seeds), `at_tokens` (accuracy by seed, its mean, and `reached`, the
    share of the runs that generated as many) and `difference` from the
    reference (mean, 95 % interval over pairs of seeds, None for one pair).
    What cannot be said is left out. The mean has the methods of every task.
  """
  tasks = sorted({run.task for run in runs})
  own: dict[tuple[str, str | None], list[Run]] = {}
  for run in runs:
    own.setdefault((run.task, run.method), []).append(run)
  points = {
    (task, method): _points(group, own.get((task, reference), []))
    for (task, method), group in own.items()
  }
  budgets = {key: _budget(group) for key, group in own.items()}
  board: dict[str, Any] = {}
  for method in sorted({run.method for run in runs}, key=method_order):
    there = [task for task in tasks if (task, method) in own]
    parts = {task: [task] for task in there}
    if len(there) == len(tasks):
      parts[MEAN] = tasks
    for name, group in parts.items():
      board.setdefault(name, {})[method] = _row(
        [budgets[task, method] for task in group],
        [points[task, method] for task in group],
        [points.get((task, reference), {}) for task in group],
      )
  return board


def _row(
  budgets: Sequence[Mapping[str, float]],
  points: Sequence[_Points],
  references: Sequence[_Points],
) -> dict[str, Any]:
  """A row over one task or several."""
  row: dict[str, Any] = {
    "budget": {
      name: float(np.mean([budget[name] for budget in budgets]))
      for name in BUDGETS
      if all(name in budget for budget in budgets)
    }
  }
  seeds, others = _over_tasks(points), _over_tasks(references)
  if seeds:
    reached = [p.reached for by_seed in points for p in by_seed.values()]
    row["at_tokens"] = {
      "mean": float(np.mean(list(seeds.values()))),
      "seeds": {str(seed): value for seed, value in seeds.items()},
      "reached": float(np.mean(reached)),
    }
  pairs = [seeds[seed] - others[seed] for seed in seeds if seed in others]
  if pairs:
    row["difference"] = bootstrap.seed_mean(pairs)
  return row


def _over_tasks(points: Sequence[_Points]) -> dict[int, float]:
  """Mean accuracy over tasks, for the seeds that all of them have."""
  shared = set.intersection(*map(set, points))
  return {
    seed: float(np.mean([by_seed[seed].accuracy for by_seed in points]))
    for seed in sorted(shared)
  }


def _points(runs: Sequence[Run], references: Sequence[Run]) -> _Points:
  """Accuracy at the tokens that the reference of the seed generated in all.

  Linear between two evaluations. A run that generated fewer has the accuracy of
  its last evaluation.
  """
  found = {}
  for run in runs:
    spent = _spent(run.seed, references)
    tokens, accuracy = _curve(run)
    if spent is not None and len(tokens):
      at_spent = float(np.interp(spent, tokens, accuracy))
      found[run.seed] = _Point(at_spent, bool(tokens[-1] >= spent))
  return found


def _spent(seed: int, references: Sequence[Run]) -> float | None:
  """Tokens that the reference of a seed has generated; None without one."""
  ends = [_curve(run)[0][-1:] for run in references if run.seed == seed]
  return float(ends[0][0]) if ends and len(ends[0]) else None


def _curve(run: Run) -> tuple[np.ndarray, np.ndarray]:
  """Generated tokens and accuracy at the evaluated updates of a run.

  An unfinished run has none: its end is not the method's.
  """
  rows = run.rows if run.finished else ()
  points = [
    (row.get("generated_tokens", 0.0), row["eval/accuracy"])
    for row in rows
    if "eval/accuracy" in row
  ]
  table = np.array(points, float).reshape(-1, 2)
  table = table[np.isfinite(table).all(axis=1)]
  return table[:, 0], table[:, 1]


def _budget(runs: Sequence[Run]) -> dict[str, float]:
  """Means over the updates and seeds of one method on one task."""
  found = {}
  for name, metrics in BUDGETS.items():
    spent = [
      sum(row.get(metric, 0.0) for metric in metrics)
      for run in runs
      for row in run.rows
      if any(metric in row for metric in metrics)
    ]
    if spent:
      found[name] = float(np.mean(spent))
  return found
