"""Every figure of a run, computed from the files of its work folder.

Reads evaluations and runs (`experiments.report.sources`) and `starts.jsonl`
(what ran, where and when); writes `results.json`. Whatever is missing is left
out, so that a run that is half done can be looked at.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import diversity, health, provenance
from experiments.dependencies import DONE_FILE
from experiments.report import board, bootstrap
from experiments.report.board import MEAN
from experiments.report.folders import read_study, sources
from experiments.report.methods import (
  AGENTS,
  BASE,
  WARM_START,
  Shown,
  method_order,
)
from experiments.report.sources import (
  REFERENCE,
  Evaluation,
  Run,
  health_settings,
  load_evaluations,
  load_runs,
  shown_methods,
)
from experiments.workdir import read_json, write_json

# Differences that are shown first, where both are there.
_FIRST_COMPARISONS = (("rapo", REFERENCE), ("rapo", "hybrid"))
# Parts of a run at whose ends accuracy is compared.
_PARTS = 4
# Below this a cost is noise, and a ratio to it says nothing.
_LEAST_SECONDS = 0.05
_LEAST_COUNT = 1.0

COSTS = {
  "rollout/seconds": "rollout, s",
  "update/seconds": "update, s",
  "rollout/generated_tokens": "generated tokens",
  "rollout/tool_calls": "tool calls",
  "rollout/response_tokens": "response tokens",
  "rollout/tool_seconds": "in tools, s",
  "rollout/retrieval_seconds": "in retrieval, s",
}
TRAINING = (
  "groups/live_fraction",
  "reward/mean",
  "reward/accuracy",
  "retrieval/reward",
  "retrieval/effect",
  "retrieval/effect_positive",
  "retrieval/effect_negative",
  "retrieval/num_probed",
  "probe/generated_tokens",
  "probe/seconds",
  "rollout/retrievals",
  "rollout/retrievals_with_answer",
  "rollout/retrieved_fraction",
  "rollout/entropy",
)
_GAP = "mismatch/abs_log_prob_max"


def write_results(workdir: str | pathlib.Path) -> dict[str, Any]:
  """Computes the results, writes `results.json`, returns them."""
  path = pathlib.Path(workdir) / "results.json"
  results = compute_results(workdir)
  write_json(path, results)
  return results


def compute_results(workdir: str | pathlib.Path) -> dict[str, Any]:
  """Accuracy, differences, learning, training and cost by task and method.

  Args:
    workdir: work folder of a run, finished or not.

  Returns:
    JSON-ready content of `results.json`. Each part is keyed by task, with
    "mean" for the mean over tasks (of the methods that every task has), then
    by method. Accuracies are shares in [0, 1]; intervals are 95 %, see
    `experiments.report.bootstrap`, and null where a method has one seed.
  """
  evaluations = load_evaluations(workdir)
  runs = load_runs(workdir)
  study = read_study(workdir)
  reference = study.get("reference", REFERENCE)
  tasks = sorted({*evaluations, *(run.task for run in runs)})
  there = _methods(evaluations, runs)
  accuracy = _accuracy(evaluations)
  best = _best_other(accuracy)
  pairs = _comparisons(there, reference)
  if best is not None and ("rapo", best) not in pairs:
    pairs.append(("rapo", best))
  differences = {
    f"{first} - {second}": _differences(evaluations, first, second)
    for first, second in pairs
  }
  shown = shown_methods(workdir, runs)
  results = {
    "written": _now(),
    "study": {key: study[key] for key in ("name", "description") if study},
    "reference": reference,
    "best_other": best,
    "provenance": [
      start
      for source in sources(workdir)
      for start in provenance.read_starts(source.folder)
    ],
    "tasks": tasks,
    "methods": there,
    "labels": {m: shown[m].label if m in shown else m for m in there},
    "colours": {
      m: [shown[m].colour, shown[m].dark_colour] if m in shown else [None, None]
      for m in there
    },
    "warm_start": _warm_starts(workdir),
    "unfinished_runs": [
      f"{run.task}/{run.name}" for run in runs if not run.finished
    ],
    "left_out": sum(
      e.num_left_out for group in evaluations.values() for e in group
    ),
    "accuracy": accuracy,
    "differences": differences,
    "board": board.make_board(runs, reference),
    "diversity": _diversity(runs),
    "reference_updates": _reference_updates(runs),
    "learning": _learning(runs, differences),
    "training": _training(runs),
    "cost": _cost(runs, reference),
    "warnings": _warnings(workdir, runs, evaluations, shown),
    "bootstrap_resamples": bootstrap.NUM_RESAMPLES,
  }
  return _without_nan(results)


def _comparisons(there: Sequence[str], reference: str) -> list[tuple[str, str]]:
  """Pairs that are compared: with the reference, then with the base agent."""
  trained = [m for m in there if m not in AGENTS]
  pairs = [
    *_FIRST_COMPARISONS,
    *((m, reference) for m in trained if m != reference),
    *((m, BASE) for m in trained),
  ]
  if WARM_START in there:
    pairs.append((WARM_START, BASE))
    pairs += ((m, WARM_START) for m in trained)
  return list(dict.fromkeys(pairs))


def _best_other(accuracy: Mapping[str, Any]) -> str | None:
  """The trained method of the highest accuracy that is no part of RAPO.

  On the mean over tasks; None without one.
  """
  found = {
    method: content["sampled"]["mean"]
    for method, content in accuracy.get(MEAN, {}).items()
    if method not in AGENTS and not method.startswith(("rapo", "hybrid"))
  }
  return max(found, key=lambda method: found[method]) if found else None


def _methods(
  evaluations: Mapping[str, Sequence[Evaluation]], runs: Sequence[Run]
) -> list[str]:
  evaluated = (e.method for group in evaluations.values() for e in group)
  return sorted({*evaluated, *(run.method for run in runs)}, key=method_order)


# Accuracy and differences.


@dataclasses.dataclass(frozen=True)
class _Table:
  """Accuracy of one method on one task: `values[seed, question]`."""

  seeds: tuple[int | None, ...]
  questions: tuple[str, ...]
  values: np.ndarray


def _table(
  group: Sequence[Evaluation], method: str, kind: str
) -> _Table | None:
  """Table over the questions that every seed of the method answered."""
  own = [e for e in group if e.method == method]
  if not own:
    return None
  answers = [getattr(e, kind) for e in own]
  questions = sorted(set.intersection(*(set(a) for a in answers)))
  if not questions:
    return None
  values = np.array([[a[q] for q in questions] for a in answers], float)
  return _Table(tuple(e.seed for e in own), tuple(questions), values)


def _paired(first: _Table | None, second: _Table | None) -> _Table | None:
  """Difference over the seeds and questions that both tables have."""
  if first is None or second is None:
    return None
  if second.seeds == (None,):
    # One agent that is not trained stands beside every seed.
    num_seeds = len(first.seeds)
    second = dataclasses.replace(
      second,
      seeds=first.seeds,
      values=np.repeat(second.values, num_seeds, axis=0),
    )
  seeds = [seed for seed in first.seeds if seed in second.seeds]
  questions = sorted(set(first.questions) & set(second.questions))
  if not seeds or not questions:
    return None

  def pick(table: _Table) -> np.ndarray:
    rows = [table.seeds.index(seed) for seed in seeds]
    position = {q: i for i, q in enumerate(table.questions)}
    columns = [position[q] for q in questions]
    return table.values[np.ix_(rows, columns)]

  values = pick(first) - pick(second)
  return _Table(tuple(seeds), tuple(questions), values)


def _estimate(tables: Sequence[_Table]) -> dict[str, Any]:
  """Mean over tables with its interval, and the same for each seed."""
  interval = bootstrap.mean_interval([table.values for table in tables])
  num_seeds = min(len(table.seeds) for table in tables)
  # Questions alone would give one trained policy too narrow an interval. An
  # agent that is not trained has no seed to be drawn again.
  claimed = num_seeds > 1 or all(t.seeds == (None,) for t in tables)
  shared = [s for s in tables[0].seeds if all(s in t.seeds for t in tables)]
  return {
    "mean": interval.mean,
    "interval": [interval.low, interval.high] if claimed else None,
    "clear": interval.low > 0 or interval.high < 0,
    "num_seeds": num_seeds,
    "num_questions": min(len(table.questions) for table in tables),
    "seeds": {
      str(seed): float(
        np.mean([t.values[t.seeds.index(seed)].mean() for t in tables])
      )
      for seed in shared
      if seed is not None
    },
  }


def _estimates(
  tables: Mapping[str, Mapping[str, _Table | None]],
) -> dict[str, Any]:
  """`{task: {kind: table}}` to `{task or mean: {kind: estimate}}`."""
  found: dict[str, Any] = {}
  for task, by_kind in tables.items():
    kinds = {k: _estimate([t]) for k, t in by_kind.items() if t is not None}
    if kinds:
      found[task] = kinds
  for kind in ("sampled", "greedy"):
    every = [by_kind[kind] for by_kind in tables.values()]
    present = [table for table in every if table is not None]
    if present and len(present) == len(every):
      found.setdefault(MEAN, {})[kind] = _estimate(present)
  return found


def _accuracy(
  evaluations: Mapping[str, Sequence[Evaluation]],
) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for method in _methods(evaluations, ()):
    tables = {
      task: {k: _table(group, method, k) for k in ("sampled", "greedy")}
      for task, group in evaluations.items()
    }
    for task, kinds in _estimates(tables).items():
      found.setdefault(task, {})[method] = kinds
  for task, group in evaluations.items():
    for method, content in found.get(task, {}).items():
      own = [e for e in group if e.method == method]
      content["num_samples"] = max(e.num_samples for e in own)
      content["update"] = max((e.update or 0) for e in own)
  return found


def _differences(
  evaluations: Mapping[str, Sequence[Evaluation]], first: str, second: str
) -> dict[str, Any]:
  return _estimates(
    {
      task: {
        kind: _paired(_table(group, first, kind), _table(group, second, kind))
        for kind in ("sampled", "greedy")
      }
      for task, group in evaluations.items()
    }
  )


def _warm_starts(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """What each warm start that has ended took and gave, a task each."""
  found = []
  seen: set[pathlib.Path] = set()
  for source in sources(workdir):
    for path in sorted(source.folder.glob(f"warm_start/*/{DONE_FILE}")):
      # Arms of a study may share one.
      if path.resolve() in seen:
        continue
      seen.add(path.resolve())
      figures = read_json(path)["figures"]
      name = source.method(WARM_START)
      found.append({"task": path.parent.name, "agent": name, **figures})
  return found


# Learning curves.


@dataclasses.dataclass(frozen=True)
class _Curve:
  """Held-out accuracy against updates; `seeds[k]` and `mean` fit `updates`."""

  updates: np.ndarray
  seeds: Mapping[int, np.ndarray]

  @property
  def mean(self) -> np.ndarray:
    return np.mean(list(self.seeds.values()), axis=0)


def _curve(runs: Sequence[Run]) -> _Curve | None:
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
  return _Curve(
    updates,
    {seed: y[np.isin(x, updates)] for seed, (x, y) in series.items()},
  )


def _mean_curve(curves: Sequence[_Curve | None]) -> _Curve | None:
  """Mean over tasks, for the seeds and updates that all of them have."""
  present = [curve for curve in curves if curve is not None]
  if not present or len(present) < len(curves):
    return None
  updates = sorted(set.intersection(*(set(c.updates) for c in present)))
  seeds = set.intersection(*(set(c.seeds) for c in present))
  if not updates or not seeds:
    return None
  return _Curve(
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
  """GRPO's updates over RAPO's; a bound where one of them never gets there."""
  if slow is None and fast is None:
    return {"ratio": None, "bound": "neither reached it"}
  if (slow is not None and slow <= 0) or (fast is not None and fast <= 0):
    return {"ratio": None, "bound": "reached before the first update"}
  if slow is None:
    return {"ratio": last / fast, "bound": "at least"}  # type: ignore[operator]
  if fast is None:
    return {"ratio": slow / last, "bound": "at most"}
  return {"ratio": slow / fast, "bound": "exactly"}


def _reference_updates(runs: Sequence[Run]) -> list[int]:
  """Evaluated updates nearest to the quarters of the longest run."""
  evaluated = sorted(
    {
      int(update)
      for run in runs
      for update in run.series("update", "eval/accuracy")[0]
      if update > 0
    }
  )
  if not evaluated:
    return []
  wanted = [evaluated[-1] * part / _PARTS for part in range(1, _PARTS + 1)]
  return sorted(
    {min(evaluated, key=lambda update: abs(update - at)) for at in wanted}
  )


def _learning(
  runs: Sequence[Run], differences: Mapping[str, Any]
) -> dict[str, Any]:
  tasks = sorted({run.task for run in runs})
  methods = sorted({run.method for run in runs}, key=method_order)
  curves: dict[str, dict[str, _Curve]] = {}
  for method in methods:
    own = {
      task: _curve([r for r in runs if (r.task, r.method) == (task, method)])
      for task in tasks
    }
    own[MEAN] = _mean_curve(list(own.values()))
    for task, curve in own.items():
      if curve is not None:
        curves.setdefault(task, {})[method] = curve
  references = _reference_updates(runs)
  return {
    task: _learning_of_task(
      by, references, _targets(by, _above_base(differences, task))
    )
    for task, by in curves.items()
  }


def _above_base(differences: Mapping[str, Any], task: str) -> set[str]:
  """Methods whose final accuracy is above the base agent's beyond noise."""
  found = set()
  for name, by_task in differences.items():
    method, _, second = name.partition(" - ")
    estimates = [
      kinds["sampled"]
      for key, kinds in by_task.items()
      if (key == task or key.startswith(f"{task}/")) and "sampled" in kinds
    ]
    if second == BASE and any(e["clear"] and e["mean"] > 0 for e in estimates):
      found.add(method)
  return found


def _targets(curves: Mapping[str, _Curve], above: set[str]) -> dict[str, float]:
  """Accuracies that speed is measured by; none that is noise.

  Half of the way from the first accuracy to the best final one, and GRPO's
  final one, of methods that are above the base agent.
  """
  finals = {m: float(curves[m].mean[-1]) for m in above if m in curves}
  if not finals:
    return {}
  start = float(np.mean([curve.mean[0] for curve in curves.values()]))
  targets = {"halfway": (start + max(finals.values())) / 2}
  if "grpo" in finals:
    targets["grpo_final"] = finals["grpo"]
  return targets


def _learning_of_task(
  curves: Mapping[str, _Curve],
  references: Sequence[int],
  targets: Mapping[str, float],
) -> dict[str, Any]:
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
  content: dict[str, Any] = {"targets": dict(targets), "methods": methods}
  compared = [
    methods[m]["last_update"] for m in ("grpo", "rapo") if m in methods
  ]
  # Before the second evaluation there is no speed.
  if len(compared) == 2 and min(compared) > 0:
    last = min(compared)
    content["speedup"] = {
      name: _speedup(
        methods["grpo"]["updates_to"][name]["mean"],
        methods["rapo"]["updates_to"][name]["mean"],
        last,
      )
      | {"interval": _speed_interval(curves["grpo"], curves["rapo"], target)}
      for name, target in targets.items()
    }
  return content


def _speed_interval(
  slow: _Curve, fast: _Curve, target: float
) -> list[float] | None:
  """Interval of `_speedup` over pairs of seeds; None for fewer than two.

  A curve that does not reach the target counts as reaching it at its end,
  which keeps the interval nearer to 1.
  """
  seeds = sorted(set(slow.seeds) & set(fast.seeds))
  if len(seeds) < 2:
    return None

  def reached(curve: _Curve, chosen: Sequence[int]) -> float:
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


# Warnings.


def _warnings(
  workdir: str | pathlib.Path,
  runs: Sequence[Run],
  evaluations: Mapping[str, Sequence[Evaluation]],
  shown: Mapping[str, Shown],
) -> list[dict[str, Any]]:
  """Alerts of every run, and evaluations in which nothing could be right."""
  by_folder = {s.folder: health_settings(s.folder) for s in sources(workdir)}
  found = []
  for run in runs:
    settings, hybrid = by_folder[run.source.folder]
    retrieves = hybrid and shown[run.method].retrieves
    alerts = health.alerts_of(run.rows, settings, retrieves=retrieves)
    found += [_warning(run.task, run.name, alert) for alert in alerts]
  settings, _ = next(iter(by_folder.values()))
  for task, group in evaluations.items():
    for evaluation in group:
      alert = _broken_evaluation(evaluation, settings)
      if alert is not None:
        found.append(_warning(task, evaluation.agent, alert))
  return found


def _warning(task: str, agent: str, alert: health.Alert) -> dict[str, Any]:
  return {
    "task": task,
    "run": agent,
    "kind": alert.kind,
    "tool": alert.tool,
    "first": alert.first,
    "last": alert.last,
    "stopped": alert.stops,
    "text": alert.text,
  }


def _broken_evaluation(
  evaluation: Evaluation, settings: health.HealthConfig
) -> health.Alert | None:
  """An alert where nothing is right and most trajectories break the format."""
  statuses = evaluation.score_statuses
  total = sum(statuses.values())
  whole = evaluation.num_whole
  right = any(evaluation.sampled.values())
  if not total or right or whole > (1 - settings.broken_share) * total:
    return None
  broken = 100 * (1 - whole / total)
  most = max(statuses, key=lambda status: statuses[status])
  text = (
    f"no held-out answer is right, and {broken:.0f} % of the trajectories "
    f"break the format, most often as {most}."
  )
  at = evaluation.update or 0
  return health.Alert("broken_format", "", at, at, text, show=True, stops=False)


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


# Training and cost.


def _mean_over_updates(run: Run, name: str) -> float:
  _, values = run.series("update", name)
  return float(values.mean()) if len(values) else math.nan


def _at_first_update(run: Run, name: str) -> float:
  updates, values = run.series("update", name)
  return float(values[updates == 1][0]) if 1 in updates else math.nan


def _by_task_and_method(
  runs: Sequence[Run],
) -> dict[str, dict[str, list[Run]]]:
  found: dict[str, dict[str, list[Run]]] = {}
  for run in runs:
    found.setdefault(run.task, {}).setdefault(run.method, []).append(run)
  return found


def _training(runs: Sequence[Run]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for task, by_method in _by_task_and_method(runs).items():
    for method, own in by_method.items():
      content: dict[str, Any] = {}
      for name in TRAINING:
        seeds = {str(run.seed): _mean_over_updates(run, name) for run in own}
        if np.isfinite(list(seeds.values())).any():
          mean = float(np.nanmean(list(seeds.values())))
          content[name] = {"mean": mean, "seeds": seeds}
      gaps = [run.series("update", _GAP)[1] for run in own]
      if any(len(gap) for gap in gaps):
        content[_GAP] = float(max(gap.max() for gap in gaps if len(gap)))
      found.setdefault(task, {})[method] = content
  overall = {}
  for method in _methods({}, runs):
    contents = [by_method.get(method, {}) for by_method in found.values()]
    overall[method] = {
      name: {"mean": _mean([content[name]["mean"] for content in contents])}
      for name in TRAINING
      if all(name in content for content in contents)
    }
  return found | ({MEAN: overall} if overall else {})


def _diversity(runs: Sequence[Run]) -> dict[str, Any]:
  """Measures of plain and hybrid rollouts, by task and method.

  Each has its mean over seeds, and their difference with an interval over
  seeds; None for one seed.
  """
  found: dict[str, Any] = {}
  for task, by_method in _by_task_and_method(runs).items():
    for method, own in by_method.items():
      read = [diversity.read_diversity(run.path) for run in own]
      measured = [content for content in read if content is not None]
      if not measured:
        continue
      content = {}
      for name in diversity.MEASURES:
        plain, hybrid = (
          np.array([one[kind][name] for one in measured])
          for kind in diversity.KINDS
        )
        content[name] = {
          "plain": float(plain.mean()),
          "hybrid": float(hybrid.mean()),
          "difference": bootstrap.seed_mean(hybrid - plain),
        }
      found.setdefault(task, {})[method] = content
  return found


def _cost(runs: Sequence[Run], reference: str) -> dict[str, Any]:
  """Cost per update: over whole runs, and at the first one.

  The first update is the fair comparison: same weights, same questions. Over
  whole runs the policies differ, and one that answers early looks cheap.
  """
  by_task: dict[str, Any] = {}
  for task, by_method in _by_task_and_method(runs).items():
    by_task[task] = {
      method: {
        name: {
          "mean": _mean([_mean_over_updates(run, name) for run in own]),
          "first_update": _mean([_at_first_update(run, name) for run in own]),
        }
        for name in COSTS
      }
      for method, own in by_method.items()
    }
  shared = [
    m for m in _methods({}, runs) if all(m in t for t in by_task.values())
  ]
  if shared:
    by_task[MEAN] = {
      method: {
        name: {
          when: _mean([task[method][name][when] for task in by_task.values()])
          for when in ("mean", "first_update")
        }
        for name in COSTS
      }
      for method in shared
    }
  return {
    task: {"methods": by_method, "ratios": _cost_ratios(by_method, reference)}
    for task, by_method in by_task.items()
  }


def _cost_ratios(
  by_method: Mapping[str, Any], reference: str
) -> dict[str, Any]:
  return {
    f"{first} / {second}": {
      name: {
        when: _ratio(
          by_method[first][name][when], by_method[second][name][when], name
        )
        for when in ("mean", "first_update")
      }
      for name in COSTS
    }
    for first, second in _comparisons(list(by_method), reference)
    if first in by_method and second in by_method
  }


def _ratio(first: float, second: float, name: str) -> float:
  """NaN where either is too small to be compared."""
  least = _LEAST_SECONDS if name.endswith("seconds") else _LEAST_COUNT
  return first / second if min(first, second) >= least else math.nan


def _mean(values: Sequence[float]) -> float:
  finite = [value for value in values if math.isfinite(value)]
  return float(np.mean(finite)) if finite else math.nan


def _without_nan(content: Any) -> Any:
  """JSON has no NaN: what was not measured is null."""
  if isinstance(content, dict):
    return {key: _without_nan(value) for key, value in content.items()}
  if isinstance(content, list | tuple):
    return [_without_nan(value) for value in content]
  if isinstance(content, float) and not math.isfinite(content):
    return None
  return content
