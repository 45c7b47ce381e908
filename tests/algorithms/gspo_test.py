"""GSPO's loss by hand, and through the update."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import objectives
from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig

GSPO = ALGORITHMS["gspo"]


def test_the_ratio_is_the_geometric_mean_over_the_trajectory():
  # Ratios 2 and 8 of one trajectory: 4 for both tokens; the masked is left out.
  log_probs = jnp.log(jnp.asarray([[0.2, 0.8, 0.3]]))
  old = jnp.log(jnp.asarray([[0.1, 0.1, 0.9]]))
  where = jnp.asarray([[True, True, False]])
  mean = objectives.segment_log_ratio(
    log_probs, old, jnp.zeros((1, 3), jnp.int32), where=where
  )
  np.testing.assert_allclose(mean, [[math.log(4)] * 2 + [0]], rtol=1e-5)


@pytest.mark.parametrize(
  ("ratio", "advantage", "loss", "gradient"),
  [
    (1.0, 2.0, -2.0, -2.0),
    # Above 1 + 4e-4 and below 1 - 3e-4 the clip stops the gradient.
    (1.1, 2.0, -2.0 * 1.0004, 0.0),
    (0.9, -2.0, 2.0 * 0.9997, 0.0),
    (0.9, 2.0, -1.8, -1.8),
  ],
)
def test_a_token_by_hand(ratio, advantage, loss, gradient):
  settings = GSPO.settings(ObjectiveConfig())
  columns = {
    "advantages": jnp.asarray([advantage]),
    "segment_log_ratio": jnp.log(jnp.asarray([ratio])),
  }

  def total(log_probs):
    return jnp.sum(GSPO.loss.function(log_probs, columns, settings))

  value, slope = jax.value_and_grad(total)(jnp.asarray([-1.3]))
  np.testing.assert_allclose(value, loss, rtol=1e-5)
  np.testing.assert_allclose(slope, [gradient], rtol=1e-5)
