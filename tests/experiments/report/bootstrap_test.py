"""Tests of the bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.report import bootstrap


def _oracle(tables, num_resamples, rng):
  """The definition, one resample and one task at a time."""
  estimates = []
  for _ in range(num_resamples):
    means = []
    for table in tables:
      seeds = rng.integers(table.shape[0], size=table.shape[0])
      questions = rng.integers(table.shape[1], size=table.shape[1])
      means.append(table[np.ix_(seeds, questions)].mean())
    estimates.append(np.mean(means))
  return np.quantile(estimates, (0.025, 0.975))


def test_equals_the_slow_oracle():
  rng = np.random.default_rng(1)
  tables = [rng.random((5, 30)) + rng.random((5, 1)), rng.random((3, 20))]
  interval = bootstrap.mean_interval(tables)
  low, high = _oracle(tables, 4000, rng)
  assert interval.mean == pytest.approx(
    (tables[0].mean() + tables[1].mean()) / 2
  )
  # Two Monte Carlo quantiles of a spread of .1: equal to a few thousandths.
  assert interval.low == pytest.approx(low, abs=0.01)
  assert interval.high == pytest.approx(high, abs=0.01)


def test_is_repeatable():
  table = np.random.default_rng(2).random((4, 10))
  assert bootstrap.mean_interval([table]) == bootstrap.mean_interval([table])


def test_equal_values_have_an_interval_of_no_width():
  interval = bootstrap.mean_interval([np.full((3, 7), 0.25)])
  assert interval == bootstrap.Interval(0.25, 0.25, 0.25)


def test_one_seed_still_resamples_questions():
  # Half of 100 questions right: standard error .05, so .4 to .6.
  table = (np.arange(100) < 50).astype(float)[None]
  interval = bootstrap.mean_interval([table])
  assert interval.low == pytest.approx(0.4, abs=0.01)
  assert interval.high == pytest.approx(0.6, abs=0.01)


def test_seeds_widen_the_interval():
  # The same for all questions: only seeds vary. Two seeds, 0 and 1: the
  # resampled mean is 0 or 1 a quarter of the time each.
  table = np.repeat([[0.0], [1.0]], 50, axis=1)
  interval = bootstrap.mean_interval([table])
  assert (interval.low, interval.high) == (0.0, pytest.approx(1.0))


def test_nothing_to_resample_is_an_error():
  with pytest.raises(ValueError, match=r"at least one seed.*\(0, 3\)"):
    bootstrap.mean_interval([np.zeros((0, 3))])


def test_interval_of_a_statistic_by_hand():
  # Two items: both the first, both the second, or one of each twice as often.
  values = [1.0, 3.0]
  low, high = bootstrap.statistic_interval(
    2, lambda picks: sum(values[i] for i in picks) / len(picks)
  )
  assert (low, high) == (1.0, 3.0)
  assert bootstrap.statistic_interval(1, lambda picks: 7.0) == (7.0, 7.0)
