"""The results as text: for the terminal, for the README, and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import health, layout
from experiments.report import cost
from experiments.report.board import BUDGETS, MEAN
from experiments.report.learning import HALFWAY
from experiments.report.methods import AGENTS, BASE, WARM_START, label

# From fewer seeds a bootstrap interval is too narrow to lean on.
FEW_SEEDS = 5
COST_TIMES = {
  cost.FIRST_UPDATE: "at the first update (same weights, same questions)",
  cost.WHOLE_RUN: "over whole runs",
}
"""When costs are compared, in words."""
_SHOWN_WARNINGS = 5
_SHOWN_RUNS = 6
_SHOWN_COSTS = 4

_SHORT = {
  "base": "base",
  "warm_start": "warm start",
  "off_policy": "off-policy",
  "hybrid": "hybrid",
}


class Gain(NamedTuple):
  """What training has added to the agent that it began with.

  Attributes:
    method: that was trained.
    begun_with: the base agent, or the one of the warm start.
    start: accuracy of that agent.
    end: accuracy after training.
    difference: of the two, as in `results["differences"]`.
  """

  method: str
  begun_with: str
  start: float
  end: float
  difference: Mapping[str, Any]


def format_table(results: Mapping[str, Any], width: int = 100) -> str:
  """The result table, every seed, speed and cost, for a terminal.

  Args:
    results: what `experiments.results.compute_results` returns.
    width: columns of the terminal. A table that is wider is turned around,
      with a line for each task and method; long names are cut in the middle,
      and sentences are wrapped.

  Returns:
    Lines of text without a newline at the end.
  """
  header, rows = _accuracy_rows(results)
  sentences = [*_sentences(results), *warning_lines(results)]
  if not rows:
    return layout.wrapped(["No evaluation yet.", *sentences], width)
  title = (
    "Held-out accuracy in %, sampled at T = 1, never retrieving"
    " (greedy in brackets)"
  )
  table = [header, *rows]
  if not layout.fits(table, width):
    table = _turned(header, rows)
  parts = [layout.wrapped([title], width), layout.table(table, width)]
  seeds = _seed_rows(results)
  if seeds:
    if not layout.fits(seeds, width):
      seeds = _turned_seeds(seeds)
    parts += ["", "Every seed", layout.table(seeds, width)]
  return "\n".join([*parts, "", layout.wrapped(sentences, width)])


def format_board(results: Mapping[str, Any], width: int = 100) -> str:
  """The leader board of a study for a terminal: a line for each method.

  Args:
    results: what `experiments.report.results.compute_results` returns.
    width: columns of the terminal. Columns that find no room are left out,
      the last first, and named; sentences are wrapped.

  Returns:
    Lines of text without a newline at the end.
  """
  header, rows = board_rows(results)
  sentences = [*_incomplete(results), *warning_lines(results)]
  if not rows:
    none = "No run has written metrics yet."
    return layout.wrapped([none, *sentences], width)
  cells = [row for task, row in rows if task == board_task(results)]
  table = [["method", *header], *cells]
  left_out: list[str] = []
  while not layout.fits(table, width) and len(table[0]) > 3:
    left_out.insert(0, table[0][-1])
    table = [row[:-1] for row in table]
  title = f"Held-out accuracy in %, {board_task(results)}"
  if results["reference"] is not None:
    title += f"; differences from {reference_label(results)} in points"
  if left_out:
    sentences.insert(0, f"No room for: {', '.join(left_out)}. See the report.")
  parts = [layout.wrapped([title], width), layout.table(table, width)]
  return "\n".join([*parts, "", layout.wrapped(sentences, width)]).rstrip()


def reference_label(results: Mapping[str, Any]) -> str:
  """What the others are compared with, for people; empty without others."""
  reference = results["reference"]
  return "" if reference is None else label(results, reference)


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
  header = ["seeds", "equal leaves"]
  if reference is not None:
    versus = f"− {_short(results, reference)} [95 %]"
    header += [versus, "equal tokens", versus]
  header += BUDGETS
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
      cells = [
        label(results, method),
        str(estimate["num_seeds"]) if estimate else "–",
        percent(estimate["mean"] if estimate else None),
      ]
      if reference is not None:
        pair = results["differences"].get(f"{method} - {reference}", {})
        apart = None if method == reference else row.get("difference")
        cells += [
          difference_text(pair.get(task, {}).get("sampled")),
          _at_tokens(row.get("at_tokens")),
          difference_text(apart),
        ]
      cells += [_amount(row["budget"].get(name)) for name in BUDGETS]
      rows.append((task, cells))
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

  RAPO against GRPO, or what is there in their places; of one method alone, what
  it has added to the agent it began with. An interval that includes 0 is called
  no clear difference. Few seeds are named, and from one seed no interval is
  claimed.
  """
  if results["pair"] is None:
    return _headline_alone(results)
  first, second = results["pair"]
  differences = results["differences"].get(f"{first} - {second}", {})
  overall = differences.get(MEAN, {}).get("sampled")
  if overall is None:
    return _headline_alone(results)
  names = label(results, first), label(results, second)
  size = f"{abs(100 * overall['mean']):.1f} points"
  where = _where(results)
  side = "ahead of" if overall["mean"] > 0 else "behind"
  if overall["mean"] == 0:
    text = f"No difference between {names[0]} and {names[1]} {where}"
  elif overall["interval"] is not None and not overall["clear"]:
    text = (
      f"No clear difference: {names[0]} is {side} {names[1]} by {size} {where}"
    )
  else:
    text = f"{names[0]} is {side} {names[1]} by {size} {where}"
  return [
    f"{text} ({certainty(overall)}).",
    *_best_other(results),
    *_caveats(results, differences, overall["num_seeds"]),
  ]


def _best_other(results: Mapping[str, Any]) -> list[str]:
  """RAPO against the best of the others, where that is not the reference."""
  best = results["best_other"]
  overall = _overall(results, f"rapo - {best}")
  if overall is None or best == results["reference"]:
    return []
  side = "ahead of" if overall["mean"] > 0 else "behind"
  size = f"{abs(100 * overall['mean']):.1f} points"
  return [
    f"It is {size} {side} the best other method, {label(results, best)} "
    f"({certainty(overall)})."
  ]


def _overall(results: Mapping[str, Any], pair: str) -> dict[str, Any] | None:
  """Difference of two methods over all tasks, sampled."""
  found = results["differences"].get(pair, {}).get(MEAN, {})
  return found.get("sampled")  # type: ignore[no-any-return]


def gain(results: Mapping[str, Any]) -> Gain | None:
  """What training has added, of RAPO or of the last method; None if unknown."""
  accuracy = results["accuracy"].get(MEAN, {})
  trained = [m for m in reversed(results["methods"]) if m not in AGENTS]
  for method in dict.fromkeys(["rapo", *trained]):
    for start in (WARM_START, BASE):
      difference = _overall(results, f"{method} - {start}")
      if difference is not None:
        begun, ended = (accuracy[m]["sampled"]["mean"] for m in (start, method))
        return Gain(method, start, begun, ended, difference)
  return None


def _headline_alone(results: Mapping[str, Any]) -> list[str]:
  """The headline of a run in which no two methods are compared."""
  where, found = _where(results), gain(results)
  if found is not None:
    change = found.difference
    unclear = change["interval"] is not None and not change["clear"]
    start = label(results, found.begun_with)
    return [
      f"{'No clear change: ' if unclear else ''}"
      f"{label(results, found.method)} takes the {start} from "
      f"{percent(found.start)} % to {percent(found.end)} % {where}, "
      f"{points(change['mean'])} points ({certainty(change)}).",
      *_few(change),
      *_incomplete(results),
    ]
  for method in reversed(results["methods"]):
    reached = results["accuracy"].get(MEAN, {}).get(method, {}).get("sampled")
    if method not in AGENTS and reached is not None:
      return [
        f"{label(results, method)} answers {percent(reached['mean'])} % "
        f"{where}. The base agent is not evaluated.",
        *_few(reached),
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
  unfinished = results["unfinished_runs"]
  if unfinished:
    more = len(unfinished) - _SHOWN_RUNS
    rest = f" and {more} more" if more > 0 else ""
    shown = ", ".join(unfinished[:_SHOWN_RUNS])
    lines.append(f"Unfinished runs: {shown}{rest}.")
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
  name = label(results, results["pair"][0])
  lines = [f"{name} is ahead in {ahead} of {len(pairs)} pairs of runs."]
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
    ratio = ""
    if cost.clear_ratio(speedup):
      first, second = (label(results, method) for method in results["pair"])
      ratio = f" ({second} ÷ {first}: {speedup_text(speedup)})"
    what = target_text(results, name, target)
    lines.append(f"Updates to {what}: {', '.join(words)}{ratio}.")
  return lines


def target_text(results: Mapping[str, Any], name: str, target: float) -> str:
  """A target in words, with its accuracy."""
  what = (
    "half of the gain"
    if name == HALFWAY
    else f"{reference_label(results)}'s final accuracy"
  )
  return f"{what} ({100 * target:.1f} %)"


def cost_lines(results: Mapping[str, Any]) -> list[str]:
  """What an update costs, and by how much the compared methods differ.

  A ratio is given where its interval leaves 1 out.
  """
  content = results["cost"].get(MEAN)
  if content is None:
    return []
  pair = results["pair"] or ()
  if len(pair) == 0:
    return [
      line
      for method, costs in content["methods"].items()
      for line in _cost_line(label(results, method), costs)
    ]
  names = " ÷ ".join(label(results, method) for method in pair)
  ratios = content["ratios"].get(" / ".join(pair), {})
  lines = []
  for when, words in COST_TIMES.items():
    parts = [
      f"{text.removesuffix(', s')} {ratios[name][when]['ratio']:.2f}× "
      f"[{ratios[name][when]['interval'][0]:.2f}, "
      f"{ratios[name][when]['interval'][1]:.2f}]"
      for name, text in list(cost.COSTS.items())[:_SHOWN_COSTS]
      if name in ratios and cost.clear_ratio(ratios[name][when])
    ]
    if parts:
      lines.append(f"Cost of {names} {words}: {', '.join(parts)}.")
  if lines:
    return lines
  return [
    line
    for method in pair
    if method in content["methods"]
    for line in _cost_line(label(results, method), content["methods"][method])
  ]


def _cost_line(name: str, costs: Mapping[str, Any]) -> list[str]:
  """Costs of a method in a sentence, with the spread of its updates."""
  parts = []
  for metric, text in list(cost.COSTS.items())[:_SHOWN_COSTS]:
    content = costs[metric][cost.WHOLE_RUN]
    if content["mean"] is not None:
      spread = spread_text(content["spread"])
      what, _, unit = text.partition(", ")
      number = f"{_amount(content['mean'])} {unit}".strip()
      parts.append(f"{what} {number}" + (f" ({spread})" if spread else ""))
  if not parts:
    return []
  return [
    f"Cost of an update of {name}, mean (5th to 95th percentile): "
    f"{', '.join(parts)}."
  ]


def spread_text(
  spread: Sequence[float] | None, shown: Callable[[float], str] | None = None
) -> str:
  """Two ends of a spread; empty for none, and where both are written alike.

  Args:
    spread: of a cost.
    shown: writes a number.
  """
  if spread is None:
    return ""
  low, high = map(shown or _amount, spread)
  return "" if low == high else f"{low} to {high}"


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


def _markdown(rows: Sequence[Sequence[str]]) -> str:
  words = layout.word_columns(rows)
  rule = ["---" if i < words else "---:" for i in range(len(rows[0]))]
  return "\n".join(
    f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]]
  )
