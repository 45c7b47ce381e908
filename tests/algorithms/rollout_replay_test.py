"""The loss of replayed rollouts by hand."""

import dataclasses

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, check_algorithm
from tests.algorithms.losses import tokens

ALGORITHM = ALGORITHMS["rollout_replay"]


def test_it_is_an_algorithm():
  check_algorithm(ALGORITHM, ObjectiveConfig())


@pytest.mark.parametrize(
  ("ratio", "advantage", "value", "slope"),
  [
    # The range is 2 * 0.8 to 2 * 1.2.
    (2.0, 1.0, -2.0, -2.0),
    (3.0, 1.0, -2.4, 0.0),
    (1.0, 1.0, -1.0, -1.0),
    (1.0, -1.0, 1.6, 0.0),
    (3.0, -1.0, 3.0, 3.0),
  ],
)
def test_the_range_lies_around_the_policy_before(
  ratio, advantage, value, slope
):
  values, slopes = tokens(
    ALGORITHM,
    [ratio],
    [advantage],
    proximal_log_probs=[np.log(2.0) - 1.5],
  )
  np.testing.assert_allclose(values, [value], rtol=1e-5)
  np.testing.assert_allclose(slopes, [slope], rtol=1e-5)


def test_fresh_rollouts_have_ppos_loss():
  ratios, advantages = [2.0, 0.5, 1.1], [1.0, -1.0, 2.0]
  fresh = tokens(ALGORITHM, ratios, advantages, proximal_log_probs=[-1.5] * 3)
  ppo = tokens(
    dataclasses.replace(ALGORITHMS["grpo"], changes=ALGORITHM.changes),
    ratios,
    advantages,
  )
  np.testing.assert_allclose(fresh, ppo, rtol=1e-5)
