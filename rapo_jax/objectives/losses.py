"""RAPO's clipped policy loss and the pieces that it is made of."""

from __future__ import annotations

import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from rapo_jax.objectives import checks, masked

Aggregation = Literal["sequence", "token", "constant"]
Estimator = Literal["k1", "k2", "k3"]

_MAX_SEGMENT_LOG_RATIO = 10.0


def importance_ratio(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  *,
  where: chex.Array | None = None,
) -> jax.Array:
  """Probability of each token now, over that when it was sampled.

  `r = exp(log_probs - old_log_probs)`. The log-ratio is capped at half of what
  `exp` can hold (44 in float32). So the products that follow stay finite;
  beyond the cap the gradient is 0.

  Args:
    log_probs: log-probabilities under the current policy, `[B, T]`.
    old_log_probs: log-probabilities as sampled, `[B, T]`.
    where: tokens to compute, bool `[B, T]`; None for all.

  Returns:
    Ratios, > 0, `[B, T]`; 0 where masked.

  Raises:
    ValueError: if the shapes differ.
  """
  log_probs, old_log_probs, where = _as_log_probs(
    log_probs, old_log_probs, where
  )
  log_ratio = cap_log_ratio(log_probs - old_log_probs)
  return masked.select(jnp.exp(log_ratio), where)


def importance_shaping(
  ratio: chex.Array,
  retrieved_fraction: chex.Array,
  *,
  shaping_coef: chex.Numeric = 0.05,
) -> jax.Array:
  """Ratios, raised for trajectories that retrieved much.

  `(1 + m * F_ret) * r` (Eq. 8). A fraction of 0 gives back the ratio bit for
  bit, whatever the coefficient.

  Args:
    ratio: importance ratios, `[B, T]`.
    retrieved_fraction: share of retrieved tokens, in [0, 1], `[B]`.
    shaping_coef: `m`, >= 0; 0 leaves the ratio as it is.

  Returns:
    Shaped ratios, `[B, T]`.

  Raises:
    ValueError: on a wrong rank, or if the number of trajectories differs.
  """
  ratio = checks.as_float(ratio)
  checks.check_rank("ratio", ratio, "BT")
  fraction = checks.as_float(retrieved_fraction)
  checks.check_shape(
    "retrieved_fraction", fraction, ratio.shape[:1], "`ratio[:, 0]`"
  )
  return (1 + shaping_coef * fraction)[:, None] * ratio


def kl_estimate(
  log_probs: chex.Array,
  reference_log_probs: chex.Array,
  *,
  estimator: Estimator = "k3",
  limit: float | None = None,
) -> jax.Array:
  """Estimate of KL(policy || reference) at each token the policy sampled.

  With `d = reference_log_probs - log_probs` (Schulman, "Approximating KL
  divergence", 2020): k1 is `-d`, unbiased and noisy; k2 is `d^2 / 2`, biased
  and steady; k3 is `exp(d) - 1 - d`, unbiased, steady and never negative. In
  k3 `d` is capped as the log-ratio in `importance_ratio` is.

  Args:
    log_probs: log-probabilities under the policy, any shape.
    reference_log_probs: log-probabilities under the reference, same shape.
    estimator: "k1", "k2" or "k3".
    limit: a k3 estimate above it counts as it, without gradient; above 0, in
      nats, or None for no limit. verl's is 10.

  Returns:
    Estimates in nats, same shape.

  Raises:
    ValueError: if the shapes differ or the estimator is unknown.
  """
  log_probs = checks.as_float(log_probs)
  reference_log_probs = checks.as_float(reference_log_probs)
  checks.check_shape(
    "reference_log_probs", reference_log_probs, log_probs.shape, "`log_probs`"
  )
  difference = reference_log_probs - log_probs
  match estimator:
    case "k1":
      return -difference
    case "k2":
      return jnp.square(difference) / 2
    case "k3":
      difference = cap_log_ratio(difference)
      # expm1 keeps the small values that exp(d) - 1 would round away.
      estimate = jnp.expm1(difference) - difference
      return estimate if limit is None else jnp.minimum(estimate, limit)
    case _:
      raise ValueError(
        f"`estimator` must be 'k1', 'k2' or 'k3', got {estimator!r}; 'k3' "
        "is the usual choice"
      )


def clipped_loss(
  ratio: chex.Array,
  advantages: chex.Array,
  *,
  clip_epsilon_low: chex.Numeric = 0.2,
  clip_epsilon_high: chex.Numeric = 0.28,
  dual_clip: float | None = None,
) -> jax.Array:
  """PPO's clipped loss of each entry (Schulman et al., 2017, Eq. 7).

  `-min(r A, clip(r, 1 - low, 1 + high) A)`. With a dual clip `c` (Ye et al.,
  2020) the loss of a negative advantage is at most `-c A`.

  Args:
    ratio: importance ratios, any shape.
    advantages: constants to the gradient, same shape.
    clip_epsilon_low: how far below 1 the ratio counts, in [0, 1].
    clip_epsilon_high: how far above 1 the ratio counts, >= 0.
    dual_clip: at least 1, or None for no such bound.

  Returns:
    Losses, same shape.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  check_clips(clip_epsilon_low, clip_epsilon_high, dual_clip)
  ratio = checks.as_float(ratio)
  advantages = jax.lax.stop_gradient(checks.as_float(advantages))
  clipped = clipped_ratio(ratio, 1 - clip_epsilon_low, 1 + clip_epsilon_high)
  loss = -jnp.minimum(ratio * advantages, clipped * advantages)
  return dual_clipped(loss, advantages, dual_clip)


def clipped_ratio(
  ratio: jax.Array, low: chex.Numeric, high: chex.Numeric
) -> jax.Array:
  """The ratio, at least `low` and at most `high`.

  Its gradient is 1 at the bounds, too, as PyTorch's; `jnp.clip` has half. With
  an epsilon of 0 each ratio of a first minibatch lies there.
  """
  inside = (ratio >= low) & (ratio <= high)
  bounded = jnp.clip(jax.lax.stop_gradient(ratio), low, high)
  return jnp.where(inside, ratio, bounded)


def dual_clipped(
  loss: jax.Array, advantages: jax.Array, dual_clip: float | None
) -> jax.Array:
  """The loss, at most `-dual_clip * A` where A < 0; None bounds nothing."""
  if dual_clip is None:
    return loss
  bound = jnp.minimum(loss, -dual_clip * advantages)
  return jnp.where(advantages < 0, bound, loss)


def segment_log_ratio(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  segment_ids: chex.Array,
  *,
  where: chex.Array,
) -> jax.Array:
  """Mean log-ratio of the segment that each token belongs to.

  `mean_t(log_probs - old_log_probs)` over the segment's tokens in `where`:
  the logarithm of GSPO's sequence ratio (Zheng et al., 2025, Eq. 7) where a
  segment is a trajectory. It has no gradient.

  Args:
    log_probs: log-probabilities under the current policy, `[B, T]`.
    old_log_probs: log-probabilities as sampled, `[B, T]`.
    segment_ids: segment of each token, int `[B, T]`, in [0, T); a row's
      segments are its own.
    where: tokens to average, bool `[B, T]`.

  Returns:
    Mean log-ratios, `[B, T]`; 0 where masked.

  Raises:
    ValueError: if the shapes differ.
  """
  log_probs, old_log_probs, where = _as_log_probs(
    log_probs, old_log_probs, where
  )
  ids = checks.as_ids(
    "segment_ids", segment_ids, log_probs.shape, "`log_probs`"
  )
  gap = jax.lax.stop_gradient(log_probs - old_log_probs)

  def row(gap: jax.Array, ids: jax.Array, where: jax.Array) -> jax.Array:
    mean = masked.segment_mean(gap, ids, where, gap.shape[0])
    return masked.take_segment(mean, ids, where)

  return jax.vmap(row)(gap, ids, where)


def segment_ratio(
  log_probs: chex.Array, mean_log_ratio: chex.Array
) -> jax.Array:
  """Ratio of a segment, with a gradient by each of its tokens.

  `exp(log_probs - sg(log_probs) + sg(mean_log_ratio))`, with the exponent
  capped at 10 (GSPO-token: Zheng et al., 2025, Eq. 14; the cap is verl's).
  Its value is the segment's, its gradient the token's.

  Args:
    log_probs: log-probabilities under the current policy, any shape.
    mean_log_ratio: `segment_log_ratio`, same shape.

  Returns:
    Ratios, > 0, same shape.

  Raises:
    ValueError: if the shapes differ.
  """
  log_probs = checks.as_float(log_probs)
  mean = jax.lax.stop_gradient(checks.as_float(mean_log_ratio))
  checks.check_shape("mean_log_ratio", mean, log_probs.shape, "`log_probs`")
  log_ratio = log_probs - jax.lax.stop_gradient(log_probs) + mean
  return jnp.exp(jnp.minimum(log_ratio, _MAX_SEGMENT_LOG_RATIO))


def rapo_token_loss(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  advantages: chex.Array,
  retrieved_fraction: chex.Array,
  *,
  where: chex.Array,
  clip_epsilon_low: chex.Numeric = 0.2,
  clip_epsilon_high: chex.Numeric = 0.28,
  dual_clip: float | None = None,
  shaping_coef: chex.Numeric = 0.05,
  kl_coef: chex.Numeric = 0.0,
  reference_log_probs: chex.Array | None = None,
) -> jax.Array:
  """RAPO's loss of each token: the term of Eq. 11, negated.

  `-min(r' A, clip(r', 1 - low, 1 + high) A) + kl_coef * KL`, where `r'` is
  the shaped ratio of Eq. 8. Only `log_probs` carries gradient. The dual clip
  (Ye et al., 2020) is the authors' code's, not the paper's: without it a
  token of negative advantage and large ratio has an unbounded loss.

  Args:
    log_probs: log-probabilities under the current policy, `[B, T]`.
    old_log_probs: log-probabilities as sampled, `[B, T]`.
    advantages: one for each trajectory, `[B]`, or each token, `[B, T]`.
    retrieved_fraction: share of retrieved tokens, in [0, 1], `[B]`.
    where: the policy's own tokens, bool `[B, T]`.
    clip_epsilon_low: how far below 1 the ratio counts, in [0, 1].
    clip_epsilon_high: how far above 1 the ratio counts, >= 0.
    dual_clip: for A < 0 the clipped loss is at most `-dual_clip * A`; at
      least 1, or None for no such bound.
    shaping_coef: `m` of Eq. 8, >= 0.
    kl_coef: weight of the k3 estimate of KL(policy || reference), >= 0.
    reference_log_probs: log-probabilities under the reference policy,
      `[B, T]`; needed unless `kl_coef` is 0.

  Returns:
    Loss of each token, `[B, T]`; 0 where masked.

  Raises:
    ValueError: on a wrong shape, a number out of its range, or a `kl_coef`
      without a reference.
  """
  _check_knobs(
    clip_epsilon_low, clip_epsilon_high, dual_clip, kl_coef, reference_log_probs
  )
  log_probs, old_log_probs, where = _as_log_probs(
    log_probs, jax.lax.stop_gradient(old_log_probs), where
  )
  advantages = token_advantages(advantages, where)
  shaped = importance_shaping(
    importance_ratio(log_probs, old_log_probs, where=where),
    row_fractions(retrieved_fraction, where),
    shaping_coef=shaping_coef,
  )
  loss = clipped_loss(
    shaped,
    advantages,
    clip_epsilon_low=clip_epsilon_low,
    clip_epsilon_high=clip_epsilon_high,
    dual_clip=dual_clip,
  )
  if reference_log_probs is not None:
    _, reference_log_probs, _ = _as_log_probs(
      log_probs,
      jax.lax.stop_gradient(reference_log_probs),
      where,
      name="reference_log_probs",
    )
    loss += kl_coef * kl_estimate(log_probs, reference_log_probs)
  return masked.select(loss, where)


def rapo_loss(
  log_probs: chex.Array,
  old_log_probs: chex.Array,
  advantages: chex.Array,
  retrieved_fraction: chex.Array,
  *,
  where: chex.Array,
  clip_epsilon_low: chex.Numeric = 0.2,
  clip_epsilon_high: chex.Numeric = 0.28,
  dual_clip: float | None = None,
  shaping_coef: chex.Numeric = 0.05,
  kl_coef: chex.Numeric = 0.0,
  reference_log_probs: chex.Array | None = None,
  aggregation: Aggregation = "sequence",
  constant: float | None = None,
) -> jax.Array:
  """RAPO's loss of a minibatch: Eq. 11, negated.

  With `shaping_coef` 0, or no retrieved tokens, and advantages of the outcome
  alone, this is GRPO's loss bit for bit. To accumulate over micro-batches, sum
  `loss_weights * rapo_token_loss` instead: a mean of means is not the mean.

  Args:
    log_probs: see `rapo_token_loss`; so are all but the last.
    old_log_probs: `[B, T]`.
    advantages: `[B]` or `[B, T]`.
    retrieved_fraction: `[B]`.
    where: bool `[B, T]`.
    clip_epsilon_low: in [0, 1].
    clip_epsilon_high: >= 0.
    dual_clip: at least 1, or None.
    shaping_coef: >= 0.
    kl_coef: >= 0.
    reference_log_probs: `[B, T]` or None.
    aggregation: "sequence" for the mean over trajectories of each one's mean
      over tokens (the paper); "token" for the mean over all tokens (the
      authors' code); "constant" for the mean over trajectories of each one's
      sum over tokens, divided by `constant` (Dr. GRPO: Liu et al., 2025). A
      trajectory without tokens counts 0 in "sequence" and "constant".
    constant: tokens, above 0; needed by "constant" and by nothing else.

  Returns:
    The loss, a scalar; 0 if nothing is in the mask.

  Raises:
    ValueError: as `rapo_token_loss`, and on an unknown aggregation.
  """
  _check_aggregation(aggregation, constant)
  loss = rapo_token_loss(
    log_probs,
    old_log_probs,
    advantages,
    retrieved_fraction,
    where=where,
    clip_epsilon_low=clip_epsilon_low,
    clip_epsilon_high=clip_epsilon_high,
    dual_clip=dual_clip,
    shaping_coef=shaping_coef,
    kl_coef=kl_coef,
    reference_log_probs=reference_log_probs,
  )
  if aggregation == "token":
    return masked.masked_mean(loss, where)
  # `jnp.mean` of no rows is NaN.
  rows = max(len(where), 1)
  if constant is not None:
    return jnp.sum(masked.masked_sum(loss, where, axis=1)) / (rows * constant)
  return jnp.sum(masked.masked_mean(loss, where, axis=1)) / rows


def loss_weights(
  where: chex.Array,
  *,
  aggregation: Aggregation = "sequence",
  constant: float | None = None,
) -> jax.Array:
  """Weight of each token, so that `rapo_loss = sum(weights * token losses)`.

  Computed once over the whole minibatch, the weights make any split into
  micro-batches exact: losses and gradients add up to those of the whole.

  Args:
    where: the policy's own tokens of the whole minibatch, bool `[B, T]`.
    aggregation: as for `rapo_loss`.
    constant: as for `rapo_loss`.

  Returns:
    Weights, `[B, T]`; 0 where masked. They sum to 1, less the share of
    trajectories without tokens in "sequence"; in "constant" to the mean
    number of tokens over the constant.

  Raises:
    ValueError: if the mask is no boolean matrix or the aggregation unknown.
  """
  _check_aggregation(aggregation, constant)
  where = jnp.asarray(where)
  checks.check_rank("where", where, "BT")
  where = checks.as_mask("where", where, where.shape, "itself")
  dtype = jnp.result_type(float)
  if aggregation == "token":
    total = masked.masked_count(where, dtype=dtype)
  elif constant is not None:
    total = jnp.asarray(constant * len(where), dtype)
    return masked.select(1 / total, where)
  else:
    total = masked.masked_count(where, 1, dtype=dtype)[:, None] * len(where)
  return masked.select(1 / jnp.maximum(total, 1), where)


def cap_log_ratio(log_ratio: jax.Array) -> jax.Array:
  """Caps a log-ratio so that its exponential can still be multiplied.

  Without it one token of finite log-ratio 100 makes inf. And inf times an
  advantage of 0 (a group of equal rewards) makes the whole update NaN.
  """
  largest = float(jnp.finfo(log_ratio.dtype).max)
  return jnp.minimum(log_ratio, math.log(largest) / 2)


def _as_log_probs(
  log_probs: chex.Array,
  other: chex.Array,
  where: chex.Array | None,
  *,
  name: str = "old_log_probs",
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Checks two arrays of log-probabilities and sets masked entries to 0."""
  log_probs = checks.as_float(log_probs)
  other = checks.as_float(other)
  checks.check_rank("log_probs", log_probs, "BT")
  shape = log_probs.shape
  checks.check_shape(name, other, shape, "`log_probs`")
  if where is None:
    where = jnp.ones(shape, bool)
  where = checks.as_mask("where", where, shape, "`log_probs`")
  return masked.select(log_probs, where), masked.select(other, where), where


def token_advantages(advantages: chex.Array, where: jax.Array) -> jax.Array:
  """Advantages by token, without gradient and 0 where masked."""
  advantages = jax.lax.stop_gradient(checks.as_float(advantages))
  if advantages.ndim == 1:
    checks.check_shape(
      "advantages", advantages, where.shape[:1], "`log_probs[:, 0]`"
    )
    advantages = advantages[:, None]
  else:
    checks.check_shape("advantages", advantages, where.shape, "`log_probs`")
  return masked.select(advantages, where)


def row_fractions(fraction: chex.Array, where: jax.Array) -> jax.Array:
  """Retrieved fractions without gradient, 0 for a row without tokens."""
  fraction = jax.lax.stop_gradient(checks.as_float(fraction))
  checks.check_shape(
    "retrieved_fraction", fraction, where.shape[:1], "`log_probs[:, 0]`"
  )
  return masked.select(fraction, jnp.any(where, axis=1))


def _check_knobs(
  clip_epsilon_low: chex.Numeric,
  clip_epsilon_high: chex.Numeric,
  dual_clip: float | None,
  kl_coef: chex.Numeric,
  reference_log_probs: chex.Array | None,
) -> None:
  check_clips(clip_epsilon_low, clip_epsilon_high, dual_clip)
  needs_reference = not (checks.is_static(kl_coef) and kl_coef == 0)
  if needs_reference and reference_log_probs is None:
    raise ValueError(
      f"`kl_coef` = {kl_coef} needs `reference_log_probs`, got None; pass the "
      "reference policy's log-probabilities or set kl_coef=0.0"
    )


def check_clips(
  clip_epsilon_low: chex.Numeric,
  clip_epsilon_high: chex.Numeric,
  dual_clip: float | None,
) -> None:
  checks.check_at_least("clip_epsilon_low", clip_epsilon_low, 0)
  checks.check_at_least("clip_epsilon_high", clip_epsilon_high, 0)
  if checks.is_static(clip_epsilon_low) and clip_epsilon_low > 1:
    raise ValueError(
      f"`clip_epsilon_low` must be at most 1, got {clip_epsilon_low}; a ratio "
      "is never below 0, so use 1 to leave the low side unclipped"
    )
  if dual_clip is not None:
    # Below 1 the bound would also hold where the ratio is 1.
    checks.check_at_least("dual_clip", dual_clip, 1)


def _check_aggregation(aggregation: str, constant: float | None) -> None:
  if aggregation not in ("sequence", "token", "constant"):
    raise ValueError(
      "`aggregation` must be 'sequence' (the paper), 'token' (the authors' "
      f"code) or 'constant' (Dr. GRPO), got {aggregation!r}; use 'sequence' "
      "unless you compare with that code"
    )
  if (aggregation == "constant") != (constant is not None):
    raise ValueError(
      "`constant` belongs to aggregation='constant' and to no other, got "
      f"{constant!r} with {aggregation!r}; set both or neither"
    )
  if constant is not None and not constant > 0:
    raise ValueError(
      f"`constant` must be above 0 tokens, got {constant}; give the longest "
      "response, say"
    )
