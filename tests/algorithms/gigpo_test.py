"""GiGPO's advantages by hand."""

import dataclasses

import numpy as np

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from tests.algorithms import signals

GIGPO = ALGORITHMS["gigpo"]
SETTINGS = dataclasses.replace(
  GIGPO.settings(ObjectiveConfig()), advantage_std=False, advantage_eps=0.0
)
# Two rollouts of one question: both begin at anchor 0; the first goes on to 1
# and 2, the second answers at once.
ANCHORS = [[0, 1, 2], [0, -1, -1]]


def test_steps_are_compared_at_the_same_anchor():
  advantages = dataclasses.replace(GIGPO.advantages, discount=0.5, weight=2.0)
  actual = advantages(
    signals.make([1.0, 0.0], [0, 0], anchors=ANCHORS), SETTINGS
  )
  # Returns 1/4, 1/2, 1 and 0; at anchor 0 they differ from 1/8 by 1/8.
  np.testing.assert_allclose(actual[0], [0.5 + 0.25, 0.5, 0.5])
  np.testing.assert_allclose(actual[1, 0], -0.5 - 0.25)


def test_a_trajectory_can_count_once_a_step():
  advantages = dataclasses.replace(
    GIGPO.advantages, weight=0.0, over_steps=True
  )
  actual = advantages(
    signals.make([1.0, 0.0], [0, 0], anchors=ANCHORS), SETTINGS
  )
  # The mean is over four steps, three of them with reward 1.
  np.testing.assert_allclose(actual[0], [0.25] * 3)
  np.testing.assert_allclose(actual[1, 0], -0.75)


def test_a_malformed_call_costs_its_step():
  made = signals.make([1.0, 1.0], [0, 0], anchors=[[0, 1], [0, 2]])
  malformed = np.asarray([[True, False], [False, False]])
  made = dataclasses.replace(made, malformed=malformed)
  actual = GIGPO.advantages(made, SETTINGS)
  np.testing.assert_allclose(actual, [[-0.005, 0], [0.005, 0]], atol=1e-6)
