"""RLOO's advantages by hand."""

import numpy as np

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from tests.algorithms import signals

RLOO = ALGORITHMS["rloo"]


def test_each_is_compared_with_the_others():
  made = signals.make([1.0, 0.0, 2.0, 5.0, 7.0], [0, 0, 0, 1, -1])
  actual = RLOO.advantages(made, RLOO.settings(ObjectiveConfig()))
  # 1 - (0 + 2) / 2, 0 - (1 + 2) / 2, 2 - (1 + 0) / 2; one alone; one left out.
  np.testing.assert_allclose(actual, [0.0, -1.5, 1.5, 0.0, 0.0], atol=1e-6)
