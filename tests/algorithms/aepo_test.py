"""AEPO's advantages and loss by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.algorithms.aepo import BalancedAdvantages
from rapo_jax.trajectory import TokenKind
from tests.algorithms import signals
from tests.algorithms.losses import tokens


def _advantages(entropies, rewards=(3.0, 1.0)):
  made = signals.make(rewards, [0, 0], tokens=2)
  made = dataclasses.replace(
    made,
    kinds=jnp.asarray([[1, 1], [1, TokenKind.OBSERVATION]]),
    entropies=jnp.asarray(entropies),
  )
  settings = ObjectiveConfig(advantage_std=False)
  return np.asarray(BalancedAdvantages(weight=0.5)(made, settings))


def test_unsure_tokens_count_more():
  # Entropies 0, 1 and 2: mean 1, deviation 1. That of an observation is none.
  actual = _advantages([[0.0, 1.0], [2.0, 50.0]])
  np.testing.assert_allclose(actual, [[0.5, 1.0], [-1.5, 0.0]], rtol=1e-6)


def test_no_sign_flips_where_the_policy_was_sure():
  made = signals.make((1.0, 0.0), [0, 0], tokens=40)
  entropies = np.full((2, 40), 5.0)
  entropies[0, 0] = 0.0
  made = dataclasses.replace(
    made,
    kinds=jnp.full((2, 40), TokenKind.POLICY),
    entropies=jnp.asarray(entropies),
  )
  right, wrong = np.asarray(BalancedAdvantages()(made, ObjectiveConfig()))
  assert np.all(right > 0)
  assert np.all(wrong < 0)
  as_written = BalancedAdvantages(min_factor=None)(made, ObjectiveConfig())
  assert as_written[0, 0] < 0


def test_equal_entropies_change_nothing():
  actual = _advantages([[0.4, 0.4], [0.4, 50.0]])
  np.testing.assert_array_equal(actual, [[1.0, 1.0], [-1.0, 0.0]])


def test_tokens_above_the_range_alone_keep_a_gradient():
  algorithm = ALGORITHMS["aepo"]
  values, slopes = tokens(
    algorithm, [2.0, 0.5, 4.0, 1.0], [1.0, -1.0, -1.0, 1.0]
  )
  np.testing.assert_allclose(values, [-1.2, 0.8, 3.0, -1.0], rtol=1e-5)
  np.testing.assert_allclose(slopes, [-1.2, 0.0, 0.0, -1.0], rtol=1e-5)
