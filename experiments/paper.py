"""The paper's table (arXiv 2603.03078, section 4): its sets and its averages.

The figures of single sets are in the paper's tables alone; its averages are
here, beside which ours are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Reported:
  """Averages that the paper reports, in percent.

  Attributes:
    model: the base model.
    grpo: trained with GRPO.
    rapo: trained with RAPO.
  """

  model: str
  grpo: float
  rapo: float


@dataclasses.dataclass(frozen=True)
class Group:
  """Sets that the paper averages over.

  Attributes:
    title: for people.
    sets: title and metric of each data set, by the name of its task.
    reported: the paper's averages.
  """

  title: str
  sets: Mapping[str, tuple[str, str]]
  reported: tuple[Reported, ...]


GROUPS = (
  Group(
    "reasoning",
    {
      "gsm8k": ("GSM8K", "pass@1"),
      "math": ("MATH", "pass@1"),
      "math500": ("MATH500", "pass@1"),
      "aime2024": ("AIME2024", "pass@1"),
      "aime2025": ("AIME2025", "pass@1"),
      "webwalker": ("WebWalkerQA", "f1"),
      "hotpotqa": ("HotpotQA", "f1"),
      "2wikimultihopqa": ("2WikiMultihopQA", "f1"),
      "musique": ("MuSiQue", "f1"),
      "bamboogle": ("Bamboogle", "f1"),
    },
    (
      Reported("Qwen2.5-3B", 40.7, 47.0),
      Reported("Llama3-8B", 40.6, 47.6),
      Reported("Qwen2.5-7B", 46.7, 51.3),
    ),
  ),
  Group(
    "web",
    {
      "simpleqa": ("SimpleQA", "pass@1"),
      "gaia": ("GAIA", "pass@1"),
      "webwalkerqa": ("WebWalkerQA (web)", "pass@1"),
      "browsecomp": ("BrowseComp", "pass@1"),
    },
    (Reported("Qwen2.5-7B", 15.1, 17.0),),
  ),
)


def in_paper(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Figures in the paper's layout, in percent.

  Args:
    results: figures of each evaluation set of each task, as
      `answers.figures` gives them. Of a task the set `test` counts.

  Returns:
    For each group of the paper with a set in `results`: `sets`, with metric
    and value of each; `average` of all its sets, None unless all have a
    verdict; and `paper`, its averages.
  """
  found: dict[str, Any] = {}
  for group in GROUPS:
    sets = {
      title: _cell(results[name], metric)
      for name, (title, metric) in group.sets.items()
      if "test" in results.get(name, {})
    }
    if not sets:
      continue
    values = [one["value"] for one in sets.values() if one["value"] is not None]
    whole = len(values) == len(group.sets)
    found[group.title] = {
      "sets": sets,
      "average": sum(values) / len(values) if whole else None,
      "paper": [dataclasses.asdict(one) for one in group.reported],
    }
  return found


def _cell(sets: Mapping[str, Any], metric: str) -> dict[str, Any]:
  """Metric and value of a set; the value is None without a verdict."""
  figures = sets["test"]
  value = figures.get(metric) if figures["verdict"] else None
  if value is not None:
    value = 100 * float(value["mean"] if metric == "pass@1" else value)
  return {"metric": metric, "value": value}


def format_paper(found: Mapping[str, Any]) -> str:
  """The table of `in_paper`, at most 72 columns wide; "" for nothing."""
  lines: list[str] = []
  for group in GROUPS:
    if group.title not in found:
      continue
    one = found[group.title]
    lines += [f"{group.title} sets of the paper, in %"]
    lines += [
      f"  {title:<20}{cell['metric']:>8}{_shown(cell['value']):>8}"
      for title, cell in one["sets"].items()
    ]
    count = f"{len(one['sets'])} of {len(group.sets)}"
    lines += [f"  {'average':<20}{count:>8}{_shown(one['average']):>8}"]
    lines += [
      f"  paper, {said['model']:<13}{'GRPO':>8}{said['grpo']:>8.1f}"
      f"   RAPO{said['rapo']:>8.1f}"
      for said in one["paper"]
    ]
  return "\n".join(lines)


def _shown(value: float | None) -> str:
  return "-" if value is None else f"{value:.1f}"
