"""The paper's reward of each retrieval against its exact effect.

    python -m experiments.run --config testbed --workdir runs/effect \\
        --config.train.methods=rapo --config.train.seeds=0,1 \\
        --config.train.log_trajectories_every=1 \\
        --config.retrieval.probe_share=1.0
    python -m benchmarks.retrieval_effect --workdir runs/effect --method rapo

Reads the trajectories of runs, finished or not. The paper's reward is Z of one
retrieval, quality times timing (Eq. 5-7). The effect is the reward of the
trajectory less that of its twin without the step. Prints one JSON line:
correlations of Z, of its two factors and of the key's similarity with the
effect. They are given over all retrievals, by task, by whether the group's
rewards differ (live), by updates, and within questions (less the mean of the
question's retrievals of an update). Intervals are 95 %, by a bootstrap over
questions of updates; ranks are those of all retrievals. `cost` says what the
probes took, beside the tokens of the rollouts. `tokens_from_prompt` is what
they would have taken without the cached prefix.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.report.samples import retrieval_effect
from experiments.report.sources import Run, load_runs
from experiments.workdir import read_trajectories
from rapo_jax.errors import InputError
from rapo_jax.records import TrajectoryRecord

RESAMPLES = 2_000


class Retrieval(NamedTuple):
  """One retrieval whose effect was measured.

  Attributes:
    task: its task.
    group: number of the question of an update.
    live: whether the rewards of its group differ.
    update: number of its update.
    effect: reward with it, less the reward without it.
    z: the paper's reward (Eq. 7), nats.
    quality: its first factor (Eq. 6).
    timing: its second factor, nats.
    similarity: of the key; NaN for a trace drawn at random.
    prefix_tokens: of the policy, before it.
  """

  task: str
  group: int
  live: bool
  update: int
  effect: float
  z: float
  quality: float
  timing: float
  similarity: float
  prefix_tokens: int


def read_retrievals(runs: Sequence[Run]) -> list[Retrieval]:
  """The retrievals of some runs whose effect was measured."""
  found: list[Retrieval] = []
  number = 0
  for run in runs:
    groups: dict[tuple[int, str], list[TrajectoryRecord]] = {}
    for record in read_trajectories(run.path):
      if record.training is not None:
        place = (record.training.update, record.query_id)
        groups.setdefault(place, []).append(record)
    for (update, _), records in groups.items():
      rewards = [
        record.score["value"]
        for record in records
        if record.training is not None and not record.training.left_out
      ]
      live = len(set(rewards)) > 1
      for record in records:
        for figures in _retrievals(record):
          found.append(Retrieval(run.task, number, live, update, *figures))
      number += 1
  return found


def _retrievals(
  record: TrajectoryRecord,
) -> Iterator[tuple[float, float, float, float, float, int]]:
  """Fields from `effect` on, of each retrieval that was measured."""
  events = {
    event["step_id"]: event for event in record.events if "effect" in event
  }
  segments = [s for s in record.segments if s.kind != "prompt"]
  for position, segment in enumerate(segments):
    if segment.kind != "retrieved" or segment.step_id not in events:
      continue
    event = events[segment.step_id]
    of_paper = retrieval_effect(segments, position)
    if not of_paper:
      continue
    similarity = event["similarity"]
    before = of_paper["before"]
    yield (
      event["effect"],
      of_paper["z"],
      of_paper["z"] / before,
      before,
      math.nan if similarity is None else similarity,
      sum(s.num_tokens or 0 for s in segments[:position] if s.kind == "policy"),
    )


def ranks(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
  """Rank of each value, the mean of theirs for equal ones."""
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  last = np.cumsum(counts)
  return ((2 * last - counts - 1) / 2)[inverse]


def correlation(
  x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], groups: np.ndarray
) -> dict[str, Any] | None:
  """Pearson's correlation with an interval over groups; None if undefined."""
  if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
    return None
  x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
  _, group = np.unique(groups, return_inverse=True)
  moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
  by_group = np.zeros((group.max() + 1, moments.shape[1]))
  np.add.at(by_group, group, moments)
  rng = np.random.default_rng(0)
  count = len(by_group)
  drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
  with np.errstate(invalid="ignore", divide="ignore"):
    values = _pearson(drawn @ by_group)
  values = values[np.isfinite(values)]
  low, high = np.quantile(values, (0.025, 0.975))
  value = float(_pearson(by_group.sum(axis=0)[None])[0])
  return {
    "value": round(value, 3),
    "interval": [round(float(low), 3), round(float(high), 3)],
  }


def _pearson(moments: Float[np.ndarray, "B 6"]) -> Float[np.ndarray, " B"]:
  count, x, y, xx, yy, xy = moments.T
  spread = np.sqrt((count * xx - x**2) * (count * yy - y**2))
  return (count * xy - x * y) / spread


def compared(
  chosen: Sequence[Retrieval], names: Sequence[str] = ("z",)
) -> dict[str, Any]:
  """Figures of some retrievals: their effects, and what goes with them."""
  effect = np.array([one.effect for one in chosen])
  groups = np.array([one.group for one in chosen])
  figures: dict[str, Any] = {"retrievals": len(chosen)}
  if not len(chosen):
    return figures
  figures |= {
    "effect": round(float(effect.mean()), 4),
    "positive": round(float(np.mean(effect > 0)), 4),
    "negative": round(float(np.mean(effect < 0)), 4),
  }
  for name in names:
    values = np.array([getattr(one, name) for one in chosen])
    there = np.isfinite(values)
    x, y, own = values[there], effect[there], groups[there]
    figures[name] = {
      "pearson": correlation(x, y, own),
      "spearman": correlation(ranks(x), ranks(y), own),
      "mean_where_positive": _mean(x[y > 0]),
      "mean_where_zero": _mean(x[y == 0]),
      "mean_where_negative": _mean(x[y < 0]),
    }
  return figures


def _mean(values: np.ndarray) -> float | None:
  return round(float(values.mean()), 4) if len(values) else None


def within_questions(chosen: Sequence[Retrieval]) -> list[Retrieval]:
  """Effects and Z less their means over a question's retrievals.

  A question with one retrieval is left out.
  """
  by_group: dict[int, list[Retrieval]] = {}
  for one in chosen:
    by_group.setdefault(one.group, []).append(one)
  centred = []
  for own in by_group.values():
    if len(own) > 1:
      effect = float(np.mean([one.effect for one in own]))
      z = float(np.mean([one.z for one in own]))
      centred += [
        one._replace(effect=one.effect - effect, z=one.z - z) for one in own
      ]
  return centred


def report(retrievals: Sequence[Retrieval], num_updates: int) -> dict[str, Any]:
  """All figures.

  Args:
    retrievals: of all runs.
    num_updates: of a row of the figures by updates.
  """
  first = min(one.update for one in retrievals)
  parts = sorted({(one.update - first) // num_updates for one in retrievals})
  centred = within_questions(retrievals)
  inside = np.array([(one.z, one.effect, one.group) for one in centred])
  return {
    "all": compared(retrievals, ("z", "quality", "timing", "similarity")),
    "within_questions": {
      "retrievals": len(centred),
      "pearson": correlation(*inside.T) if len(centred) else None,
    },
    "by_task": {
      task: compared([one for one in retrievals if one.task == task])
      for task in dict.fromkeys(one.task for one in retrievals)
    },
    "by_group": {
      name: compared([one for one in retrievals if one.live == live])
      for name, live in (("live", True), ("dead", False))
    },
    "by_updates": {
      f"{first + part * num_updates}-{first + (part + 1) * num_updates - 1}": (
        compared(
          [
            one
            for one in retrievals
            if (one.update - first) // num_updates == part
          ]
        )
      )
      for part in parts
    },
  }


def cost(
  runs: Sequence[Run], retrievals: Sequence[Retrieval]
) -> dict[str, float]:
  """What the probes took, beside what the rollouts took without them.

  Args:
    runs: whose metrics are read.
    retrievals: of these runs, for the mean prefix.
  """
  rows = [
    row for run in runs for row in run.rows if "retrieval/num_probed" in row
  ]

  def total(name: str) -> float:
    return sum(row[name] for row in rows)

  twins = total("retrieval/num_probed")
  generated = total("rollout/generated_tokens")
  tokens = total("probe/generated_tokens")
  prefix = float(np.mean([one.prefix_tokens for one in retrievals]))
  return {
    "twins": twins,
    "tokens_of_a_twin": round(tokens / twins, 1),
    "tokens": round(tokens / generated, 3),
    "tokens_from_prompt": round((tokens + twins * prefix) / generated, 3),
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--method", default="rapo")
  parser.add_argument("--updates", type=int, default=5, help="of a row")
  known = parser.parse_args()
  runs = [
    run
    for run in load_runs(known.workdir)
    if run.method == known.method and (run.path / "trajectories.jsonl").exists()
  ]
  retrievals = read_retrievals(runs)
  if not retrievals:
    raise InputError(
      f"no retrieval of {known.method} in {known.workdir} was probed: train "
      "with --config.retrieval.probe_share=1.0."
    )
  figures = report(retrievals, known.updates)
  figures["cost"] = cost(runs, retrievals)
  figures["runs"] = [f"{run.task} {run.name}" for run in runs]
  print(json.dumps(figures))


if __name__ == "__main__":
  main()
