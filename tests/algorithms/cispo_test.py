"""CISPO's loss by hand."""

import numpy as np

from rapo_jax.algorithms import ALGORITHMS
from tests.algorithms.losses import tokens


def test_the_weight_is_clipped_and_the_gradient_is_not():
  # Weights are clipped at 1.2 above, and not below.
  losses, slopes = tokens(
    ALGORITHMS["cispo"], [1.0, 4.0, 0.01, 4.0], [1.0, 2.0, -1.0, -2.0]
  )
  np.testing.assert_allclose(slopes, [-1.0, -2.4, 0.01, 2.4], rtol=1e-5)
  log_probs = np.log([1.0, 4.0, 0.01, 4.0]) - 1.5
  np.testing.assert_allclose(losses, slopes * log_probs, rtol=1e-5)
