"""ARPO's hard advantages by hand."""

import numpy as np

from rapo_jax.algorithms import ObjectiveConfig
from rapo_jax.algorithms.arpo import hard_advantages
from tests.algorithms import signals


def test_what_is_shared_gets_the_mean_of_its_rollouts():
  # The second was forked from the first after a step, the third after two.
  made = signals.make(
    [4.0, 0.0, 2.0, 2.0],
    [0] * 4,
    anchors=[[0, 1, 2], [0, 3, -1], [0, 1, 4], [0, -1, -1]],
    nodes=[[0, 1, 2], [0, 4, -1], [0, 1, 8], [9, -1, -1]],
  )
  actual = hard_advantages(made, ObjectiveConfig(advantage_std=False))
  # Outcomes against 2: 2, -2, 0 and 0.
  np.testing.assert_allclose(
    actual,
    [[0.0, 1.0, 2.0], [0.0, -2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
    atol=1e-6,
  )
