"""Entropy of the policy's distributions, by token and by step."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from rapo_jax.objectives import checks, masked


def token_entropy(
  logits: chex.Array, *, where: chex.Array | None = None
) -> jax.Array:
  """Entropy of the categorical distribution that the logits define.

  `H = -sum_v p_v log p_v` over the full vocabulary (Eq. 2). Divide the logits
  by the sampling temperature first. The entropy is then that of the
  distribution the token was sampled from.

  Args:
    logits: unnormalised log-probabilities, `[..., V]`. An entry of -inf is a
      token that cannot be sampled; it adds nothing.
    where: positions to compute, bool `[...]`; None for all.

  Returns:
    Entropy in nats, in [0, log V], `[...]`; 0 where masked.

  Raises:
    ValueError: on a scalar, an empty vocabulary, or a mask that does not fit.
  """
  logits = checks.as_float(logits)
  if logits.ndim < 1 or logits.shape[-1] < 1:
    raise ValueError(
      "`logits` must have shape [..., V] with V >= 1, got "
      f"{logits.shape}; put the vocabulary on the last axis"
    )
  if where is None:
    where = jnp.ones(logits.shape[:-1], bool)
  where = checks.as_mask("where", where, logits.shape[:-1], "`logits[..., 0]`")
  log_p = jax.nn.log_softmax(masked.select(logits, where[..., None]))
  # p log p tends to 0 with p; computed it would be 0 * -inf.
  log_p = masked.select(log_p, log_p != -jnp.inf)
  return masked.select(-jnp.sum(jnp.exp(log_p) * log_p, axis=-1), where)


def step_entropy(
  token_entropies: chex.Array,
  step_ids: chex.Array,
  *,
  num_steps: int,
  where: chex.Array,
) -> jax.Array:
  """Mean token entropy of each step.

  A step's policy tokens alone say how unsure the policy was, so observation
  and retrieved tokens belong outside of `where`.

  Args:
    token_entropies: entropies in nats, `[B, T]`.
    step_ids: step of each token, int `[B, T]`. Ids outside of
      [0, `num_steps`), such as -1 for a prompt, are left out.
    num_steps: number of steps `S` of the result; static.
    where: tokens to average, bool `[B, T]`.

  Returns:
    Step entropies in nats, `[B, S]`; 0 for a step without any such token.

  Raises:
    ValueError: on shapes that differ, or a `num_steps` that is not static.
  """
  token_entropies = checks.as_float(token_entropies)
  checks.check_rank("token_entropies", token_entropies, "BT")
  checks.check_count("num_steps", num_steps)
  shape = token_entropies.shape
  step_ids = checks.as_ids("step_ids", step_ids, shape, "`token_entropies`")
  where = checks.as_mask("where", where, shape, "`token_entropies`")
  row_mean = functools.partial(masked.segment_mean, num_segments=num_steps)
  return jax.vmap(row_mean)(token_entropies, step_ids, where)
