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
from experiments.report import charts, cost, samples, tables
from experiments.report import results as results_lib
from experiments.report.board import MEAN
from experiments.report.folders import sources
from experiments.report.learning import HALFWAY, REFERENCE_FINAL
from experiments.report.methods import colour_rules, label, shapes
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
    reference=tables.reference_label(results),
    made=_made_with(results),
    headline=tables.headline(results),
    warnings=_warning_table(results),
    status_charts=list(_status_charts(results, runs)),
    statuses=[
      (charts.band_class(status, band), status_label(status))
      for band, status in enumerate(_statuses(runs))
    ],
    written=results["written"],
    log_every=_setting(config, "config.train.log_trajectories_every"),
    provenance=list(_provenance(results)),
    lines=[
      *tables.hybrid_lines(results),
      *tables.speed_lines(results),
      *tables.cost_lines(results),
    ],
    tiles=list(_tiles(results)),
    methods=list(_legend(results, results["methods"])),
    trained=list(_legend(results, trained)),
    colours=Markup(colour_rules(results, dark=False)),
    dark_colours=Markup(colour_rules(results, dark=True)),
    has_hybrid="hybrid" in results["methods"],
    accuracy=_accuracy_table(results),
    seeds=_seed_charts(results),
    warm_starts=list(_warm_start_rows(results)),
    differences=_difference_charts(results),
    learning=list(_learning(results, runs)),
    mean_curve=_mean_curve(results),
    progress=_progress_tables(results),
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
  own = shapes(results["methods"])
  for method in methods:
    mark = charts.key_mark(method, own[method])
    yield method, label(results, method), mark


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
  gain = tables.gain(results)
  if results["pair"] is None and gain is not None:
    yield (
      f"{tables.percent(gain.start)} → {tables.percent(gain.end)} %",
      f"{label(results, gain.begun_with)} → {label(results, gain.method)}",
      f"{tables.points(gain.difference['mean'])} points, "
      f"{tables.certainty(gain.difference)}",
    )
  else:
    for name in tables.comparisons(results)[:_MOST_TILES]:
      difference = results["differences"][name].get(MEAN, {}).get("sampled")
      if difference:
        yield (
          tables.points(difference["mean"]),
          f"points, {tables.shown_comparison(results, name)}",
          tables.certainty(difference),
        )
  if results["pair"] is not None:
    yield from _ratio_tiles(results)
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


def _ratio_tiles(
  results: Mapping[str, Any],
) -> Iterator[tuple[str, str, str]]:
  """Speed and tokens of the pair that is compared, where they are clear."""
  first, second = results["pair"]
  learning = results["learning"].get(MEAN, {})
  speedup = learning.get("speedup", {}).get(HALFWAY)
  if cost.clear_ratio(speedup):
    reached = [
      f"{label(results, m)} "
      f"{tables.updates(content['updates_to'][HALFWAY]['mean'], content)}"
      for m in (second, first)
      for content in [learning["methods"][m]]
    ]
    low, high = speedup["interval"]
    yield (
      tables.speedup_text(speedup),
      "updates to half of the gain, "
      f"{label(results, second)} ÷ {label(results, first)}",
      f"{', '.join(reached)}; 95 % interval {low:.2f} to {high:.2f}",
    )
  ratios = results["cost"].get(MEAN, {}).get("ratios", {})
  tokens = ratios.get(f"{first} / {second}", {}).get(
    "rollout/generated_tokens", {}
  )
  for when, words in tables.COST_TIMES.items():
    ratio = tokens.get(when)
    if cost.clear_ratio(ratio):
      low, high = ratio["interval"]
      yield (
        f"{ratio['ratio']:.2f}×",
        f"generated tokens, {label(results, first)} ÷ {label(results, second)}",
        f"{words}; 95 % interval {low:.2f} to {high:.2f}",
      )
      return


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
  found, own = [], shapes(results["methods"])
  for task in tables.task_rows(results, "accuracy"):
    rows = [
      (method, label(results, method), own[method], content["sampled"])
      for method, content in results["accuracy"].get(task, {}).items()
      if "sampled" in content
    ]
    if rows:
      title = f"Held-out accuracy on {task} by method, every seed"
      found.append((task, charts.dot_chart(rows, title=title)))
  return found


def _difference_charts(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
  found, own = [], shapes(results["methods"])
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
      chart = charts.difference_chart(
        rows, title=title, method=first, shape=own[first]
      )
      found.append((title, chart))
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
  learning = results["learning"].get(MEAN, {"methods": {}})
  lines, own = [], shapes(results["methods"])
  for method, content in learning["methods"].items():
    curve = content["curve"]
    updates = curve["updates"]
    seeds = {
      seed: list(zip(updates, values, strict=True))
      for seed, values in curve["seeds"].items()
    }
    mean = list(zip(updates, curve["mean"], strict=True))
    marked = [p for p in mean if p[0] in learning["reference_updates"]]
    lines.append(
      charts.Lines(
        method, label(results, method), seeds, mean, own[method], marked
      )
    )
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
  marks = shapes(results["methods"])
  # Accuracies of the table are marked in the curves.
  references = (
    results["learning"].get(task, {}).get("reference_updates", [])
    if y_name.startswith("eval/")
    else []
  )
  for method in results["methods"]:
    own = [run for run in runs if (run.task, run.method) == (task, method)]
    points = {run.seed: _points(run, x_name, y_name) for run in own}
    points = {seed: there for seed, there in points.items() if there}
    if not points:
      continue
    # One that is under way would cut off the mean of the others.
    ended = [run.seed for run in own if run.finished and run.seed in points]
    counted = [points[seed] for seed in ended or points]
    mean = {
      update: _mean_point([there[update] for there in counted])
      for update in sorted(set.intersection(*map(set, counted)))
    }
    yield charts.Lines(
      method,
      label(results, method),
      {str(seed): list(there.values()) for seed, there in points.items()},
      list(mean.values()),
      marks[method],
      [mean[update] for update in references if update in mean],
    )


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


def _progress_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Accuracy on the way and updates to the targets, by task and method.

  Tasks with the same reference points share a table.
  """
  parts: dict[tuple[int, ...], list[dict[str, Any]]] = {}
  targets: set[str] = set()
  for task in tables.task_rows(results, "learning"):
    learning = results["learning"].get(task, {"reference_updates": []})
    at = tuple(learning["reference_updates"])
    targets |= learning.get("targets", {}).keys()
    for method, content in learning.get("methods", {}).items():
      row = _progress_row(results, task, method, content, at)
      parts.setdefault(at, []).append(row)
  shown = {
    HALFWAY: "updates to half of the gain",
    REFERENCE_FINAL: f"to {tables.reference_label(results)}’s final",
  }
  return [
    {
      "at": at,
      "targets": {n: text for n, text in shown.items() if n in targets},
      "rows": rows,
    }
    for at, rows in parts.items()
  ]


def _progress_row(
  results: Mapping[str, Any],
  task: str,
  method: str,
  content: Mapping[str, Any],
  references: Sequence[int],
) -> dict[str, Any]:
  trained = results["training"].get(task, {}).get(method, {})
  live = trained.get("groups/live_fraction")
  reached = content["at_updates"]
  return {
    "task": task,
    "label": label(results, method),
    "at": [
      tables.percent(reached.get(str(u), {}).get("mean")) for u in references
    ],
    "to": {
      name: tables.updates(at["mean"], content)
      for name, at in content["updates_to"].items()
    },
    "live": tables.percent(live["mean"] if live else None),
  }


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
  content = results["cost"].get(MEAN)
  if not content:
    return []
  found = []
  for when, title, spread in (
    (
      cost.FIRST_UPDATE,
      "First update: same weights, same questions",
      "lowest and highest seed",
    ),
    (
      cost.WHOLE_RUN,
      "Mean over whole runs: the policies differ",
      "5th to 95th percentile of the updates",
    ),
  ):
    rows = []
    for name, text in cost.COSTS.items():
      costs = [by[name][when] for by in content["methods"].values()]
      ratios = [by[name][when] for by in content["ratios"].values()]
      if any(one["mean"] is not None for one in costs):
        rows.append(
          (text, [*map(_cost_cell, costs)], [*map(_ratio_cell, ratios)])
        )
    found.append(
      {
        "title": title,
        "spread": spread,
        "methods": [label(results, method) for method in content["methods"]],
        "ratios": [
          " ÷ ".join(label(results, part) for part in name.split(" / "))
          for name in content["ratios"]
        ],
        "rows": rows,
      }
    )
  return [table for table in found if table["rows"]]


def _cost_cell(content: Mapping[str, Any]) -> tuple[str, str]:
  """A mean and how far it spreads."""
  if content["mean"] is None:
    return "–", ""
  spread = tables.spread_text(content["spread"], charts.number)
  return charts.number(content["mean"]), spread


def _ratio_cell(ratio: Mapping[str, Any] | None) -> tuple[str, str]:
  """A ratio that is more than chance; of another one the interval alone."""
  if ratio is None or not ratio["interval"]:
    return "–", ""
  low, high = ratio["interval"]
  shown = f"{ratio['ratio']:.2f}×" if cost.clear_ratio(ratio) else ""
  return shown, f"{low:.2f} to {high:.2f}"


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


def _made_with(results: Mapping[str, Any]) -> list[str]:
  """When and with what the last start ran, in a few words."""
  found = [f"written {_minute(results['written'])} UTC"]
  starts = [*_provenance(results)]
  if starts:
    date, commit, devices, _, _ = starts[-1]
    jax = results["provenance"][-1]["versions"].get("jax")
    found += [f"last start {_minute(date)}", f"commit {commit}", devices]
    found.append(f"jax {jax}")
  return found


def _minute(date: str) -> str:
  return date[:16].replace("T", " ")


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
