"""What the files of a work folder say: its evaluations and its runs.

Reads `evaluate/<task>/<agent>.json` (held-out accuracy) and
`train/<task>/<method>-seed<k>/metrics.jsonl` (curves and cost). The folder of a
study holds a work folder for each of its arms; their methods are shown side by
side, under names that say the arm.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import health
from experiments.metrics import read_metrics
from experiments.report.folders import RunFolder, Source, run_folders, sources
from experiments.report.methods import (
  AGENTS,
  Shown,
  coloured,
  method_order,
  read_shown,
)
from experiments.workdir import read_evaluation, read_json

REFERENCE = "grpo"
"""What methods are compared with, unless a study says otherwise."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Held-out answers of one agent; `{query_id: share right}`.

  `num_left_out` counts the samples that the system cut, which are in neither;
  `num_whole` those of the others that keep the format.
  """

  method: str
  seed: int | None
  update: int | None
  greedy: Mapping[str, float]
  sampled: Mapping[str, float]
  num_samples: int
  score_statuses: Mapping[str, int] = dataclasses.field(default_factory=dict)
  num_left_out: int = 0
  num_whole: int = 0

  @property
  def agent(self) -> str:
    return (
      self.method if self.seed is None else f"{self.method}-seed{self.seed}"
    )


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run: a row of metrics an update."""

  task: str
  method: str
  seed: int
  path: pathlib.Path
  finished: bool
  rows: Sequence[Mapping[str, float]]
  source: Source

  @property
  def name(self) -> str:
    return f"{self.method}-seed{self.seed}"

  def series(self, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Two metrics over the updates that have both."""
    pairs = [(row[x], row[y]) for row in self.rows if x in row and y in row]
    table = np.array(pairs, float).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    return table[:, 0], table[:, 1]


def load_evaluations(
  root: str | pathlib.Path,
) -> dict[str, list[Evaluation]]:
  """Evaluations by task, in the order of their file names.

  Those of a task with several evaluation sets are by set, as `<task>/<set>`.
  An agent that was not trained and answers the same in several arms of a study
  is there once.
  """
  found: dict[str, list[Evaluation]] = {}
  untrained: dict[tuple[str, str], list[Evaluation]] = {}
  for source in sources(root):
    for path in sorted(source.folder.glob("evaluate/*/*.json")):
      content = read_evaluation(path)
      task, evaluation = path.parent.name, _evaluation(content)
      method = source.method(evaluation.method)
      if evaluation.method in AGENTS:
        there = untrained.setdefault((task, evaluation.method), [])
        if evaluation in there:
          continue
        # The first one has the agent's plain name.
        method = method if there else evaluation.method
        there.append(evaluation)
      evaluation = dataclasses.replace(evaluation, method=method)
      for key, own in _by_set(task, evaluation, content):
        found.setdefault(key, []).append(own)
  return found


def _evaluation(content: Mapping[str, Any]) -> Evaluation:
  """The evaluation that a file holds."""
  sampled = content["sampled"]
  statuses = content.get("score_statuses", {})
  # An evaluation of an earlier version says it by the recipe's statuses.
  whole = statuses.get("ok", 0) + statuses.get("box_empty", 0)
  return Evaluation(
    method=content["method"],
    seed=content.get("seed"),
    update=content.get("update"),
    greedy={k: float(v) for k, v in content["greedy"].items()},
    sampled={k: float(np.mean(v)) for k, v in sampled.items()},
    num_samples=max(map(len, sampled.values()), default=0),
    score_statuses=statuses,
    num_left_out=content.get("left_out", 0),
    num_whole=content.get("format_whole", whole),
  )


def _by_set(
  task: str, evaluation: Evaluation, content: Mapping[str, Any]
) -> Iterator[tuple[str, Evaluation]]:
  """The evaluation, or its part on each set where there are several.

  What is counted over all trajectories stays with one set, if possible one
  with a right answer: a warning says where none is right.
  """
  sets = content.get("sets", {})
  if len(sets) < 2:
    yield task, evaluation
    return
  right = {k for k, share in evaluation.sampled.items() if share}
  counted = max(sets, key=lambda name: bool(right & set(sets[name])))
  none = {"score_statuses": {}, "num_left_out": 0, "num_whole": 0}
  for name, ids in sets.items():
    wanted = set(ids)
    part: dict[str, Any] = {} if name == counted else none
    yield (
      f"{task}/{name}",
      dataclasses.replace(
        evaluation,
        greedy={k: v for k, v in evaluation.greedy.items() if k in wanted},
        sampled={k: v for k, v in evaluation.sampled.items() if k in wanted},
        **part,
      ),
    )


def load_runs(root: str | pathlib.Path) -> list[Run]:
  """Training runs that have written metrics, by task, method and seed."""
  runs = []
  for place in run_folders(root):
    rows = read_metrics(place.path)
    if rows:
      runs.append(
        Run(
          place.task,
          place.method,
          place.seed,
          place.path,
          place.finished,
          rows,
          place.source,
        )
      )
  return sorted(runs, key=lambda r: (r.task, method_order(r.method), r.seed))


def health_settings(
  workdir: str | pathlib.Path,
) -> tuple[health.HealthConfig, bool]:
  """What a work folder's config says, and whether hybrid methods retrieve."""
  path = pathlib.Path(workdir) / "config.json"
  config = read_json(path) if path.exists() else {}
  settings = config.get("train", {}).get("health", {})
  hybrid = config.get("rollout", {}).get("num_hybrid", 1) > 0
  return health.HealthConfig(**settings), hybrid


def configured_methods(root: str | pathlib.Path) -> list[str]:
  """Methods that the configs of a folder train, in their order."""
  found = []
  for source in sources(root):
    path = source.folder / "config.json"
    config = read_json(path) if path.exists() else {}
    methods = config.get("train", {}).get("methods", [])
    found += [source.method(method) for method in methods]
  return list(dict.fromkeys(found))


def shown_methods(
  root: str | pathlib.Path,
  runs: Sequence[Run] | Sequence[RunFolder],
  *,
  agents: Sequence[str] = (),
  unused: bool = True,
) -> dict[str, Shown]:
  """What is shown of each method and agent, by its name in the report.

  Args:
    root: a work folder, or the folder of a study.
    runs: its runs.
    agents: others that are shown, such as those that are evaluated alone.
    unused: whether methods of the table are there that no run has.
  """
  found = read_shown(((run.method, run.path) for run in runs), unused=unused)
  for source in sources(root):
    if source.label:
      for agent, shown in AGENTS.items():
        label = f"{shown.label}, {source.label}"
        found[source.method(agent)] = shown._replace(label=label)
  for run in {run.method: run for run in runs}.values():
    if run.source.label:
      own = found[run.method]
      light, dark = run.source.colours or (own.colour, own.dark_colour)
      found[run.method] = own._replace(
        label=f"{own.label}, {run.source.label}", colour=light, dark_colour=dark
      )
  for agent in agents:
    found.setdefault(agent, Shown(agent))
  return coloured(found, {*agents, *(run.method for run in runs)})
