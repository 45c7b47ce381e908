"""`report.html`: what a run has found, on one self-contained page.

No script, style, font or picture is fetched: the page works from a disk or a
mail. Text of trajectories is data and never markup, whatever it holds.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from experiments import diversity, pages
from experiments.report import charts, samples, tables
from experiments.report import results as results_lib
from experiments.report.board import MEAN
from experiments.report.folders import sources
from experiments.report.methods import colour_rules, label
from experiments.report.sources import Run, load_runs
from experiments.workdir import Workdir, read_config
from rapo_jax import files

_X_AXES = (
  ("update", "updates"),
  ("seconds", "seconds of training"),
  ("generated_tokens", "generated tokens"),
)
# Differences that stand out at the top.
_MOST_TILES = 6
_DIAGNOSTICS = (
  ("rollout/entropy", "Entropy of the policy", "nats", None),
  ("groups/live_fraction", "Live groups", "share", (0.0, 1.0)),
  ("reward/mean", "Training reward", "mean", None),
  ("retrieval/reward", "Retrieval reward", "mean Z", None),
  ("retrieval/effect", "Effect of retrieved steps", "mean reward", None),
  ("rollout/retrieved_fraction", "Retrieved tokens", "share", None),
  ("rollout/tool_calls", "Tool calls", "an update", None),
  ("rollout/tool_failures", "Tool calls without success", "an update", None),
)


def write_report(
  workdir: str | pathlib.Path, results: Mapping[str, Any] | None = None
) -> pathlib.Path:
  """Writes `report.html` into a work folder.

  Args:
    workdir: work folder of a run, finished or not.
    results: what `write_results` returned; computed when None.

  Returns:
    Path of the page.
  """
  workdir = pathlib.Path(workdir)
  if results is None:
    results = results_lib.compute_results(workdir)
  path = workdir / "report.html"
  files.replace_text(path, _render(workdir, results))
  return path


def _render(workdir: pathlib.Path, results: Mapping[str, Any]) -> str:
  runs = load_runs(workdir)
  config = _configs(workdir)
  trained = [m for m in results["methods"] if any(r.method == m for r in runs)]
  return pages.template("report.html.j2").render(
    title=_title(workdir, results),
    description=results["study"].get("description", ""),
    board=_board(results),
    reference=label(results, results["reference"]),
    headline=tables.headline(results),
    warnings=_warning_table(results),
    status_charts=list(_status_charts(results, runs)),
    statuses=[
      (charts.band_class(status, band), status_label(status))
      for band, status in enumerate(_statuses(runs))
    ],
    references=results["reference_updates"],
    written=results["written"],
    log_every=_setting(config, "config.train.log_trajectories_every"),
    provenance=list(_provenance(results)),
    lines=[
      *tables.hybrid_lines(results),
      *tables.speed_lines(results),
      *tables.cost_lines(results),
    ],
    tiles=list(_tiles(results)),
    methods=[
      (m, label(results, m), charts.key_mark(m)) for m in results["methods"]
    ],
    trained=[(m, label(results, m), charts.key_mark(m)) for m in trained],
    colours=Markup(colour_rules(results, dark=False)),
    dark_colours=Markup(colour_rules(results, dark=True)),
    has_hybrid="hybrid" in results["methods"],
    accuracy=_accuracy_table(results),
    seeds=_seed_charts(results),
    warm_starts=list(_warm_start_rows(results)),
    differences=_difference_charts(results),
    learning=list(_learning(results, runs)),
    mean_curve=_mean_curve(results),
    progress=_progress_table(results),
    diagnostics=list(_diagnostics(results, runs)),
    diversity=list(_diversity_rows(results)),
    cost=_cost_tables(results),
    config=list(config.items()),
    trajectories=pages.embedded(
      {
        "labels": {m: label(results, m) for m in results["methods"]},
        "groups": samples.sample_groups(runs),
      }
    ),
  )


def _legend(
  results: Mapping[str, Any], methods: Sequence[str]
) -> Iterator[tuple[str, str, Markup]]:
  """Name, label and mark of each method."""
  for method in methods:
    yield method, label(results, method), charts.key_mark(method)


def _title(workdir: pathlib.Path, results: Mapping[str, Any]) -> str:
  """Name of the study or of the experiment."""
  study = results["study"].get("name")
  return str(study or _read_config(workdir).get("name", workdir.name))


def _configs(workdir: pathlib.Path) -> dict[str, str]:
  """Every setting as text; those in which a study's arms differ arm by arm."""
  own = {s.arm: dict(_flat(_read_config(s.folder))) for s in sources(workdir)}
  names = dict.fromkeys(name for config in own.values() for name in config)
  found = {}
  for name in names:
    values = {arm: config.get(name, "–") for arm, config in own.items()}
    if len(set(values.values())) == 1:
      found[name] = next(iter(values.values()))
    else:
      found[name] = ", ".join(f"{arm}: {v}" for arm, v in values.items())
  return found


def _setting(config: Mapping[str, str], name: str) -> Any:
  """A setting that all arms share; None for any other."""
  try:
    return json.loads(config.get(name, "null"))
  except ValueError:
    return None


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
  folder = Workdir(workdir)
  return read_config(folder) if folder.config.exists() else {}


def _board(results: Mapping[str, Any]) -> dict[str, Any]:
  """The leader board, task by task, and whether a run generated fewer."""
  header, rows = tables.board_rows(results)
  tasks = dict.fromkeys(task for task, _ in rows)
  return {
    "header": header,
    "tasks": [
      (task, [row for owner, row in rows if owner == task]) for task in tasks
    ],
  }


def _tiles(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
  """(figure, its name, its interval or reference)."""
  for name in tables.comparisons(results)[:_MOST_TILES]:
    difference = results["differences"][name].get(MEAN, {}).get("sampled")
    if difference:
      yield (
        tables.points(difference["mean"]),
        f"points, {tables.shown_comparison(results, name)}",
        tables.certainty(difference),
      )
  learning = results["learning"].get(MEAN, {})
  speedup = learning.get("speedup", {}).get("halfway")
  if tables.clear_ratio(speedup):
    yield (
      tables.speedup_text(speedup),
      "updates to half of the gain, GRPO ÷ RAPO",
      ", ".join(
        f"{label(results, m)} "
        f"{tables.updates(c['updates_to']['halfway']['mean'], c)}"
        for m, c in learning["methods"].items()
        if m in ("grpo", "rapo")
      ),
    )
  ratios = results["cost"].get(MEAN, {}).get("ratios", {}).get("rapo / grpo")
  if ratios:
    tokens = ratios["rollout/generated_tokens"]
    yield (
      _times(tokens["first_update"]),
      "generated tokens, RAPO ÷ GRPO",
      f"at the first update; {_times(tokens['mean'])} over whole runs",
    )
  gaps = [
    content["mismatch/abs_log_prob_max"]
    for by_method in results["training"].values()
    for content in by_method.values()
    if "mismatch/abs_log_prob_max" in content
  ]
  if gaps:
    yield (
      f"{max(gaps):.1e}",
      "largest log-prob gap",
      "between sampler and trainer, over all runs",
    )


def _times(value: float | None) -> str:
  return "–" if value is None else f"{value:.2f}×"


def _accuracy_table(results: Mapping[str, Any]) -> dict[str, Any]:
  accuracy = results["accuracy"]
  methods = [
    m for m in results["methods"] if any(m in t for t in accuracy.values())
  ]
  rows = []
  for task in tables.task_rows(results, "accuracy"):
    cells = []
    for method in methods:
      content = accuracy.get(task, {}).get(method, {})
      cells.append((content.get("sampled"), content.get("greedy")))
    comparisons = [
      results["differences"][name].get(task, {}).get("sampled")
      for name in tables.comparisons(results)
    ]
    rows.append((task, cells, [*map(_difference_cell, comparisons)]))
  counts = [
    content
    for by_method in accuracy.values()
    for content in by_method.values()
    if "num_samples" in content
  ]
  return {
    "methods": [(m, label(results, m)) for m in methods],
    "comparisons": [
      tables.shown_comparison(results, name)
      for name in tables.comparisons(results)
    ],
    "rows": rows,
    "num_samples": max((c["num_samples"] for c in counts), default=0),
    "num_questions": min(
      (c["sampled"]["num_questions"] for c in counts if "sampled" in c),
      default=0,
    ),
  }


def _difference_cell(
  estimate: Mapping[str, Any] | None,
) -> tuple[str, str, bool] | None:
  """Mean, interval if any, and whether the interval leaves 0 out."""
  if estimate is None:
    return None
  if estimate["interval"] is None:
    return tables.points(estimate["mean"]), "", False
  low, high = estimate["interval"]
  return (
    tables.points(estimate["mean"]),
    f"{tables.points(low)} to {tables.points(high)}",
    low > 0 or high < 0,
  )


def _seed_charts(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
  found = []
  for task in tables.task_rows(results, "accuracy"):
    rows = [
      (method, label(results, method), content["sampled"])
      for method, content in results["accuracy"].get(task, {}).items()
      if "sampled" in content
    ]
    if rows:
      title = f"Held-out accuracy on {task} by method, every seed"
      found.append((task, charts.dot_chart(rows, title=title)))
  return found


def _difference_charts(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
  found = []
  for name in tables.comparisons(results):
    by_task = results["differences"][name]
    rows = [
      (task, by_task[task]["sampled"])
      for task in tables.task_rows(results, "accuracy")
      if "sampled" in by_task.get(task, {})
    ]
    if rows:
      first, _, second = name.partition(" - ")
      title = f"{label(results, first)} − {label(results, second)}, points"
      found.append(
        (title, charts.difference_chart(rows, title=title, method=first))
      )
  return found


def _learning(
  results: Mapping[str, Any], runs: Sequence[Run]
) -> Iterator[tuple[str, list[Markup]]]:
  """Held-out accuracy against updates, seconds and generated tokens."""
  for task in results["tasks"]:
    row = [
      _accuracy_chart(
        list(_lines(results, runs, task, x_name, "eval/accuracy")), x_label
      )
      for x_name, x_label in _X_AXES
    ]
    if any(row):
      yield task, [chart for chart in row if chart]
    for name in _set_metrics(runs, task):
      lines = list(_lines(results, runs, task, "update", name))
      yield f"{task}/{name.split('/')[1]}", [_accuracy_chart(lines, "updates")]


def _set_metrics(runs: Sequence[Run], task: str) -> list[str]:
  """Metrics of single evaluation sets, where a task has several."""
  rows = (row for run in runs if run.task == task for row in run.rows)
  names = {name for row in rows for name in row}
  return sorted(
    name
    for name in names
    if name.startswith("eval/")
    and name.endswith("/accuracy")
    and name.count("/") == 2
  )


def _mean_curve(results: Mapping[str, Any]) -> Markup:
  """Held-out accuracy against updates, mean over tasks."""
  methods = results["learning"].get(MEAN, {}).get("methods", {})
  lines = []
  for method, content in methods.items():
    curve = content["curve"]
    updates = curve["updates"]
    seeds = {
      seed: list(zip(updates, values, strict=True))
      for seed, values in curve["seeds"].items()
    }
    mean = list(zip(updates, curve["mean"], strict=True))
    lines.append(charts.Lines(method, label(results, method), seeds, mean))
  return _accuracy_chart(lines, "updates")


def _accuracy_chart(lines: Sequence[charts.Lines], x_label: str) -> Markup:
  return charts.line_chart(
    lines,
    x_label=x_label,
    y_label="held-out accuracy",
    y_range=(0.0, 1.0),
    y_format=lambda value: f"{100 * value:.0f} %",
  )


def _diagnostics(
  results: Mapping[str, Any], runs: Sequence[Run]
) -> Iterator[tuple[str, list[tuple[str, str, Markup]]]]:
  for task in results["tasks"]:
    row = []
    for name, title, unit, y_range in _DIAGNOSTICS:
      chart = charts.line_chart(
        list(_lines(results, runs, task, "update", name)),
        x_label="updates",
        y_label=title,
        y_range=y_range,
      )
      if chart:
        row.append((title, unit, chart))
    if row:
      yield task, row


def _lines(
  results: Mapping[str, Any],
  runs: Sequence[Run],
  task: str,
  x_name: str,
  y_name: str,
) -> Iterator[charts.Lines]:
  for method in results["methods"]:
    own = [run for run in runs if (run.task, run.method) == (task, method)]
    by_seed = {str(run.seed): _points(run, x_name, y_name) for run in own}
    by_seed = {seed: points for seed, points in by_seed.items() if points}
    if by_seed:
      shared = set.intersection(*(set(points) for points in by_seed.values()))
      mean = [
        _mean_point([points[update] for points in by_seed.values()])
        for update in sorted(shared)
      ]
      seeds = {seed: list(p.values()) for seed, p in by_seed.items()}
      yield charts.Lines(method, label(results, method), seeds, mean)


def _points(
  run: Run, x_name: str, y_name: str
) -> dict[int, tuple[float, float]]:
  """(x, y) by update; nothing is spent yet at update 0."""
  found = {}
  for row in run.rows:
    x = row.get(x_name, 0.0 if row["update"] == 0 else None)
    y = row.get(y_name)
    if x is not None and y is not None and np.isfinite([x, y]).all():
      found[int(row["update"])] = (float(x), float(y))
  return found


def _mean_point(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
  x, y = np.mean(points, axis=0)
  return float(x), float(y)


def _warm_start_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
  """Task, agent, steps, examples, losses and seconds of each warm start."""
  for row in results["warm_start"]:
    yield [
      row["task"],
      label(results, row["agent"]),
      *(
        f"{row[name]:,}"
        for name in ("steps", "examples", "held_out_examples", "left_out")
      ),
      *(_losses(row[name]) for name in ("loss", "held_out_loss")),
      f"{row['seconds']:,.0f}",
    ]


def _losses(pair: Sequence[float | None] | None) -> str:
  """Two losses; a dash for one that was not measured."""
  if pair is None:
    return "–"
  return " → ".join("–" if loss is None else f"{loss:.3f}" for loss in pair)


def _progress_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Accuracy on the way, and updates to the targets, by task and method."""
  rows = []
  for task in tables.task_rows(results, "learning"):
    learning = results["learning"].get(task)
    for method, content in (learning or {"methods": {}})["methods"].items():
      live = (
        results["training"]
        .get(task, {})
        .get(method, {})
        .get("groups/live_fraction")
      )
      rows.append(
        {
          "task": task,
          "label": label(results, method),
          "at": [
            tables.percent(
              (content["at_updates"].get(str(u)) or {}).get("mean")
            )
            for u in results["reference_updates"]
          ],
          "to": [
            tables.updates(content["updates_to"][name]["mean"], content)
            if name in content["updates_to"]
            else "–"
            for name in ("halfway", "grpo_final")
          ],
          "live": tables.percent(live["mean"] if live else None),
        }
      )
  return rows


def _diversity_rows(
  results: Mapping[str, Any],
) -> Iterator[tuple[str, str, str, str, str, str]]:
  """Task, method, measure, plain, hybrid and difference with its interval."""
  for task, by_method in results["diversity"].items():
    for method, content in by_method.items():
      for name, text in diversity.MEASURES.items():
        row = content[name]
        gap, interval = row["difference"]["mean"], row["difference"]["interval"]
        shown = f"{gap:+.3f}"
        if interval:
          shown += f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
        yield (
          task,
          label(results, method),
          text,
          f"{row['plain']:.3f}",
          f"{row['hybrid']:.3f}",
          shown.replace("-", "−"),
        )


def _cost_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Cost per update of each method, whole runs and first update, with ratio."""
  cost = results["cost"].get(MEAN)
  if not cost:
    return []
  found = []
  for when, title in (
    ("first_update", "First update: same weights, same questions"),
    ("mean", "Mean over whole runs: the policies differ"),
  ):
    rows = []
    for name, text in results_lib.COSTS.items():
      values = [by[name][when] for by in cost["methods"].values()]
      ratios = [by[name][when] for by in cost["ratios"].values()]
      if any(value is not None for value in values):
        cells = ["–" if v is None else charts.number(v) for v in values]
        rows.append((text, cells, [*map(_times, ratios)]))
    found.append(
      {
        "title": title,
        "methods": [label(results, method) for method in cost["methods"]],
        "ratios": [
          " ÷ ".join(label(results, part) for part in name.split(" / "))
          for name in cost["ratios"]
        ],
        "rows": rows,
      }
    )
  return [table for table in found if table["rows"]]


def _warning_table(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Task, run, kind, updates and text of each warning."""
  return [
    (
      w["task"],
      w["run"],
      tables.warning_name(w),
      tables.warning_updates(w),
      w["text"],
    )
    for w in results["warnings"]
  ]


def status_label(status: str) -> str:
  return status.replace("_", " ")


def _statuses(runs: Sequence[Run]) -> list[str]:
  """The statuses of all runs; the recipe's come first, in their order."""
  found = {
    name.removeprefix("score/")
    for run in runs
    for row in run.rows
    for name in row
    if name.startswith("score/")
  }
  known = [status for status in charts.STATUSES if status in found]
  return [*known, *sorted(found.difference(known))]


def _status_charts(
  results: Mapping[str, Any], runs: Sequence[Run]
) -> Iterator[tuple[str, Markup]]:
  """Shares of the score statuses by update, mean over seeds."""
  statuses = _statuses(runs)
  for task in results["tasks"]:
    for method in results["methods"]:
      own = [run for run in runs if (run.task, run.method) == (task, method)]
      counts: dict[float, list[dict[str, float]]] = {}
      for run in own:
        for row in run.rows:
          here = {s: row.get(f"score/{s}", 0.0) for s in statuses}
          if sum(here.values()) > 0:
            counts.setdefault(row["update"], []).append(here)
      points = [
        (update, [sum(c[s] for c in there) for s in statuses])
        for update, there in sorted(counts.items())
      ]
      chart = charts.share_chart(
        points, title=f"Score status, {task} {method}", statuses=statuses
      )
      if chart:
        yield f"{task}, {label(results, method)}", chart


def _provenance(
  results: Mapping[str, Any],
) -> Iterator[tuple[str, str, str, str, str]]:
  """Date, commit, devices, versions and command of each start."""
  for start in results["provenance"]:
    commit, devices = start["commit"], start["devices"]
    yield (
      start["date"],
      "unknown"
      if commit is None
      else commit["id"][:12] + (" (changed)" if commit["changed"] else ""),
      f"{devices['count']} × {devices['kind']} ({devices['backend']})",
      ", ".join(
        f"{name} {version or 'not installed'}"
        for name, version in start["versions"].items()
      ),
      start["command"],
    )


def _flat(content: Any, above: str = "config") -> Iterator[tuple[str, str]]:
  if isinstance(content, dict) and content:
    for name, value in content.items():
      yield from _flat(value, f"{above}.{name}")
  else:
    yield above, json.dumps(content, ensure_ascii=False)
