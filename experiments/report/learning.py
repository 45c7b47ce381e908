"""How fast methods learn: held-out accuracy against updates.

Reference points are evaluations nearest to the quarters of the runs of a task,
so tables and curves show the same updates, however long a run is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.report import bootstrap
from experiments.report.board import MEAN
from experiments.report.methods import BASE, WARM_START, method_order
from experiments.report.sources import Run

HALFWAY = "halfway"
REFERENCE_FINAL = "reference_final"
"""Targets that speed is measured by."""
# Parts of a run at whose ends accuracy is compared.
_PARTS = 4


@dataclasses.dataclass(frozen=True)
class Curve:
  """Held-out accuracy against updates; `seeds[k]` and `mean` fit `updates`."""

  updates: np.ndarray
  seeds: Mapping[int, np.ndarray]

  @property
  def mean(self) -> np.ndarray:
    return np.mean(list(self.seeds.values()), axis=0)


def _curve(runs: Sequence[Run]) -> Curve | None:
  """Curve of one method on one task, at updates that every seed has.

  A run that is under way would cut off the others: it counts only where none
  has ended.
  """
  ended = [run for run in runs if run.finished]
  series = {
    run.seed: run.series("update", "eval/accuracy") for run in ended or runs
  }
  if not series:
    return None
  shared = set.intersection(*(set(x.tolist()) for x, _ in series.values()))
  updates = np.array(sorted(shared))
  if not len(updates):
    return None
  return Curve(
    updates,
    {seed: y[np.isin(x, updates)] for seed, (x, y) in series.items()},
  )


def _mean_curve(curves: Sequence[Curve | None]) -> Curve | None:
  """Mean over tasks, for the seeds and updates that all of them have."""
  present = [curve for curve in curves if curve is not None]
  if not present or len(present) < len(curves):
    return None
  updates = sorted(set.intersection(*(set(c.updates) for c in present)))
  seeds = set.intersection(*(set(c.seeds) for c in present))
  if not updates or not seeds:
    return None
  return Curve(
    np.array(updates),
    {
      seed: np.mean(
        [c.seeds[seed][np.isin(c.updates, updates)] for c in present], axis=0
      )
      for seed in sorted(seeds)
    },
  )


def updates_to(
  updates: np.ndarray, accuracy: np.ndarray, target: float
) -> float | None:
  """Number of updates until a curve first reaches a target.

  Args:
    updates: evaluated updates, ascending, `[n]`.
    accuracy: accuracy at them, `[n]`.
    target: accuracy to reach.

  Returns:
    Linear between two evaluations; None when it is never reached (censored at
    the last update).
  """
  reached = np.flatnonzero(accuracy >= target)
  if not len(reached):
    return None
  i = int(reached[0])
  if i == 0:
    return float(updates[0])
  share = (target - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
  return float(updates[i - 1] + share * (updates[i] - updates[i - 1]))


def _speedup(
  slow: float | None, fast: float | None, last: float
) -> dict[str, Any]:
  """Updates of the slow one over the fast one's; a bound if one is missing."""
  if slow is None and fast is None:
    return {"ratio": None, "bound": "neither reached it"}
  if (slow is not None and slow <= 0) or (fast is not None and fast <= 0):
    return {"ratio": None, "bound": "reached before the first update"}
  if slow is None:
    return {"ratio": last / fast, "bound": "at least"}  # type: ignore[operator]
  if fast is None:
    return {"ratio": slow / last, "bound": "at most"}
  return {"ratio": slow / fast, "bound": "exactly"}


def reference_updates(curves: Sequence[Curve]) -> list[int]:
  """Evaluated updates nearest to the quarters of the longest of some curves.

  Args:
    curves: of one task.

  Returns:
    Ascending, without the start; of two that are as near, the lower one.
  """
  evaluated = sorted(
    {int(update) for curve in curves for update in curve.updates if update > 0}
  )
  if not evaluated:
    return []
  wanted = [evaluated[-1] * part / _PARTS for part in range(1, _PARTS + 1)]
  return sorted(
    {min(evaluated, key=lambda update: abs(update - at)) for at in wanted}
  )


def make_learning(
  runs: Sequence[Run],
  differences: Mapping[str, Any],
  reference: str | None,
  pair: tuple[str, str] | None,
) -> dict[str, Any]:
  """Curves, reference points, targets and speed, by task.

  Args:
    runs: with metrics.
    differences: of accuracy, as in `results.json`.
    reference: method whose final accuracy is a target, if any.
    pair: the first is faster by how much, if two methods are compared.
  """
  tasks = sorted({run.task for run in runs})
  methods = sorted({run.method for run in runs}, key=method_order)
  curves: dict[str, dict[str, Curve]] = {}
  for method in methods:
    own = {
      task: _curve([r for r in runs if (r.task, r.method) == (task, method)])
      for task in tasks
    }
    own[MEAN] = _mean_curve(list(own.values()))
    for task, curve in own.items():
      if curve is not None:
        curves.setdefault(task, {})[method] = curve
  return {
    task: _learning_of_task(
      by, _targets(by, _learned(differences, task), reference), pair
    )
    for task, by in curves.items()
  }


def _learned(differences: Mapping[str, Any], task: str) -> set[str]:
  """Methods that are above the agent they began with, beyond noise."""
  for start in (WARM_START, BASE):
    found, measured = set(), False
    for name, by_task in differences.items():
      method, _, second = name.partition(" - ")
      estimates = [
        kinds["sampled"]
        for key, kinds in by_task.items()
        if (key == task or key.startswith(f"{task}/")) and "sampled" in kinds
      ]
      if second != start or not estimates:
        continue
      measured = True
      if any(e["clear"] and e["mean"] > 0 for e in estimates):
        found.add(method)
    if measured:
      return found
  return set()


def _targets(
  curves: Mapping[str, Curve], learned: set[str], reference: str | None
) -> dict[str, float]:
  """Accuracies that speed is measured by; none that is noise.

  Half of the way from the first accuracy to the best final one, and the
  reference's final one, of methods that have learned.
  """
  finals = {
    m: float(curves[m].mean[-1])
    for m in learned
    if m in curves and len(curves[m].updates) > 1
  }
  if not finals:
    return {}
  start = float(np.mean([curve.mean[0] for curve in curves.values()]))
  targets = {HALFWAY: (start + max(finals.values())) / 2}
  if reference in finals:
    targets[REFERENCE_FINAL] = finals[reference]
  return targets


def _learning_of_task(
  curves: Mapping[str, Curve],
  targets: Mapping[str, float],
  pair: tuple[str, str] | None,
) -> dict[str, Any]:
  references = reference_updates([*curves.values()])
  methods: dict[str, Any] = {}
  for method, curve in curves.items():
    at = {int(u): i for i, u in enumerate(curve.updates)}
    methods[method] = {
      "curve": {
        "updates": [int(u) for u in curve.updates],
        "mean": curve.mean.tolist(),
        "seeds": {str(s): y.tolist() for s, y in curve.seeds.items()},
      },
      "at_updates": {
        str(u): {
          "mean": float(curve.mean[at[u]]),
          "seeds": {str(s): float(y[at[u]]) for s, y in curve.seeds.items()},
        }
        for u in references
        if u in at
      },
      "updates_to": {
        name: {
          "mean": updates_to(curve.updates, curve.mean, target),
          "seeds": {
            str(s): updates_to(curve.updates, y, target)
            for s, y in curve.seeds.items()
          },
        }
        for name, target in targets.items()
      },
      "last_update": int(curve.updates[-1]),
    }
  content: dict[str, Any] = {
    "reference_updates": references,
    "targets": dict(targets),
    "methods": methods,
  }
  if pair is None or not all(method in methods for method in pair):
    return content
  fast, slow = pair
  last = min(methods[method]["last_update"] for method in pair)
  # Before the second evaluation there is no speed.
  if last > 0:
    content["speedup"] = {
      name: _speedup(
        methods[slow]["updates_to"][name]["mean"],
        methods[fast]["updates_to"][name]["mean"],
        last,
      )
      | {"interval": _speed_interval(curves[slow], curves[fast], target)}
      for name, target in targets.items()
    }
  return content


def _speed_interval(
  slow: Curve, fast: Curve, target: float
) -> list[float] | None:
  """Interval of `_speedup` over pairs of seeds; None for fewer than two.

  A curve that does not reach the target counts as reaching it at its end,
  which keeps the interval nearer to 1.
  """
  seeds = sorted(set(slow.seeds) & set(fast.seeds))
  if len(seeds) < 2:
    return None

  def reached(curve: Curve, chosen: Sequence[int]) -> float:
    mean = np.mean([curve.seeds[seed] for seed in chosen], axis=0)
    at = updates_to(curve.updates, mean, target)
    # Reached before anything was learned: the first evaluation decides.
    least = curve.updates[curve.updates > 0].min(initial=curve.updates[-1])
    return float(max(curve.updates[-1] if at is None else at, least))

  def ratio(chosen: Sequence[int]) -> float:
    return reached(slow, chosen) / reached(fast, chosen)

  low, high = bootstrap.statistic_interval(
    len(seeds), lambda picks: ratio([seeds[i] for i in picks])
  )
  return [low, high]
