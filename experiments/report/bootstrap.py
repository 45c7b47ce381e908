"""95 % intervals by a bootstrap over seeds and questions.

A run with another seed, on other questions, would have given another number;
both are resampled: seeds with replacement, then questions with replacement, the
same questions for every seed and for both methods of a comparison. That keeps
pairs together (same seed, same question), so that what is common to two methods
cancels in their difference. The answers sampled for one question are averaged
and not resampled.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NUM_RESAMPLES = 10_000
LEVEL = 0.95
_SEED = 20_260_303


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean and the interval around it."""

  mean: float
  low: float
  high: float


def mean_interval(
  tables: Sequence[np.ndarray], num_resamples: int = NUM_RESAMPLES
) -> Interval:
  """Mean over tables of the mean of each table, with its interval.

  Args:
    tables: one `[seeds, questions]` array a task, of accuracies or of paired
      differences. Tasks are resampled apart, each within itself.
    num_resamples: number of bootstrap resamples.

  Returns:
    The mean, and the percentile interval of its bootstrap distribution. With
    one seed the interval covers the choice of questions alone.

  Raises:
    ValueError: if there is no table, or one of them is empty.
  """
  if not tables or any(table.size == 0 for table in tables):
    raise ValueError(
      "an interval needs at least one seed and one question in every task, got"
      f" shapes {[table.shape for table in tables]}."
    )
  estimates = np.zeros(num_resamples)
  for task, table in enumerate(tables):
    num_seeds, num_questions = table.shape
    seeds = _counts(num_seeds, 2 * task, num_resamples)
    questions = _counts(num_questions, 2 * task + 1, num_resamples)
    sums = np.sum((seeds @ table) * questions, axis=1)
    estimates += sums / (table.size * len(tables))
  tail = (1 - LEVEL) / 2
  low, high = np.quantile(estimates, (tail, 1 - tail))
  mean = float(np.mean([table.mean() for table in tables]))
  return Interval(mean, float(low), float(high))


def statistic_interval(
  num: int,
  statistic: Callable[[Sequence[int]], float],
  num_resamples: int = 1_000,
) -> tuple[float, float]:
  """Interval of a statistic of some items, by resampling the items.

  Args:
    num: number of items.
    statistic: of the items at some positions, which may repeat; their order
      does not matter.
    num_resamples: number of bootstrap resamples.

  Returns:
    Ends of the percentile interval.
  """
  rng = np.random.default_rng(_SEED)
  picks = np.sort(rng.integers(num, size=(num_resamples, num)), axis=1)
  distinct, counts = np.unique(picks, axis=0, return_counts=True)
  values = np.repeat([statistic(row.tolist()) for row in distinct], counts)
  tail = (1 - LEVEL) / 2
  low, high = np.quantile(values, (tail, 1 - tail))
  return float(low), float(high)


def seed_mean(values: Sequence[float]) -> dict[str, Any]:
  """Mean of one value a seed, with its interval over seeds.

  Args:
    values: one a seed, at least one.

  Returns:
    `mean`, and `interval`, which is None for one seed.
  """
  table = np.array(values, float)
  interval = None
  if len(table) > 1:
    interval = statistic_interval(
      len(table), lambda picks: float(table[list(picks)].mean())
    )
  return {"mean": float(table.mean()), "interval": interval}


@functools.lru_cache(maxsize=32)
def _counts(num: int, stream: int, num_resamples: int) -> np.ndarray:
  """How often each of `num` items is in each resample, `[resamples, num]`.

  Cached: all methods of a task are resampled alike, and drawing is most of the
  time.
  """
  rng = np.random.default_rng((_SEED, stream))
  counts = rng.multinomial(num, np.full(num, 1 / num), size=num_resamples)
  return counts.astype(float)
