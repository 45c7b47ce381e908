"""GPPO's loss by hand."""

import dataclasses

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, TokenLoss
from tests.algorithms.losses import tokens

GPPO = ALGORITHMS["gppo"]
# In the range; clipped above and below; not clipped on either side; beyond
# the dual clip.
RATIOS = [1.0, 2.0, 0.5, 2.0, 0.5, 20.0]
ADVANTAGES = [1.0, 1.0, -1.0, -1.0, 1.0, -1.0]
VALUES = [-1.0, -1.28, 0.8, 2.0, -0.5, 10.0]


@pytest.mark.parametrize(
  ("low", "high", "values", "slopes"),
  [
    (1.0, 1.0, VALUES, [-1.0, -1.28, 0.8, 2.0, -0.5, 0.0]),
    # The upper side alone keeps its gradient.
    (None, 1.0, VALUES, [-1.0, -1.28, 0.0, 2.0, -0.5, 0.0]),
    # Neither: PPO's.
    (None, None, VALUES, [-1.0, 0.0, 0.0, 2.0, -0.5, 0.0]),
    # Scales are of value and gradient.
    (
      0.25,
      0.5,
      [-1.0, -0.64, 0.2, 2.0, -0.5, 10.0],
      [-1.0, -0.64, 0.2, 2.0, -0.5, 0.0],
    ),
  ],
)
def test_clipped_tokens_keep_a_gradient(low, high, values, slopes):
  loss = TokenLoss(
    dataclasses.replace(GPPO.loss.function, low_scale=low, high_scale=high)
  )
  algorithm = dataclasses.replace(GPPO, loss=loss)
  actual = tokens(algorithm, RATIOS, ADVANTAGES)
  np.testing.assert_allclose(actual, (values, slopes), rtol=1e-5)
