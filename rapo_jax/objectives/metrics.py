"""Numbers that a training loop watches beside the loss."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rapo_jax.objectives import checks, losses, masked


def rapo_metrics(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  advantages: chex.Array,
  retrieved_fraction: chex.Array,
  rewards: chex.Array,
  group_ids: chex.Array,
  *,
  where: chex.Array,
  num_groups: int,
  clip_epsilon_low: chex.Numeric = 0.2,
  clip_epsilon_high: chex.Numeric = 0.28,
  shaping_coef: chex.Numeric = 0.05,
) -> dict[str, jax.Array]:
  """Health of an update, as scalars without gradient.

  Call it on a whole minibatch, with the values that the loss got: the means
  of micro-batches do not average to those of the whole.

  Args:
    log_probs: log-probabilities under the current policy, `[B, T]`.
    old_log_probs: log-probabilities as sampled, `[B, T]`.
    advantages: `[B]` or `[B, T]`.
    retrieved_fraction: share of retrieved tokens, in [0, 1], `[B]`.
    rewards: outcome rewards, `[B]`.
    group_ids: group of each trajectory, int `[B]`; a row whose id is outside
      of [0, `num_groups`) belongs to none.
    where: the policy's own tokens, bool `[B, T]`.
    num_groups: number of groups; static.
    clip_epsilon_low: as for the loss.
    clip_epsilon_high: as for the loss.
    shaping_coef: as for the loss.

  Returns:
    Scalars, each 0 where there is nothing to measure. "Tokens" are those in
    `where`, "trajectories" those with such a token.
      clip_fraction_low: share of tokens whose gradient the lower clip stops
        (shaped ratio below 1 - low, A < 0).
      clip_fraction_high: share of tokens whose gradient the upper clip stops
        (shaped ratio above 1 + high, A > 0).
      approx_kl: mean k3 estimate of KL(old policy || policy), nats.
      ratio_mean, ratio_max: over tokens, of the unshaped ratio.
      retrieved_fraction: mean over trajectories.
      advantage_std: over trajectories, or over tokens for `[B, T]`; ddof 0.
      equal_reward_group_fraction: share of the groups with a trajectory in
        which all rewards are equal, and nothing is learned.

  Raises:
    ValueError: on shapes that differ or a `num_groups` that is not static.
  """
  log_probs, old_log_probs, advantages, retrieved_fraction, rewards = (
    jax.lax.stop_gradient(checks.as_float(array))
    for array in (
      log_probs,
      old_log_probs,
      advantages,
      retrieved_fraction,
      rewards,
    )
  )
  ratio = losses.importance_ratio(log_probs, old_log_probs, where=where)
  where = checks.as_mask("where", where, ratio.shape, "`log_probs`")
  has_tokens = jnp.any(where, axis=1)
  fractions = losses.row_fractions(retrieved_fraction, where)
  shaped = losses.importance_shaping(
    ratio, fractions, shaping_coef=shaping_coef
  )
  by_token = losses.token_advantages(advantages, where)
  low = (shaped < 1 - clip_epsilon_low) & (by_token < 0)
  high = (shaped > 1 + clip_epsilon_high) & (by_token > 0)
  # Masked entries are set to 0 here, for they may be NaN - NaN.
  kl = losses.kl_estimate(
    masked.select(old_log_probs, where), masked.select(log_probs, where)
  )
  return {
    "clip_fraction_low": masked.masked_mean(low.astype(ratio.dtype), where),
    "clip_fraction_high": masked.masked_mean(high.astype(ratio.dtype), where),
    "approx_kl": masked.masked_mean(kl, where),
    "ratio_mean": masked.masked_mean(ratio, where),
    "ratio_max": masked.masked_max(ratio, where),
    "retrieved_fraction": masked.masked_mean(fractions, has_tokens),
    "advantage_std": masked.masked_std(
      advantages, has_tokens if advantages.ndim == 1 else where
    ),
    "equal_reward_group_fraction": _equal_reward_group_fraction(
      rewards, group_ids, num_groups
    ),
  }


def _equal_reward_group_fraction(
  rewards: jax.Array, group_ids: chex.Array, num_groups: int
) -> jax.Array:
  checks.check_rank("rewards", rewards, "B")
  group_ids = checks.as_ids("group_ids", group_ids, rewards.shape, "`rewards`")
  checks.check_count("num_groups", num_groups)
  where = (group_ids >= 0) & (group_ids < num_groups)
  equal = masked.segment_is_constant(rewards, group_ids, where, num_groups)
  present = (
    masked.segment_count(group_ids, where, num_groups, dtype=rewards.dtype) > 0
  )
  return masked.masked_mean(equal.astype(rewards.dtype), present)
