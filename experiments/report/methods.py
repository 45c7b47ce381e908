"""How the report names and colours the methods of a work folder.

A run writes what its algorithm says of itself, so that a report needs no file
of the user's own. Agents that are not trained have fixed names.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.workdir import read_json, write_json

if TYPE_CHECKING:
  from rapo_jax.algorithms import Algorithm

BASE = "base"
WARM_START = "warm_start"
"""Name of the agent that runs begin with, where there is a warm start."""
METHOD_FILE = "method.json"
"""Lies in the folder of a run."""


class Shown(NamedTuple):
  """What the report shows of a method.

  Attributes:
    label: its name for people.
    colour: `#rrggbb`; None for that of what has no own.
    dark_colour: the same on a dark page.
    retrieves: whether its rollouts retrieve in every update. One with a rule
      when to retrieve may stop.
  """

  label: str
  colour: str | None = None
  dark_colour: str | None = None
  retrieves: bool = False


AGENTS = {
  BASE: Shown("base agent", "#6b7280", "#a0a8b3"),
  WARM_START: Shown("warm start", "#2f7f86", "#7cc3c9"),
  "off_policy": Shown("off-policy agent", "#a3418f", "#d795c8"),
}


# Of methods that have no colour of their own: on a light and on a dark page.
_SPARE_COLOURS = (
  ("#0067ad", "#5fb4f2"),
  ("#c75000", "#f48e49"),
  ("#00805d", "#45c49b"),
  ("#8e3b9c", "#d59ae0"),
  ("#7a7000", "#cfc45a"),
  ("#b3264a", "#f2849c"),
  ("#4d4d9e", "#a8a8ec"),
  ("#5c5340", "#cfc3a6"),
)
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
"""Marks in charts, for eyes that tell colours badly."""
_OWN_SHAPES = {"rapo": "circle", "grpo": "square", "hybrid": "triangle"}


def coloured(
  shown: Mapping[str, Shown], used: Iterable[str]
) -> dict[str, Shown]:
  """Gives each method without a colour one that no other has, while they last.

  Args:
    shown: by name of the method.
    used: methods that are shown side by side.
  """
  taken = {shown[method].colour for method in used}
  spare = [pair for pair in _SPARE_COLOURS if pair[0] not in taken]
  colours = itertools.cycle(spare or _SPARE_COLOURS)
  found = dict(shown)
  for method, one in found.items():
    if one.colour is None:
      light, dark = next(colours)
      found[method] = one._replace(colour=light, dark_colour=dark)
  return found


def shapes(methods: Iterable[str]) -> dict[str, str]:
  """A mark of `SHAPES` for each method; alike only where there are many.

  Args:
    methods: of one report, in its order.
  """
  there = list(methods)
  found = {m: _OWN_SHAPES[m] for m in there if m in _OWN_SHAPES}
  free = [shape for shape in SHAPES if shape not in found.values()]
  left = itertools.cycle([*free, *(s for s in SHAPES if s not in free)])
  for method in there:
    if method in AGENTS:
      found[method] = SHAPES[0]
    elif method not in found:
      found[method] = next(left)
  return found


def write_shown(folder: pathlib.Path, algorithm: Algorithm) -> None:
  """Writes what a run's algorithm says of itself into the run's folder."""
  write_json(folder / METHOD_FILE, _of(algorithm)._asdict())


def read_shown(
  runs: Iterable[tuple[str, pathlib.Path]], *, unused: bool = True
) -> dict[str, Shown]:
  """What is shown of each method.

  Args:
    runs: method and folder of each run.
    unused: whether methods of the table are there that no run has.

  Returns:
    By name: the agents, the methods of the table and those of the runs.
  """
  found, missing = {}, []
  for method, folder in runs:
    path = folder / METHOD_FILE
    if path.exists():
      found[method] = Shown(**read_json(path))
    else:
      missing.append(method)
  table = _table() if unused or missing else {}
  found |= {m: table.get(m, Shown(m)) for m in missing if m not in found}
  return AGENTS | (table if unused else {}) | found


def _table() -> dict[str, Shown]:
  # Seconds to import, and not needed for runs that say it themselves.
  from rapo_jax.algorithms import ALGORITHMS

  return {name: _of(algorithm) for name, algorithm in ALGORITHMS.items()}


def label(results: Mapping[str, Any], method: str) -> str:
  """Name of a method for people."""
  return str(results.get("labels", {}).get(method, method))


def method_order(method: str) -> tuple[int, str]:
  """Sorts agents before methods, these by name."""
  agents = list(AGENTS)
  return (agents.index(method) if method in agents else len(agents), method)


def colour_rules(results: Mapping[str, Any], *, dark: bool) -> str:
  """Rules of a style sheet that colour the marks of each method.

  Args:
    results: content of `results.json`.
    dark: of a dark page.
  """
  rules = []
  for method, colours in results["colours"].items():
    light, on_dark = colours
    chosen = (on_dark or light) if dark else light
    rules.append(f".m-{method} {{ --c: {chosen or 'var(--other)'}; }}")
  return "\n".join(rules)


def _of(algorithm: Algorithm) -> Shown:
  return Shown(
    algorithm.label,
    algorithm.colour,
    algorithm.dark_colour,
    algorithm.plan.hybrid and algorithm.plan.guide is None,
  )
