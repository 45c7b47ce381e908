"""What an update costs: means, how far they spread, and ratios.

A ratio is read over pairs of runs with the same seed. It is more than chance
where its interval leaves 1 out; from one pair there is no interval, and so no
ratio is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.report import bootstrap
from experiments.report.board import MEAN
from experiments.report.methods import method_order
from experiments.report.sources import Run

COSTS = {
  "rollout/seconds": "rollout, s",
  "update/seconds": "update, s",
  "rollout/generated_tokens": "generated tokens",
  "rollout/tool_calls": "tool calls",
  "rollout/response_tokens": "response tokens",
  "rollout/tool_seconds": "in tools, s",
  "rollout/retrieval_seconds": "in retrieval, s",
}
FIRST_UPDATE = "first_update"
"""The fair comparison: same weights, same questions."""
WHOLE_RUN = "mean"
"""Here policies differ, and one that answers early looks cheap."""
_TIMES = (FIRST_UPDATE, WHOLE_RUN)
# Below this a cost is noise, and a ratio to it says nothing.
_LEAST_SECONDS = 0.05
_LEAST_COUNT = 1.0
_TAIL = 0.05


def make_cost(
  runs: Sequence[Run], pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
  """Costs of an update and their ratios, by task.

  Args:
    runs: with metrics.
    pairs: of methods, of which the first is divided by the second.

  Returns:
    `{task or "mean": {"methods": …, "ratios": …}}`. A method has, by metric and
    by `FIRST_UPDATE` or `WHOLE_RUN`, the `mean` over seeds, the value of each
    of the `seeds`, and `spread`: the lowest and the highest seed of first
    updates, the 5th and the 95th percentile of the updates of whole runs; None
    where there is one value. A ratio has its `ratio` and a 95 % `interval`,
    None for one pair of seeds; it is None itself where nothing can be divided.
    The mean has the methods of every task.
  """
  tasks = sorted({run.task for run in runs})
  own: dict[tuple[str, str], list[Run]] = {}
  for run in runs:
    own.setdefault((run.task, run.method), []).append(run)
  costs = {key: _costs(group) for key, group in own.items()}
  methods = sorted({method for _, method in own}, key=method_order)
  found: dict[str, Any] = {}
  for task in tasks:
    here = [m for m in methods if (task, m) in costs]
    found[task] = {m: costs[task, m] for m in here}
  shared = [m for m in methods if all((task, m) in costs for task in tasks)]
  if shared:
    found[MEAN] = {
      m: _over_tasks([costs[task, m] for task in tasks]) for m in shared
    }
  return {
    task: {"methods": by_method, "ratios": _ratios(by_method, pairs)}
    for task, by_method in found.items()
  }


def clear_ratio(ratio: Mapping[str, Any] | None) -> bool:
  """Whether a ratio is more than chance: its interval leaves 1.00 out."""
  if ratio is None or ratio["ratio"] is None or not ratio["interval"]:
    return False
  low, high = (round(end, 2) for end in ratio["interval"])
  return low > 1 or high < 1


def _costs(runs: Sequence[Run]) -> dict[str, Any]:
  """Costs of one method on one task."""
  return {
    name: {FIRST_UPDATE: _first(runs, name), WHOLE_RUN: _whole(runs, name)}
    for name in COSTS
  }


def _first(runs: Sequence[Run], name: str) -> dict[str, Any]:
  seeds = {}
  for run in runs:
    updates, values = run.series("update", name)
    if 1 in updates:
      seeds[str(run.seed)] = float(values[updates == 1][0])
  return _cost(seeds, _ends(seeds.values()))


def _whole(runs: Sequence[Run], name: str) -> dict[str, Any]:
  every = {str(run.seed): run.series("update", name)[1] for run in runs}
  seeds = {seed: float(v.mean()) for seed, v in every.items() if len(v)}
  values = np.concatenate([*every.values()])
  spread = None
  if len(values) > 1:
    low, high = np.quantile(values, (_TAIL, 1 - _TAIL))
    spread = [float(low), float(high)]
  return _cost(seeds, spread)


def _cost(
  seeds: Mapping[str, float], spread: Sequence[float] | None
) -> dict[str, Any]:
  mean = float(np.mean([*seeds.values()])) if seeds else math.nan
  return {"mean": mean, "spread": spread, "seeds": dict(seeds)}


def _ends(values: Iterable[float]) -> list[float] | None:
  """The lowest and the highest; None for fewer than two."""
  there = [*values]
  return [min(there), max(there)] if len(there) > 1 else None


def _over_tasks(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Mean over tasks of what each of them measured."""
  return {
    name: {when: _joined([c[name][when] for c in costs]) for when in _TIMES}
    for name in COSTS
  }


def _joined(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Costs of several tasks as one; of whole runs, the mean of the spreads."""
  present = [cost for cost in costs if cost["seeds"]]
  if not present:
    return _cost({}, None)
  shared = set.intersection(*(set(cost["seeds"]) for cost in present))
  seeds = {
    seed: float(np.mean([cost["seeds"][seed] for cost in present]))
    for seed in sorted(shared, key=int)
  }
  spreads = [cost["spread"] for cost in present]
  spread = None
  if None not in spreads:
    spread = [float(end) for end in np.mean(spreads, axis=0)]
  mean = float(np.mean([cost["mean"] for cost in present]))
  return {"mean": mean, "spread": spread, "seeds": seeds}


def _ratios(
  by_method: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
  return {
    f"{first} / {second}": {
      name: {
        when: _ratio(
          by_method[first][name][when], by_method[second][name][when], name
        )
        for when in _TIMES
      }
      for name in COSTS
    }
    for first, second in pairs
    if first in by_method and second in by_method
  }


def _ratio(
  first: Mapping[str, Any], second: Mapping[str, Any], name: str
) -> dict[str, Any] | None:
  """None where either is too small to be compared, or no seed has both."""
  shared = [seed for seed in first["seeds"] if seed in second["seeds"]]
  if not shared:
    return None
  above, below = (
    np.array([cost["seeds"][seed] for seed in shared])
    for cost in (first, second)
  )
  least = _LEAST_SECONDS if name.endswith("seconds") else _LEAST_COUNT
  if min(above.mean(), below.mean()) < least:
    return None
  interval = None
  if len(shared) > 1:

    def ratio(picks: Sequence[int]) -> float:
      chosen = list(picks)
      return float(above[chosen].sum() / max(below[chosen].sum(), 1e-12))

    interval = [*bootstrap.statistic_interval(len(shared), ratio)]
  return {"ratio": float(above.mean() / below.mean()), "interval": interval}
