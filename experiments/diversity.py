"""How diverse rollouts are that may retrieve, beside others of their question.

Both kinds come from one policy and one update, so what differs is retrieval. In
each logged update and question as many rollouts of either kind are compared, in
the order of their indices, step by step. Steps are those that the agent wrote
or retrieved; what tools answered is left out.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.workdir import read_json, read_trajectories, write_json
from rapo_jax.records import TrajectoryRecord
from rapo_jax.retrieval import SentenceEncoder

DIVERSITY_FILE = "diversity.json"
"""Lies in the folder of a run that was measured."""
KINDS = ("plain", "hybrid")
MEASURES = {
  "distinct_1": "distinct words, share",
  "distinct_2": "distinct 2-grams, share",
  "distinct_4": "distinct 4-grams, share",
  "distinct_steps": "distinct steps, share",
  "spread": "spread of the steps’ embeddings",
}
"""What is measured of the rollouts of a question, and its name for people."""
_NGRAMS = (1, 2, 4)

_Rollouts = Sequence[Sequence[str]]
"""Texts of the steps of each rollout."""


def measure_run(folder: pathlib.Path, encoder: SentenceEncoder) -> None:
  """Measures the logged rollouts of a run and writes `diversity.json`.

  A run without hybrid rollouts has nothing to compare, and its file says so.

  Args:
    folder: of the run.
    encoder: embeds the steps.
  """
  groups = list(_groups(folder))
  if not groups:
    write_json(folder / DIVERSITY_FILE, {"num_groups": 0})
    return
  texts = {t for pair in groups for side in pair for r in side for t in r}
  ordered = sorted(texts)
  vectors = dict(zip(ordered, encoder.encode(ordered), strict=True))
  sides = [
    [measure(side, vectors) for side in sides]
    for sides in zip(*groups, strict=True)
  ]
  content = {
    kind: {
      name: float(np.mean([found[name] for found in side])) for name in MEASURES
    }
    for kind, side in zip(KINDS, sides, strict=True)
  }
  write_json(folder / DIVERSITY_FILE, content | {"num_groups": len(groups)})


def is_measured(folder: pathlib.Path) -> bool:
  """Whether `measure_run` has measured a run, whatever it found."""
  return (folder / DIVERSITY_FILE).exists()


def read_diversity(folder: pathlib.Path) -> Mapping[str, Any] | None:
  """What `measure_run` found; None if it did not run, or had no pairs."""
  if not is_measured(folder):
    return None
  found = read_json(folder / DIVERSITY_FILE)
  return dict(found) if found["num_groups"] else None


def measure(
  rollouts: _Rollouts, vectors: Mapping[str, Float[np.ndarray, " D"]]
) -> dict[str, float]:
  """Measures of the rollouts of one question.

  Args:
    rollouts: texts of the steps of each rollout.
    vectors: unit vector of each text.

  Returns:
    `MEASURES` by name. A share of n-grams is that of all n-grams of words; the
    spread is one minus the mean cosine of two steps of different rollouts. 0
    where there is nothing to compare.
  """
  steps = [step for rollout in rollouts for step in rollout]
  found = {
    f"distinct_{n}": _share([g for step in steps for g in _ngrams(step, n)])
    for n in _NGRAMS
  }
  found["distinct_steps"] = _share(steps)
  cosines = [
    float(vectors[first] @ vectors[second])
    for one, other in itertools.combinations(rollouts, 2)
    for first in one
    for second in other
  ]
  found["spread"] = 1 - float(np.mean(cosines)) if cosines else 0.0
  return found


def _share(items: Sequence[Any]) -> float:
  return len(set(items)) / len(items) if items else 0.0


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
  words = text.split()
  return zip(*(words[i:] for i in range(n)), strict=False)


def _groups(folder: pathlib.Path) -> Iterator[tuple[_Rollouts, _Rollouts]]:
  """Plain and hybrid rollouts of each question and update, as many of each."""
  rows: dict[tuple[int, str], dict[bool, list[TrajectoryRecord]]] = {}
  for record in read_trajectories(folder):
    if record.training is None or record.training.left_out:
      continue
    group = rows.setdefault((record.training.update, record.query_id), {})
    group.setdefault(record.training.hybrid, []).append(record)
  for group in rows.values():
    plain, hybrid = (
      sorted(group.get(kind, ()), key=lambda record: record.index)
      for kind in (False, True)
    )
    count = min(len(plain), len(hybrid))
    if count:
      yield [*map(_steps, plain[:count])], [*map(_steps, hybrid[:count])]


def _steps(record: TrajectoryRecord) -> list[str]:
  """Texts of the steps that the agent wrote or retrieved."""
  texts: dict[int, str] = {}
  for segment in record.segments:
    if segment.kind in ("policy", "retrieved"):
      texts[segment.step_id] = texts.get(segment.step_id, "") + segment.text
  return [text for text in texts.values() if text.strip()]
