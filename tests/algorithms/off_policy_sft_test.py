"""Supervised learning of another agent's tokens, by hand."""

import numpy as np

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.trajectory import Source
from tests.algorithms import signals
from tests.algorithms.losses import tokens

ALGORITHM = ALGORITHMS["sft"]


def test_the_agents_tokens_alone_are_learned():
  made = signals.make(
    [0.0, 1.0, 1.0], [0, 0, -1], sources=[Source.AGENT, 0, Source.AGENT]
  )
  np.testing.assert_array_equal(
    ALGORITHM.advantages(made, ObjectiveConfig()), [1.0, 0.0, 0.0]
  )
  values, slopes = tokens(ALGORITHM, np.exp([0.5, 0.5]), [1.0, 0.0])
  np.testing.assert_allclose(values, [1.0, 0.0], rtol=1e-5)
  np.testing.assert_allclose(slopes, [-1.0, 0.0])
