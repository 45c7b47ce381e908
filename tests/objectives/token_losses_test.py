"""Losses of single tokens: gradients, extremes and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import objectives

CISPO = objectives.clipped_weight_loss
GPPO = objectives.gradient_preserving_loss


def _slopes(loss, log_probs, old, advantages, **settings):
  return jax.grad(lambda x: jnp.sum(loss(x, old, advantages, **settings)))(
    jnp.asarray(log_probs)
  )


@pytest.mark.parametrize("loss", [CISPO, GPPO])
def test_on_the_policy_that_sampled_it_is_reinforce(loss):
  log_probs = jnp.array([-0.1, -3.0])
  slopes = _slopes(loss, log_probs, log_probs, jnp.array([2.0, -1.0]))
  np.testing.assert_allclose(slopes, [-2.0, 1.0])


@pytest.mark.parametrize("loss", [CISPO, GPPO])
def test_old_log_probs_and_advantages_are_constants(loss):
  log_probs = jnp.array([-0.1, -3.0])
  gradients = jax.grad(
    lambda old, advantages: jnp.sum(loss(log_probs, old, advantages)),
    argnums=(0, 1),
  )(log_probs - 0.1, jnp.array([2.0, -1.0]))
  assert not np.any(gradients)


@pytest.mark.parametrize("gap", [-200.0, 200.0])
@pytest.mark.parametrize("loss", [CISPO, GPPO])
def test_extreme_ratios_stay_finite(loss, gap):
  log_probs = jnp.full(2, gap / 2)
  advantages = jnp.array([1.0, 0.0])
  slopes = _slopes(loss, log_probs, log_probs - gap, advantages)
  assert np.all(np.isfinite(slopes))
  assert slopes[1] == 0


def test_gradients_of_both_clipped_sides_are_kept():
  old = jnp.zeros(2)
  # Ratios e^9 and e^-200, which is 0 in float32.
  slopes = _slopes(GPPO, [9.0, -200.0], old, jnp.array([1.0, -1.0]))
  np.testing.assert_allclose(slopes, [-1.28, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"clip_epsilon_low": 1.5}, "`clip_epsilon_low` must be at most 1"),
    ({"clip_epsilon_high": -0.1}, "`clip_epsilon_high` must be at least 0"),
    ({"dual_clip": 0.5}, "`dual_clip` must be at least 1"),
    ({"low_scale": -1.0}, "`low_scale` must be at least 0"),
  ],
)
def test_settings_out_of_range(settings, message):
  with pytest.raises(ValueError, match=message):
    GPPO(jnp.ones(2), jnp.ones(2), jnp.ones(2), **settings)


@pytest.mark.parametrize("loss", [CISPO, GPPO])
def test_shapes_that_differ(loss):
  with pytest.raises(ValueError, match="`advantages` must have shape"):
    loss(jnp.ones(2), jnp.ones(2), jnp.ones((2, 1)))


def test_tokens_of_others_do_not_read_what_is_not_there():
  log_probs = jnp.log(jnp.array([0.3, 0.3]))
  off = jnp.array([True, False])

  def total(log_probs, old):
    return jnp.sum(
      objectives.mixed_policy_loss(log_probs, old, jnp.ones(2), off)
    )

  slopes, of_old = jax.grad(total, argnums=(0, 1))(
    log_probs, jnp.array([jnp.nan, log_probs[1]])
  )
  # 0.3 * 0.1 / 0.4², and PPO's.
  np.testing.assert_allclose(slopes, [-0.1875, -1.0], rtol=1e-5)
  assert not np.any(of_old)


def test_what_mixed_losses_refuse():
  ones = jnp.ones(2)
  with pytest.raises(ValueError, match="`off_policy` must be boolean"):
    objectives.mixed_policy_loss(ones, ones, ones, ones)
  with pytest.raises(ValueError, match="`gamma` must be > 0, got 0"):
    objectives.mixed_policy_loss(ones, ones, ones, ones > 0, gamma=0)


@pytest.mark.parametrize("gap", [-200.0, 200.0])
def test_replayed_extremes_stay_finite(gap):
  log_probs = jnp.full(2, -1.0)
  slopes = jax.grad(
    lambda x: jnp.sum(
      objectives.replay_loss(
        x, log_probs - gap, log_probs, jnp.array([1.0, 0.0])
      )
    )
  )(log_probs)
  assert np.all(np.isfinite(slopes))
