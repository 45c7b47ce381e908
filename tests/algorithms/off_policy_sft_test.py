"""Supervised learning of another agent's tokens, by hand."""

import dataclasses

import numpy as np

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, check_algorithm
from rapo_jax.algorithms.off_policy_sft import CHANGES, LOSS, advantages
from rapo_jax.trajectory import Source
from tests.algorithms import signals
from tests.algorithms.losses import tokens

ALGORITHM = dataclasses.replace(
  ALGORITHMS["grpo"], advantages=advantages, loss=LOSS, changes=CHANGES
)


def test_it_is_an_algorithm():
  check_algorithm(ALGORITHM, ObjectiveConfig())


def test_the_agents_tokens_alone_are_learned():
  made = signals.make(
    [0.0, 1.0, 1.0], [0, 0, -1], sources=[Source.AGENT, 0, Source.AGENT]
  )
  np.testing.assert_array_equal(
    advantages(made, ObjectiveConfig()), [1.0, 0.0, 0.0]
  )
  values, slopes = tokens(ALGORITHM, np.exp([0.5, 0.5]), [1.0, 0.0])
  np.testing.assert_allclose(values, [1.0, 0.0], rtol=1e-5)
  np.testing.assert_allclose(slopes, [-1.0, 0.0])
