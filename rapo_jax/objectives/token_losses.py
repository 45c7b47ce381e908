"""Losses of single tokens that other methods than RAPO train with.

All of them take arrays of any shape, entry by entry. Only `log_probs` carries
gradient. Sums and weights over a minibatch are `loss_weights`.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rapo_jax.objectives import checks, losses, masked


def clipped_weight_loss(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  advantages: chex.Array,
  *,
  clip_epsilon_low: chex.Numeric = 1.0,
  clip_epsilon_high: chex.Numeric = 0.2,
) -> jax.Array:
  """CISPO's loss (MiniMax-M1, 2025): no token loses its gradient.

  `-sg(clip(r, 1 - low, 1 + high)) A log_probs`. The value says nothing, as it
  holds the log-probability; the gradient trains.

  Args:
    log_probs: log-probabilities under the current policy.
    old_log_probs: log-probabilities as sampled, same shape.
    advantages: same shape.
    clip_epsilon_low: least weight is 1 minus this; 1 for no least weight.
    clip_epsilon_high: greatest weight is 1 plus this, >= 0.

  Returns:
    Losses, same shape.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  losses.check_clips(clip_epsilon_low, clip_epsilon_high, None)
  log_probs = checks.as_float(log_probs)
  old_log_probs = _constant("old_log_probs", old_log_probs, log_probs)
  advantages = _constant("advantages", advantages, log_probs)
  ratio = jnp.exp(losses.cap_log_ratio(log_probs - old_log_probs))
  weight = jnp.clip(ratio, 1 - clip_epsilon_low, 1 + clip_epsilon_high)
  return -jax.lax.stop_gradient(weight) * advantages * log_probs


def gradient_preserving_loss(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  advantages: chex.Array,
  *,
  clip_epsilon_low: chex.Numeric = 0.2,
  clip_epsilon_high: chex.Numeric = 0.28,
  dual_clip: float | None = None,
  low_scale: chex.Numeric | None = 1.0,
  high_scale: chex.Numeric | None = 1.0,
) -> jax.Array:
  """GPPO's loss (Klear-Reasoner, 2025): PPO's value, with a gradient.

  Where PPO's clip cuts the gradient off, the token keeps that of a ratio at
  the border: `-(1 - low) A` or `-(1 + high) A` times that of `log_probs`.
  CE-GPPO (Su et al., 2025) scales the two, value and gradient.

  Args:
    log_probs: log-probabilities under the current policy.
    old_log_probs: log-probabilities as sampled, same shape.
    advantages: same shape.
    clip_epsilon_low: how far below 1 the ratio counts, in [0, 1].
    clip_epsilon_high: how far above 1 the ratio counts, >= 0.
    dual_clip: for A < 0 the loss is at most `-dual_clip * A`, without gradient
      there; at least 1, or None for no such bound.
    low_scale: of tokens below the range, >= 0; None for PPO's clip there.
    high_scale: of tokens above it, >= 0; None for PPO's clip there.

  Returns:
    Losses, same shape.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  losses.check_clips(clip_epsilon_low, clip_epsilon_high, dual_clip)
  for name, scale in (("low_scale", low_scale), ("high_scale", high_scale)):
    if scale is not None:
      checks.check_at_least(name, scale, 0)
  log_probs = checks.as_float(log_probs)
  old_log_probs = _constant("old_log_probs", old_log_probs, log_probs)
  advantages = _constant("advantages", advantages, log_probs)
  ratio = jnp.exp(losses.cap_log_ratio(log_probs - old_log_probs))
  # 1, with the gradient of the log-probability.
  one = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))
  below, above = 1 - clip_epsilon_low, 1 + clip_epsilon_high
  low = below if low_scale is None else low_scale * below * one
  high = above if high_scale is None else high_scale * above * one
  kept = jnp.where((ratio < below) & (advantages < 0), low, ratio)
  kept = jnp.where((ratio > above) & (advantages > 0), high, kept)
  return losses.dual_clipped(-kept * advantages, advantages, dual_clip)


def mixed_policy_loss(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  advantages: chex.Array,
  off_policy: chex.Array,
  *,
  gamma: chex.Numeric | None = 0.1,
  clip_epsilon_low: chex.Numeric = 0.2,
  clip_epsilon_high: chex.Numeric = 0.2,
  clip: bool = True,
) -> jax.Array:
  """LUFFY's loss (Yan et al., 2025): PPO's, and shaping for another agent.

  `-A f(p)` with `f(x) = x / (x + gamma)` for a token of another agent. Its
  ratio is the policy's probability `p`, as if the agent had been certain. The
  gradient is `-A p gamma / (p + gamma)^2`, greatest at `p = gamma`: unlikely
  tokens are learned too.

  Args:
    log_probs: log-probabilities under the current policy.
    old_log_probs: log-probabilities as sampled, same shape; not read where
      another agent wrote.
    advantages: same shape.
    off_policy: tokens of another agent, bool, same shape.
    gamma: of the shaping, above 0; None for `-A p`.
    clip_epsilon_low: how far below 1 the policy's ratio counts, in [0, 1].
    clip_epsilon_high: how far above 1 it counts, >= 0.
    clip: False for `-A r`, as in the authors' script.

  Returns:
    Losses, same shape.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  if gamma is not None:
    checks.check_above("gamma", gamma, 0)
  log_probs = checks.as_float(log_probs)
  old_log_probs = _constant("old_log_probs", old_log_probs, log_probs)
  advantages = _constant("advantages", advantages, log_probs)
  off_policy = checks.as_mask(
    "off_policy", off_policy, log_probs.shape, "`log_probs`"
  )
  gap = masked.select(log_probs - old_log_probs, ~off_policy)
  ratio = jnp.exp(losses.cap_log_ratio(gap))
  own = -advantages * ratio
  if clip:
    own = losses.clipped_loss(
      ratio,
      advantages,
      clip_epsilon_low=clip_epsilon_low,
      clip_epsilon_high=clip_epsilon_high,
    )
  probability = jnp.exp(masked.select(log_probs, off_policy))
  if gamma is not None:
    probability /= probability + gamma
  return jnp.where(off_policy, -advantages * probability, own)


def replay_loss(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  proximal_log_probs: chex.Array,
  advantages: chex.Array,
  *,
  clip_epsilon_low: chex.Numeric = 0.2,
  clip_epsilon_high: chex.Numeric = 0.2,
) -> jax.Array:
  """The loss of rollouts of earlier policies (Sun et al., 2025).

  `max(-A r, -A clip(r, q (1 - low), q (1 + high)))`: `r` is the ratio to the
  policy that sampled the token, `q` that of the policy before the update to
  the same. Where `q` is 1 this is PPO's.

  Args:
    log_probs: log-probabilities under the current policy.
    old_log_probs: log-probabilities as sampled, same shape.
    proximal_log_probs: log-probabilities before the update, same shape.
    advantages: same shape.
    clip_epsilon_low: how far below `q` the ratio counts, in [0, 1].
    clip_epsilon_high: how far above `q` it counts, >= 0.

  Returns:
    Losses, same shape.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  losses.check_clips(clip_epsilon_low, clip_epsilon_high, None)
  log_probs = checks.as_float(log_probs)
  old_log_probs = _constant("old_log_probs", old_log_probs, log_probs)
  proximal = _constant("proximal_log_probs", proximal_log_probs, log_probs)
  advantages = _constant("advantages", advantages, log_probs)
  ratio = jnp.exp(losses.cap_log_ratio(log_probs - old_log_probs))
  middle = jnp.exp(losses.cap_log_ratio(proximal - old_log_probs))
  clipped = losses.clipped_ratio(
    ratio, middle * (1 - clip_epsilon_low), middle * (1 + clip_epsilon_high)
  )
  return -jnp.minimum(ratio * advantages, clipped * advantages)


def _constant(name: str, value: chex.Array, log_probs: jax.Array) -> jax.Array:
  """`value` without gradient, required to have the shape of `log_probs`."""
  array = jax.lax.stop_gradient(checks.as_float(value))
  checks.check_shape(name, array, log_probs.shape, "`log_probs`")
  return array
