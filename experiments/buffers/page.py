"""What is in a Step-Trace Buffer, on one self-contained page.

Nothing is fetched, and text of traces is data and never markup.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from experiments import pages
from experiments.report import charts
from rapo_jax import files
from rapo_jax.retrieval.buffer import store
from rapo_jax.retrieval.buffer.manifest import TRACES_FILE, Manifest
from rapo_jax.retrieval.buffer.policy import Hit
from rapo_jax.retrieval.buffer.step_trace import StepTrace
from rapo_jax.retrieval.buffer.trace_file import (
  StoredTraces,
  trajectory_columns,
)
from rapo_jax.tools.tags import answered_tools

_MAP_KEYS = 3000
_SAMPLES = 12
_MAX_TEXT = 2000
_HINT_CHARS = 90
_GROUPS = 6
_COLUMNS = ["source", "step_index", "reward", "num_tokens", "answers"]


@dataclasses.dataclass(frozen=True)
class Asked:
  """A waiting history, and the traces that it finds, the nearest first."""

  question: str
  history: Sequence[str]
  hits: Sequence[Hit]


def write_page(
  directory: pathlib.Path, path: pathlib.Path, asked: Asked | None = None
) -> None:
  """Writes the page of a buffer.

  Args:
    directory: folder of the buffer.
    path: file to write.
    asked: neighbours to show, or None.

  Raises:
    ValueError: the folder holds no buffer, or a broken one.
  """
  manifest = store.read_manifest(directory)
  traces = StoredTraces(directory / TRACES_FILE)
  facts = _Facts(traces)
  page = pages.template("buffer.html.j2", shown=_shown).render(
    title=directory.name,
    headline=f"{manifest.num_traces:,} step traces by "
    f"{_counted(len(manifest.agents), 'agent')}",
    tiles=list(_tiles(manifest)),
    tools=facts.tools,
    agents=list(_agents(manifest, facts)),
    histograms=list(_histograms(traces, facts)),
    map=_map(directory, traces, facts),
    asked=asked,
    samples=_samples(traces),
    manifest=list(_flat(manifest)),
  )
  files.replace_text(path, page)


class _Facts:
  """Numbers of all traces, and calls of tools by agent.

  Attributes:
    columns: `_COLUMNS` of the N traces.
    tools: names of those that are called anywhere.
  """

  def __init__(self, traces: StoredTraces):
    self._calls: dict[str, collections.Counter[str]] = collections.defaultdict(
      collections.Counter
    )
    parts = []
    for table in traces.tables([*_COLUMNS, "step"]):
      columns = table.select(["source", "step"]).to_pydict()
      for agent, step in zip(columns["source"], columns["step"], strict=True):
        self._calls[agent].update(answered_tools(step))
      parts.append(table.drop_columns(["step"]))
    self.columns = pa.concat_tables(parts) if parts else pa.table({})
    self.tools = sorted(set().union(*self._calls.values()))

  def array(self, name: str) -> np.ndarray:
    return self.columns[name].to_numpy()

  def calls(self, agent: str) -> list[int]:
    return [self._calls[agent][tool] for tool in self.tools]


def _tiles(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
  """(figure, its name, its parts)."""
  agents = manifest.agents.values()
  trajectories = sum(agent.num_trajectories for agent in agents)
  yield (
    f"{manifest.num_traces:,}",
    "step traces",
    f"of {trajectories:,} trajectories",
  )
  yield f"{manifest.num_keys:,}", "distinct keys", "question and history"
  yield f"{manifest.num_tokens:,}", "wordpieces", "of all steps"
  yield manifest.encoder.id, "encoder", manifest.encoder.sha256[:12]
  recall = manifest.index.get("recall")
  yield (
    str(manifest.index.get("kind", "–")),
    "index",
    f"recall {recall}" if recall is not None else f"version {manifest.version}",
  )


def _agents(manifest: Manifest, facts: _Facts) -> Iterator[dict[str, Any]]:
  rows = []
  sources = facts.columns["source"].to_numpy()
  for name, counts in manifest.agents.items():
    own = sources == name
    rows.append(
      {
        "name": name,
        "total": False,
        "num_trajectories": counts.num_trajectories,
        "num_traces": counts.num_traces,
        "num_tokens": counts.num_tokens,
        "reward": float(facts.array("reward")[own].mean()),
        "answers": int(facts.array("answers")[own].sum()),
        "calls": facts.calls(name),
      }
    )
  yield from rows
  if len(rows) > 1:
    names = ("num_trajectories", "num_traces", "num_tokens", "answers")
    yield {
      "name": "all",
      "total": True,
      **{name: sum(row[name] for row in rows) for name in names},
      "reward": float(facts.array("reward").mean()),
      "calls": [sum(c) for c in zip(*(r["calls"] for r in rows), strict=True)],
    }


def _histograms(
  traces: StoredTraces, facts: _Facts
) -> Iterator[tuple[str, Any]]:
  trajectories, steps = trajectory_columns(traces)
  longest = np.full(int(trajectories.max(initial=-1)) + 2, -1)
  np.maximum.at(longest, trajectories, steps)
  # The last place is that of traces whose trajectory is not known.
  lengths = longest[:-1][longest[:-1] >= 0] + 1
  tokens = facts.array("num_tokens")
  # A few long steps would press all the others into one bar.
  most = float(np.quantile(tokens, 0.99))
  for caption, label, values in (
    ("Length of steps", "wordpieces, up to 99 %", tokens[tokens <= most]),
    ("Rewards of steps' trajectories", "reward", facts.array("reward")),
    ("Steps of a trajectory", "steps", lengths),
    ("Place of a step", "step number", steps),
  ):
    yield caption, charts.histogram(values.tolist(), x_label=label)


def _map(
  directory: pathlib.Path, traces: StoredTraces, facts: _Facts
) -> dict[str, Any]:
  """The keys' vectors in the two directions in which they differ most."""
  keys, rows = np.unique(traces.key_ids, return_index=True)
  rng = np.random.default_rng(0)
  count = min(_MAP_KEYS, len(keys))
  chosen = np.sort(rng.choice(len(keys), count, replace=False))
  vectors = np.asarray(store.key_vectors(directory)[keys[chosen]], np.float32)
  plane, share = _principal(vectors)
  names, groups = _groups(facts)
  points = []
  # In the order of the file, whose row groups are then read once each.
  for place in np.argsort(rows[chosen]):
    row = int(rows[chosen][place])
    trace = traces[row]
    hint = f"{_cut(trace.question, _HINT_CHARS)} (step {trace.step_index})"
    x, y = plane[place]
    points.append((float(x), float(y), f"g-{groups[row]}", hint))
  return {
    "chart": charts.map_chart(points, title="Map of keys"),
    "legend": [(name, f"g-{i}") for i, name in enumerate(names)],
    "note": f"{count:,} of {len(keys):,} keys in the two directions in which "
    f"they differ most (principal components, {100 * share:.0f} % of the "
    "variance). What lies near each other is alike; what lies apart may be "
    "too. Hover for the question.",
  }


def _principal(
  vectors: Float32[np.ndarray, "N D"],
) -> tuple[Float32[np.ndarray, "N 2"], float]:
  """Vectors in their first two principal components, and their share."""
  centred = vectors - vectors.mean(axis=0)
  values, axes = np.linalg.eigh(centred.T @ centred)
  share = values[-2:].sum() / max(float(values.sum()), 1e-12)
  return centred @ axes[:, :-3:-1], float(share)


def _groups(facts: _Facts) -> tuple[list[str], np.ndarray]:
  """Agents if there are several, else step numbers; the last takes the rest."""
  sources = facts.columns["source"].to_pylist()
  counts = collections.Counter(sources)
  if len(counts) > 1:
    names = [name for name, _ in counts.most_common(_GROUPS)]
    if len(counts) > _GROUPS:
      names[-1] = "others"
    place = {name: i for i, name in enumerate(names)}
    last = _GROUPS - 1
    return names, np.array([place.get(name, last) for name in sources])
  steps = np.minimum(facts.array("step_index"), _GROUPS - 1)
  names = [f"step {i}" for i in range(int(steps.max()) + 1)]
  if len(names) == _GROUPS:
    names[-1] += " and later"
  return names, steps


def _samples(traces: StoredTraces) -> list[StepTrace]:
  rng = np.random.default_rng(0)
  count = min(_SAMPLES, len(traces))
  rows = rng.choice(len(traces), count, replace=False)
  return [traces[int(row)] for row in np.sort(rows)]


def _flat(manifest: Manifest) -> Iterator[tuple[str, str]]:
  def walk(content: Any, above: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping) and content:
      for name, value in content.items():
        yield from walk(value, f"{above}.{name}" if above else str(name))
    else:
      yield above, str(content)

  return walk(dataclasses.asdict(manifest), "")


def _counted(count: int, what: str) -> str:
  return f"{count} {what}{'' if count == 1 else 's'}"


def _shown(text: str) -> str:
  return _cut(text, _MAX_TEXT)


def _cut(text: str, length: int) -> str:
  return text if len(text) <= length else f"{text[: length - 1]}…"
