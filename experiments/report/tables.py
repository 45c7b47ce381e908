"""The results as text: for the terminal, for the README, and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import health
from experiments.report.board import BUDGETS, MEAN
from experiments.report.methods import AGENTS, label
from experiments.report.results import COSTS

# From fewer seeds a bootstrap interval is too narrow to lean on.
FEW_SEEDS = 5
_SHOWN_WARNINGS = 5

_SHORT = {
  "base": "base",
  "warm_start": "warm start",
  "off_policy": "off-policy",
  "hybrid": "hybrid",
}


def format_table(results: Mapping[str, Any], width: int = 100) -> str:
  """The result table, every seed, speed and cost, for a terminal.

  Args:
    results: what `experiments.results.compute_results` returns.
    width: columns of the terminal. A table that is wider is turned around,
      with a line for each task and method; sentences are wrapped.

  Returns:
    Lines of text without a newline at the end.
  """
  header, rows = _accuracy_rows(results)
  sentences = [*_sentences(results), *warning_lines(results)]
  if not rows:
    return _wrapped(["No evaluation yet.", *sentences], width)
  title = (
    "Held-out accuracy in %, sampled at T = 1, never retrieving"
    " (greedy in brackets)"
  )
  table = _aligned([header, *rows])
  if _too_wide(table, width):
    table = _aligned(_turned(header, rows))
  parts = [_wrapped([title], width), table]
  seeds = _seed_rows(results)
  if seeds:
    table = _aligned(seeds)
    if _too_wide(table, width):
      table = _aligned(_turned_seeds(seeds))
    parts += ["", "Every seed", table]
  return "\n".join([*parts, "", _wrapped(sentences, width)])


def format_board(results: Mapping[str, Any], width: int = 100) -> str:
  """The leader board of a study for a terminal: a line for each method.

  Args:
    results: what `experiments.report.results.compute_results` returns.
    width: columns of the terminal. Columns that find no room are left out,
      the last first; sentences are wrapped.

  Returns:
    Lines of text without a newline at the end.
  """
  header, rows = board_rows(results)
  sentences = [*_incomplete(results), *warning_lines(results)]
  if not rows:
    return _wrapped(["No run has written metrics yet.", *sentences], width)
  cells = [row for task, row in rows if task == board_task(results)]
  table = [["method", *header], *cells]
  while _too_wide(_aligned(table), width) and len(table[0]) > 2:
    table = [row[:-1] for row in table]
  title = (
    f"Held-out accuracy in %, {board_task(results)}; differences from "
    f"{label(results, results['reference'])} in points"
  )
  parts = [_wrapped([title], width), _aligned(table)]
  return "\n".join([*parts, "", _wrapped(sentences, width)]).rstrip()


def board_task(results: Mapping[str, Any]) -> str:
  """The part of the leader board that sums it up: the mean, if there is one."""
  tasks = results["tasks"]
  return MEAN if len(tasks) > 1 else next(iter(tasks), MEAN)


def board_rows(
  results: Mapping[str, Any],
) -> tuple[list[str], list[tuple[str, list[str]]]]:
  """Header and rows of the leader board, the best of each task first.

  Returns:
    The header without the method's column; a task and its cells a row.
  """
  reference = results["reference"]
  shown = _short(results, reference)
  header = [
    "seeds",
    "equal leaves",
    f"− {shown} [95 %]",
    "equal tokens",
    f"− {shown} [95 %]",
    *BUDGETS,
  ]
  rows = []
  for task in task_rows(results, "board"):
    own = results["board"].get(task, {})
    accuracy = results["accuracy"].get(task, {})

    def reached(
      method: str, accuracy: Mapping[str, Any] = accuracy
    ) -> Mapping[str, Any] | None:
      return accuracy.get(method, {}).get("sampled")

    def place(method: str, own: Mapping[str, Any] = own) -> float:
      estimate = reached(method) or own[method].get("at_tokens")
      return float(estimate["mean"]) if estimate else -1.0

    for method in sorted(own, key=place, reverse=True):
      row, estimate = own[method], reached(method)
      pair = f"{method} - {reference}"
      differences = results["differences"].get(pair, {}).get(task, {})
      apart = None if method == reference else row.get("difference")
      rows.append(
        (
          task,
          [
            label(results, method),
            str(estimate["num_seeds"]) if estimate else "–",
            percent(estimate["mean"] if estimate else None),
            difference_text(differences.get("sampled")),
            _at_tokens(row.get("at_tokens")),
            difference_text(apart),
            *(_amount(row["budget"].get(name)) for name in BUDGETS),
          ],
        )
      )
  return header, rows


def _at_tokens(content: Mapping[str, Any] | None) -> str:
  """Accuracy at equal tokens, marked where a run generated fewer."""
  if content is None:
    return "–"
  return percent(content["mean"]) + ("" if content["reached"] == 1 else "*")


def _amount(value: float | None) -> str:
  if value is None:
    return "–"
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _too_wide(table: str, width: int) -> bool:
  return max(map(len, table.splitlines())) > width


def _wrapped(sentences: Sequence[str], width: int) -> str:
  return "\n".join(
    textwrap.fill(
      sentence, width, break_long_words=False, break_on_hyphens=False
    )
    for sentence in sentences
  )


def _turned(
  header: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[list[str]]:
  """A line for each task and column."""
  return [
    ["task", "method", "accuracy"],
    *(
      [row[0], name, cell]
      for row in rows
      for name, cell in zip(header[1:], row[1:], strict=True)
    ),
  ]


def _turned_seeds(rows: Sequence[Sequence[str]]) -> list[list[str]]:
  """A line for each task, method and seed."""
  return [
    ["task", "method", "seed", "accuracy"],
    *(
      [row[0], row[1], name.removeprefix("seed "), cell]
      for row in rows[1:]
      for name, cell in zip(rows[0][2:], row[2:], strict=True)
    ),
  ]


def format_board_markdown(results: Mapping[str, Any]) -> str:
  """The leader board and every seed as Markdown tables, for the docs."""
  header, rows = board_rows(results)
  if not rows:
    return "No run has written metrics yet."
  parts = []
  for task in dict.fromkeys(task for task, _ in rows):
    cells = [row for owner, row in rows if owner == task]
    parts += ["", f"**{task}**", "", _markdown([["method", *header], *cells])]
  seeds = _seed_rows(results)
  if seeds:
    parts += ["", "**Every seed**", "", _markdown(seeds)]
  return "\n".join([*parts[1:], "", *(f"- {s}" for s in _incomplete(results))])


def format_markdown(results: Mapping[str, Any]) -> str:
  """The result table and every seed as Markdown tables, for the README."""
  header, rows = _accuracy_rows(results)
  if not rows:
    return "No evaluation yet: nothing to compare."
  parts = [_markdown([header, *rows])]
  seeds = _seed_rows(results)
  if seeds:
    parts += ["", _markdown(seeds)]
  return "\n".join([*parts, "", *(f"- {s}" for s in _sentences(results))])


def _sentences(results: Mapping[str, Any]) -> list[str]:
  return [
    *headline(results),
    *hybrid_lines(results),
    *speed_lines(results),
    *cost_lines(results),
  ]


def headline(results: Mapping[str, Any]) -> list[str]:
  """What the run has found, in sentences: the finding, then what limits it.

  RAPO against GRPO where both are evaluated, else what was trained against the
  base agent. An interval that includes 0 is called no clear difference. Few
  seeds are named, and from one seed no interval is claimed.
  """
  differences = results["differences"].get("rapo - grpo", {})
  overall = differences.get(MEAN, {}).get("sampled")
  if overall is None:
    return _headline_alone(results)
  size = f"{abs(100 * overall['mean']):.1f} points"
  where = _where(results)
  side = "ahead of" if overall["mean"] > 0 else "behind"
  if overall["mean"] == 0:
    first = f"No difference between RAPO and GRPO {where}"
  elif overall["interval"] is not None and not overall["clear"]:
    first = f"No clear difference: RAPO is {side} GRPO by {size} {where}"
  else:
    first = f"RAPO is {side} GRPO by {size} {where}"
  return [
    f"{first} ({certainty(overall)}).",
    *_best_other(results),
    *_caveats(results, differences, overall["num_seeds"]),
  ]


def _best_other(results: Mapping[str, Any]) -> list[str]:
  """RAPO against the best of the others, where that is not GRPO."""
  best = results["best_other"]
  pair = results["differences"].get(f"rapo - {best}", {})
  overall = pair.get(MEAN, {}).get("sampled")
  if overall is None or best == "grpo":
    return []
  side = "ahead of" if overall["mean"] > 0 else "behind"
  size = f"{abs(100 * overall['mean']):.1f} points"
  return [
    f"It is {size} {side} the best other method, {label(results, best)} "
    f"({certainty(overall)})."
  ]


def _headline_alone(results: Mapping[str, Any]) -> list[str]:
  """The headline of a run without RAPO or without GRPO."""
  where = _where(results)
  trained = [m for m in reversed(results["methods"]) if m not in AGENTS]
  for method in dict.fromkeys(["rapo", *trained]):
    reached = results["accuracy"].get(MEAN, {}).get(method, {}).get("sampled")
    if reached is None:
      continue
    first = (
      f"{label(results, method)} answers {percent(reached['mean'])} % {where}"
    )
    gain = results["differences"].get(f"{method} - base", {})
    overall = gain.get(MEAN, {}).get("sampled")
    if overall is None:
      return [f"{first}. The base agent is not evaluated.", *_few(reached)]
    side = "below" if overall["mean"] < 0 else "above"
    change = f"{abs(100 * overall['mean']):.1f} points {side} the base agent"
    unclear = overall["interval"] is not None and not overall["clear"]
    return [
      f"{'No clear change: ' if unclear else ''}{first}, {change} "
      f"({certainty(overall)}).",
      *_few(overall),
      *_incomplete(results),
    ]
  return [*_headline_of_curves(results), *_incomplete(results)]


def _headline_of_curves(results: Mapping[str, Any]) -> list[str]:
  """The headline of runs that have not been evaluated yet."""
  curves = results["learning"].get(MEAN, {}).get("methods", {})
  parts = [
    f"{label(results, method)} {percent(content['curve']['mean'][0])} % to "
    f"{percent(content['curve']['mean'][-1])} % in {content['last_update']} "
    "updates"
    for method, content in curves.items()
  ]
  if not parts:
    return ["No comparison yet: no trained agent is evaluated."]
  return [
    "No comparison yet. Accuracy on held-out questions while training: "
    f"{', '.join(parts)}."
  ]


def certainty(estimate: Mapping[str, Any]) -> str:
  """The interval of a difference, or that one seed has none."""
  if estimate["interval"] is None:
    return "one seed, so no interval"
  low, high = estimate["interval"]
  ends = f"95 % interval {points(low)} to {points(high)}"
  return ends if estimate["clear"] else f"{ends}, which includes 0"


def _few(estimate: Mapping[str, Any]) -> list[str]:
  """A caution where seeds are few."""
  num_seeds = estimate["num_seeds"]
  if num_seeds == 1:
    return ["One seed a method: another seed can turn the result around."]
  if num_seeds < FEW_SEEDS:
    return [
      f"Only {num_seeds} seeds a method: an interval from so few is too narrow."
      f" Trust it from {FEW_SEEDS} seeds on."
    ]
  return []


def _incomplete(results: Mapping[str, Any]) -> list[str]:
  """Runs that have not ended, and trajectories that do not count."""
  lines = []
  if results["unfinished_runs"]:
    lines.append(f"Unfinished runs: {', '.join(results['unfinished_runs'])}.")
  if results.get("left_out"):
    lines.append(
      f"The system cut {results['left_out']} trajectories of the evaluations "
      "(out of time, or tools that broke). They are left out of the accuracies."
    )
  return lines


def warning_lines(results: Mapping[str, Any]) -> list[str]:
  """Warnings of the runs: how many, and where and when each was."""
  found = results.get("warnings", [])
  parts = [
    f"{w['task']} {w['run']} {warning_name(w)} ({warning_updates(w)})"
    for w in found[:_SHOWN_WARNINGS]
  ]
  if not parts:
    return []
  more = len(found) - len(parts)
  rest = f", and {more} more in the report" if more else ""
  return [f"Warnings: {'; '.join(parts)}{rest}."]


def warning_name(warning: Mapping[str, Any]) -> str:
  """Its kind, and the tool that it is about if any."""
  return f"{warning['kind']} {warning['tool']}".strip()


def warning_updates(warning: Mapping[str, Any]) -> str:
  """Updates that showed it."""
  at = health.updates_text(warning["first"], warning["last"])
  return f"{at}, stopped" if warning["stopped"] else at


def hybrid_lines(results: Mapping[str, Any]) -> list[str]:
  """What the optimization adds to hybrid rollouts alone, a task each."""
  differences = results["differences"].get("rapo - hybrid", {})
  parts = [
    f"{task} {difference_text(differences[task]['sampled'])}"
    for task in reversed(task_rows(results, "accuracy"))
    if "sampled" in differences.get(task, {})
  ]
  if not parts:
    return []
  return [
    "RAPO − hybrid rollouts alone (what the retrieval-aware optimization adds):"
    f" {', '.join(parts)}."
  ]


def _where(results: Mapping[str, Any]) -> str:
  evaluated = [t for t in results["tasks"] if t in results.get("accuracy", {})]
  tasks = evaluated or results["tasks"]
  return f"on {tasks[0]}" if len(tasks) == 1 else f"over {len(tasks)} tasks"


def _caveats(
  results: Mapping[str, Any], differences: Mapping[str, Any], num_seeds: int
) -> list[str]:
  tasks = [t for t in results["tasks"] if "sampled" in differences.get(t, {})]
  pairs = [
    value
    for task in tasks
    for value in differences[task]["sampled"]["seeds"].values()
  ]
  ahead = sum(value > 0 for value in pairs)
  lines = [f"RAPO is ahead in {ahead} of {len(pairs)} pairs of runs."]
  if len(tasks) > 1:
    means = [differences[task]["sampled"]["mean"] for task in tasks]
    clear = [
      d["clear"] and d["mean"] > 0
      for d in (differences[task]["sampled"] for task in tasks)
    ]
    clearly = f" (clearly on {sum(clear)})" if num_seeds > 1 else ""
    lines[0] = (
      f"It is ahead on {sum(mean > 0 for mean in means)} of {len(tasks)} tasks"
      f"{clearly} and in {ahead} of {len(pairs)} pairs of runs."
    )
  lines += _few({"num_seeds": num_seeds})
  return [*lines, *_incomplete(results)]


def speed_lines(results: Mapping[str, Any]) -> list[str]:
  """Updates to each target on the curve over tasks; a ratio where it is clear.

  There is no target where no method is above the base agent: crossing noise
  says nothing of speed.
  """
  learning = results["learning"].get(MEAN, {})
  lines = []
  for name, target in learning.get("targets", {}).items():
    reached = {
      method: content["updates_to"][name]["mean"]
      for method, content in learning["methods"].items()
    }
    words = [
      f"{label(results, method)} {updates(value, learning['methods'][method])}"
      for method, value in reached.items()
    ]
    speedup = learning.get("speedup", {}).get(name)
    ratio = (
      f" (GRPO ÷ RAPO: {speedup_text(speedup)})" if clear_ratio(speedup) else ""
    )
    lines.append(
      f"Updates to {target_text(name, target)}: {', '.join(words)}{ratio}."
    )
  return lines


def target_text(name: str, target: float) -> str:
  """A target in words, with its accuracy."""
  what = "GRPO's final accuracy" if name == "grpo_final" else "half of the gain"
  return f"{what} ({100 * target:.1f} %)"


def clear_ratio(speedup: Mapping[str, Any] | None) -> bool:
  """Whether a ratio is more than chance: its interval leaves 1 out."""
  if speedup is None or speedup["ratio"] is None or not speedup["interval"]:
    return False
  low, high = speedup["interval"]
  return low > 1 or high < 1


def cost_lines(results: Mapping[str, Any]) -> list[str]:
  """Cost of an update, RAPO over GRPO, in one sentence a comparison."""
  ratios = results["cost"].get(MEAN, {}).get("ratios", {}).get("rapo / grpo")
  if not ratios:
    return []
  lines = []
  for when, words in (
    ("first_update", "at the first update (same weights, same questions)"),
    ("mean", "over whole runs"),
  ):
    parts = [
      f"{text.removesuffix(', s')} {ratios[name][when]:.2f}×"
      for name, text in list(COSTS.items())[:4]
      if ratios[name][when] is not None
    ]
    if parts:
      lines.append(f"Cost of RAPO ÷ GRPO {words}: {', '.join(parts)}.")
  return lines


def percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f}"


def points(value: float) -> str:
  """A difference of shares in points, always with its sign."""
  return f"{100 * value:+.1f}".replace("-", "−")


def updates(value: float | None, method: Mapping[str, Any]) -> str:
  """Number of updates, or that the target was not reached in the run."""
  if value is None:
    return f"not within {method['last_update']}"
  return f"{value:.1f}"


def speedup_text(speedup: Mapping[str, Any]) -> str:
  if speedup["ratio"] is None:
    return speedup["bound"]
  bound = {"at least": "≥ ", "at most": "≤ "}.get(speedup["bound"], "")
  return f"{bound}{speedup['ratio']:.2f}×"


def difference_text(estimate: Mapping[str, Any] | None) -> str:
  if estimate is None:
    return "–"
  if estimate["interval"] is None:
    return points(estimate["mean"])
  low, high = estimate["interval"]
  return f"{points(estimate['mean'])} [{points(low)}, {points(high)}]"


def _short(results: Mapping[str, Any], method: str) -> str:
  return _SHORT.get(method, label(results, method))


def shown_comparison(results: Mapping[str, Any], name: str) -> str:
  """`rapo - grpo` as people write it."""
  first, _, second = name.partition(" - ")
  return f"{_short(results, first)} − {_short(results, second)}"


def comparisons(results: Mapping[str, Any]) -> list[str]:
  """Names of the differences to show: of methods, else from the base agent."""
  there = [name for name, by_task in results["differences"].items() if by_task]
  between = [name for name in there if not name.endswith(" - base")]
  return between or there


def task_rows(results: Mapping[str, Any], part: str) -> list[str]:
  """Tasks of a part of the results in order, the mean over several last."""
  tasks = [task for task in results["tasks"] if task in results[part]]
  return [*tasks, MEAN] if len(tasks) > 1 else tasks


def _accuracy_rows(
  results: Mapping[str, Any],
) -> tuple[list[str], list[list[str]]]:
  accuracy, methods = results["accuracy"], results["methods"]
  evaluated = [m for m in methods if any(m in t for t in accuracy.values())]
  names = comparisons(results)[:1]
  header = ["task", *(_short(results, m) for m in evaluated)]
  header += [f"{shown_comparison(results, name)} [95 %]" for name in names]
  rows = []
  for task in task_rows(results, "accuracy"):
    cells = accuracy.get(task, {})
    rows.append([task, *(_cell(cells.get(m)) for m in evaluated)])
    for name in names:
      estimate = results["differences"][name].get(task, {}).get("sampled")
      rows[-1].append(difference_text(estimate))
  return header, rows


def _cell(content: Mapping[str, Any] | None) -> str:
  if not content or "sampled" not in content:
    return "–"
  sampled = percent(content["sampled"]["mean"])
  greedy = content.get("greedy")
  return f"{sampled} ({percent(greedy['mean'])})" if greedy else sampled


def _seed_rows(results: Mapping[str, Any]) -> list[list[str]]:
  """Task, method and one column a seed; empty without seeds."""
  found: dict[tuple[str, str], Mapping[str, float]] = {}
  for task in results["tasks"]:
    for method, content in results["accuracy"].get(task, {}).items():
      seeds = content.get("sampled", {}).get("seeds")
      if seeds:
        found[task, method] = seeds
  names = sorted({seed for seeds in found.values() for seed in seeds}, key=int)
  if not names:
    return []
  return [
    ["task", "method", *(f"seed {name}" for name in names)],
    *(
      [task, _short(results, method)]
      + [percent(seeds.get(name)) for name in names]
      for (task, method), seeds in found.items()
    ),
  ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
  """Columns of equal width; words to the left, numbers to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  words = _word_columns(rows)
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i < words else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _word_columns(rows: Sequence[Sequence[str]]) -> int:
  """Columns of words at the left, which the header tells."""
  return 2 if rows[0][1] == "method" else 1


def _markdown(rows: Sequence[Sequence[str]]) -> str:
  words = _word_columns(rows)
  rule = ["---" if i < words else "---:" for i in range(len(rows[0]))]
  return "\n".join(
    f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]]
  )
