"""RAPO's ablations by hand: one retrieval, from entropy 2 to 1."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.retrieval import RetrievalConfig

# dH = (2 - 1) / 2, squashed with the scale of 2.
QUALITY = math.tanh(1.0)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("rapo", 2 * QUALITY),
    ("rapo_no_quality", 2.0),
    ("rapo_no_timing", QUALITY),
    ("rapo_inverted", -2 * QUALITY),
    ("rapo_low_entropy_timing", QUALITY / 2),
  ],
)
def test_the_worth_of_a_retrieval(name, expected):
  actual = ALGORITHMS[name].retrieval_reward(
    jnp.asarray([[2.0, 0.0, 1.0], [2.0, 1.0, 1.0]]),
    jnp.asarray([[False, True, False], [False, False, False]]),
    where=jnp.ones((2, 3), bool),
    scale=2.0,
  )
  np.testing.assert_allclose(actual, [expected, 0.0], rtol=1e-5)


def test_coefficients_that_are_left_out():
  objective = ObjectiveConfig(retrieval_coef=0.7, shaping_coef=0.3)
  no_reward = ALGORITHMS["rapo_no_retrieval_reward"].settings(objective)
  assert (no_reward.retrieval_coef, no_reward.shaping_coef) == (0.0, 0.3)
  no_shaping = ALGORITHMS["rapo_no_shaping"].settings(objective)
  assert (no_shaping.retrieval_coef, no_shaping.shaping_coef) == (0.7, 0.0)


def test_whole_trajectories_are_inserted():
  plan = ALGORITHMS["rapo_trajectory"].plan
  assert plan.retrieval(RetrievalConfig()).granularity == "trajectory"
  assert ALGORITHMS["rapo"].plan.retrieval(RetrievalConfig()).granularity == (
    "step"
  )
