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
from experiments.report import board, bootstrap, cost, learning
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
  configured_methods,
  health_settings,
  load_evaluations,
  load_runs,
  shown_methods,
)
from experiments.workdir import read_json, write_json

_OURS = "rapo"
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
  tasks = sorted({*evaluations, *(run.task for run in runs)})
  there = _methods(evaluations, runs)
  accuracy = _accuracy(evaluations)
  reference = _reference(workdir, study, there)
  pair = _main_pair(there, reference, accuracy)
  best = _best_other(accuracy)
  pairs = _comparisons(there, reference, pair)
  if _OURS in there and best is not None and (_OURS, best) not in pairs:
    pairs.append((_OURS, best))
  differences = {
    f"{first} - {second}": _differences(evaluations, first, second)
    for first, second in pairs
  }
  shown = shown_methods(workdir, runs, agents=there)
  results = {
    "written": _now(),
    "study": {key: study[key] for key in ("name", "description") if study},
    "reference": reference,
    "pair": pair,
    "best_other": best,
    "provenance": [
      start
      for source in sources(workdir)
      for start in provenance.read_starts(source.folder)
    ],
    "tasks": tasks,
    "methods": there,
    "labels": {m: shown[m].label for m in there},
    "colours": {m: [shown[m].colour, shown[m].dark_colour] for m in there},
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
    "learning": learning.make_learning(runs, differences, reference, pair),
    "training": _training(runs),
    "cost": cost.make_cost(runs, pairs),
    "warnings": _warnings(workdir, runs, evaluations, shown),
    "bootstrap_resamples": bootstrap.NUM_RESAMPLES,
  }
  return _without_nan(results)


def _reference(
  workdir: str | pathlib.Path, study: Mapping[str, Any], there: Sequence[str]
) -> str | None:
  """What the other methods are compared with; None where there are no others.

  The study's, or GRPO; where it is not there, the first method of the config
  that is not RAPO.
  """
  trained = [m for m in there if m not in AGENTS]
  if len(trained) < 2:
    return None
  wanted = study.get("reference", REFERENCE)
  if wanted in trained:
    return str(wanted)
  order = [m for m in configured_methods(workdir) if m in trained]
  return next(m for m in (*order, *trained) if m != _OURS)


def _main_pair(
  there: Sequence[str], reference: str | None, accuracy: Mapping[str, Any]
) -> tuple[str, str] | None:
  """The comparison that the report begins with.

  RAPO with the reference; without RAPO, the method that is evaluated best.
  """
  if reference is None:
    return None
  others = [m for m in there if m not in AGENTS and m != reference]
  if _OURS in others:
    return _OURS, reference

  def reached(method: str) -> float:
    content = accuracy.get(MEAN, {}).get(method, {}).get("sampled")
    return float(content["mean"]) if content else -1.0

  return max(others, key=reached), reference


def _comparisons(
  there: Sequence[str],
  reference: str | None,
  pair: tuple[str, str] | None,
) -> list[tuple[str, str]]:
  """Pairs that are compared: with the reference, then with the base agent."""
  trained = [m for m in there if m not in AGENTS]
  pairs = [] if pair is None else [pair]
  if _OURS in there and "hybrid" in there:
    pairs.append((_OURS, "hybrid"))
  if reference is not None:
    pairs += [(m, reference) for m in trained if m != reference]
  pairs += [(m, BASE) for m in trained]
  if WARM_START in there:
    pairs.append((WARM_START, BASE))
    pairs += [(m, WARM_START) for m in trained]
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


# Training.


def _mean_over_updates(run: Run, name: str) -> float:
  _, values = run.series("update", name)
  return float(values.mean()) if len(values) else math.nan


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
