"""REINFORCE++'s advantages by hand."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.trajectory import TokenKind
from tests.algorithms import signals

PLAIN = ALGORITHMS["reinforce_pp"]
BASELINE = ALGORITHMS["reinforce_pp_baseline"]
KINDS = jnp.asarray(
  [
    [TokenKind.PROMPT, TokenKind.POLICY, TokenKind.OBSERVATION, 1],
    [TokenKind.PROMPT, TokenKind.POLICY, -1, -1],
  ]
)


def _advantages(algorithm, rewards, group_ids=(0, 0), **changes):
  made = signals.make(rewards, group_ids, tokens=4)
  made = dataclasses.replace(made, kinds=KINDS)
  function = dataclasses.replace(algorithm.advantages, **changes)
  return np.asarray(function(made, ObjectiveConfig()))


def test_rewards_are_normalised_over_the_tokens():
  # Tokens 3, 3 and 0: mean 2, variance (1 + 1 + 4) / 2.
  actual = _advantages(PLAIN, [3.0, 0.0])
  root = math.sqrt(3.0)
  np.testing.assert_allclose(actual[0], [0, 1 / root, 0, 1 / root], rtol=1e-5)
  np.testing.assert_allclose(actual[1], [0, -2 / root, 0, 0], rtol=1e-5)


def test_the_groups_mean_goes_first():
  # 1.5, 1.5 and -1.5: mean 0.5, variance (1 + 1 + 4) / 2.
  actual = _advantages(BASELINE, [3.0, 0.0])
  root = math.sqrt(3.0)
  np.testing.assert_allclose(actual[0, 1], 1 / root, rtol=1e-5)
  np.testing.assert_allclose(actual[1, 1], -2 / root, rtol=1e-5)


def test_observations_take_no_discount():
  # Tokens 1.5, 3 and 0: mean 1.5, variance 4.5 / 2.
  actual = _advantages(PLAIN, [3.0, 0.0], discount=0.5)
  np.testing.assert_allclose(actual[0, [1, 3]], [0.0, 1.0], atol=1e-6)
  np.testing.assert_allclose(actual[1, 1], -1.0, rtol=1e-6)


@pytest.mark.parametrize("algorithm", [PLAIN, BASELINE])
def test_equal_rewards_teach_nothing(algorithm):
  assert not _advantages(algorithm, [0.1, 0.1]).any()


def test_one_that_does_not_count_is_left_out():
  actual = _advantages(PLAIN, [3.0, 100.0], group_ids=(0, -1))
  assert not actual.any()
