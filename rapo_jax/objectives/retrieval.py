"""What a retrieval was worth, and how much of a trajectory was retrieved."""

from __future__ import annotations

import operator
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from rapo_jax.objectives import checks, masked


def retrieval_quality(
  entropy_before: chex.Array,
  entropy_after: chex.Array,
  *,
  scale: chex.Numeric = 2.0,
  eps: chex.Numeric = 1e-6,
) -> jax.Array:
  """How far a retrieval lowered the policy's entropy, squashed to (-1, 1).

  `tanh(scale * dH)` with `dH = -(after - before) / (before + eps)`
  (Eq. 5-6). Positive where the policy is surer after the retrieval. `eps` is
  ours: it keeps a step of entropy 0 from dividing by 0.

  Args:
    entropy_before: entropy of the policy step before, nats, >= 0, any shape.
    entropy_after: entropy of the policy step after, nats, >= 0, same shape.
    scale: slope at dH = 0, above 0.
    eps: added to the denominator, nats, >= 0.

  Returns:
    Quality, in [-1, 1], same shape.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  before = checks.as_float(entropy_before)
  after = checks.as_float(entropy_after)
  checks.check_shape("entropy_after", after, before.shape, "`entropy_before`")
  checks.check_at_least("eps", eps, 0)
  # The square of the floor can still be inverted, which the gradient does.
  floor = jnp.sqrt(jnp.finfo(before.dtype).tiny)
  change = -(after - before) / jnp.maximum(before + eps, floor)
  return jnp.tanh(scale * change)


def retrieval_reward(
  step_entropies: chex.Array,
  retrieved: chex.Array,
  *,
  where: chex.Array,
  scale: chex.Numeric = 2.0,
  eps: chex.Numeric = 1e-6,
  worth: Callable[[jax.Array, jax.Array], jax.Array] = operator.mul,
) -> jax.Array:
  """Mean worth of a trajectory's retrievals, `Z_ret`.

  `Z = quality * H_before` (Eq. 7): a retrieval counts for more where the policy
  was unsure. The entropies before and after are those of the nearest policy
  steps on each side. So steps retrieved in a row share both. The mean leaves
  out a retrieval that lacks one of them: the first or the last step, or a
  trajectory that ended on it.

  Args:
    step_entropies: entropy of each step in order, nats, `[B, S]`. That of a
      retrieved step is ignored.
    retrieved: marks the steps that were inserted, bool `[B, S]`.
    where: steps that exist, bool `[B, S]`; False for padding and for a policy
      step that has no entropy.
    scale: see `retrieval_quality`.
    eps: see `retrieval_quality`.
    worth: Z of each retrieval, of its quality and the entropy before it,
      `[B, S]` both. By default their product (Eq. 7).

  Returns:
    Retrieval reward in nats, `[B]`; 0 for a trajectory without a retrieval
    that has policy steps on both sides.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  entropies = checks.as_float(step_entropies)
  checks.check_rank("step_entropies", entropies, "BS")
  shape, source = entropies.shape, "`step_entropies`"
  retrieved = checks.as_mask("retrieved", retrieved, shape, source)
  where = checks.as_mask("where", where, shape, source)
  num_steps = shape[1]
  written = where & ~retrieved
  entropies = masked.select(entropies, written)
  index = jnp.broadcast_to(jnp.arange(num_steps), shape)
  before = jax.lax.cummax(jnp.where(written, index, -1), axis=1)
  after = jax.lax.cummin(
    jnp.where(written, index, num_steps), axis=1, reverse=True
  )
  usable = where & retrieved & (before >= 0) & (after < num_steps)
  # The fill of 1 stands for any entropy that is safe to divide by.
  entropy_before, entropy_after = (
    masked.select(
      jnp.take_along_axis(entropies, jnp.where(usable, side, 0), axis=1),
      usable,
      fill=1.0,
    )
    for side in (before, after)
  )
  quality = retrieval_quality(
    entropy_before, entropy_after, scale=scale, eps=eps
  )
  return masked.masked_mean(worth(quality, entropy_before), usable, axis=1)


def retrieved_fraction(
  retrieved_tokens: chex.Array, *, where: chex.Array
) -> jax.Array:
  """Share of a trajectory's response that was retrieved, `F_ret` (Eq. 8).

  Args:
    retrieved_tokens: marks the retrieved tokens, bool `[B, T]`.
    where: all response tokens (policy, observation and retrieved), bool
      `[B, T]`; False for prompt and padding.

  Returns:
    Fraction in [0, 1], `[B]`; 0 for a trajectory without a response.

  Raises:
    ValueError: if the masks are not boolean or their shapes differ.
  """
  where = jnp.asarray(where)
  checks.check_rank("where", where, "BT")
  where = checks.as_mask("where", where, where.shape, "itself")
  retrieved_tokens = checks.as_mask(
    "retrieved_tokens", retrieved_tokens, where.shape, "`where`"
  )
  marks = retrieved_tokens.astype(jnp.result_type(float))
  return masked.masked_mean(marks, where, axis=1)
