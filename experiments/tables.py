"""The results as text: for the terminal, for the README, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.results import COSTS, HALF, MEAN, label

# From fewer seeds a bootstrap interval is too narrow to lean on.
FEW_SEEDS = 5

_SHORT = {"base": "base", "off_policy": "off-policy", "hybrid": "hybrid"}


def format_table(results: Mapping[str, Any]) -> str:
  """The result table, every seed, speed and cost, for a terminal.

  Args:
    results: what `experiments.results.compute_results` returns.

  Returns:
    Lines of text without a newline at the end.
  """
  header, rows = _accuracy_rows(results)
  if not rows:
    return "No evaluation yet: nothing to compare."
  parts = [
    "Held-out accuracy in %, sampled at T = 1, never retrieving"
    " (greedy in brackets)",
    _aligned([header, *rows]),
  ]
  seeds = _seed_rows(results)
  if seeds:
    parts += ["", "Every seed", _aligned(seeds)]
  return "\n".join([*parts, "", *_sentences(results)])


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
  """What the comparison of RAPO with GRPO says, in sentences.

  The first sentence is the finding, the rest are what to keep in mind: an
  interval that includes 0 is called no clear difference, few seeds are named.
  """
  differences = results["differences"].get("rapo - grpo", {})
  overall = differences.get(MEAN, {}).get("sampled")
  if overall is None:
    return [
      "No comparison yet: it needs RAPO and GRPO, evaluated with the same seed"
      " on every task."
    ]
  low, high = overall["interval"]
  size = f"{abs(100 * overall['mean']):.1f} points"
  where = _where(results["tasks"])
  interval = f"95 % interval {points(low)} to {points(high)}"
  if low > 0:
    first = f"RAPO is ahead of GRPO by {size} {where} ({interval})."
  elif high < 0:
    first = f"RAPO is behind GRPO by {size} {where} ({interval})."
  elif overall["mean"] == 0:
    first = f"No difference between RAPO and GRPO {where} ({interval})."
  else:
    side = "ahead" if overall["mean"] > 0 else "behind"
    first = (
      f"No clear difference: RAPO is {side} of GRPO by {size} {where}, and the"
      f" interval includes 0 ({interval})."
    ).replace("behind of", "behind")
  return [first, *_caveats(results, differences, overall["num_seeds"])]


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


def _where(tasks: Sequence[str]) -> str:
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
    clear = [differences[task]["sampled"]["interval"][0] > 0 for task in tasks]
    lines[0] = (
      f"It is ahead on {sum(mean > 0 for mean in means)} of {len(tasks)} tasks"
      f" (clearly on {sum(clear)}) and in {ahead} of {len(pairs)} pairs of"
      " runs."
    )
  if num_seeds == 1:
    lines.append(
      "One seed a method: the interval covers the choice of questions alone;"
      " another seed can turn the result around."
    )
  elif num_seeds < FEW_SEEDS:
    lines.append(
      f"Only {num_seeds} seeds a method: an interval from so few is too narrow."
      f" Trust it from {FEW_SEEDS} seeds on."
    )
  if results["unfinished_runs"]:
    lines.append(f"Unfinished runs: {', '.join(results['unfinished_runs'])}.")
  if results.get("left_out"):
    lines.append(
      f"The system cut {results['left_out']} trajectories of the evaluations "
      "(out of time, or tools that broke). They are left out of the accuracies."
    )
  return lines


def speed_lines(results: Mapping[str, Any]) -> list[str]:
  """Updates to 50 % and to GRPO's final accuracy, on the curve over tasks."""
  learning = results["learning"].get(MEAN, {})
  lines = []
  for name, target in learning.get("targets", {}).items():
    reached = {
      method: content["updates_to"][name]["mean"]
      for method, content in learning["methods"].items()
    }
    words = [
      f"{label(method)} {updates(value, learning['methods'][method])}"
      for method, value in reached.items()
    ]
    goal = (
      f"{100 * HALF:.0f} %"
      if name == "half"
      else f"GRPO's final accuracy ({100 * target:.1f} %)"
    )
    speedup = learning.get("speedup", {}).get(name)
    ratio = f" (GRPO ÷ RAPO: {speedup_text(speedup)})" if speedup else ""
    lines.append(f"Updates to {goal}: {', '.join(words)}{ratio}.")
  return lines


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
  low, high = estimate["interval"]
  return f"{points(estimate['mean'])} [{points(low)}, {points(high)}]"


def task_rows(results: Mapping[str, Any], part: str) -> list[str]:
  """Tasks of a part of the results in order, the mean over several last."""
  tasks = [task for task in results["tasks"] if task in results[part]]
  return [*tasks, MEAN] if len(tasks) > 1 else tasks


def _accuracy_rows(
  results: Mapping[str, Any],
) -> tuple[list[str], list[list[str]]]:
  accuracy, methods = results["accuracy"], results["methods"]
  evaluated = [m for m in methods if any(m in t for t in accuracy.values())]
  differences = results["differences"]["rapo - grpo"]
  header = ["task", *(_SHORT.get(m, label(m)) for m in evaluated)]
  rows = []
  for task in task_rows(results, "accuracy"):
    cells = accuracy.get(task, {})
    rows.append([task, *(_cell(cells.get(m)) for m in evaluated)])
    if differences:
      estimate = differences.get(task, {}).get("sampled")
      rows[-1].append(difference_text(estimate))
  if differences:
    header.append("RAPO − GRPO [95 %]")
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
      [task, _SHORT.get(method, label(method))]
      + [percent(seeds.get(name)) for name in names]
      for (task, method), seeds in found.items()
    ),
  ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
  """Columns of equal width; words to the left, numbers to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  words = 2 if rows[0][1] == "method" else 1
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i < words else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
  words = 2 if rows[0][1] == "method" else 1
  rule = ["---" if i < words else "---:" for i in range(len(rows[0]))]
  return "\n".join(
    f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]]
  )
