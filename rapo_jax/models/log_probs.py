"""Log-probabilities of given tokens, without an array of all logits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rapo_jax.models import attention
from rapo_jax.models.decoder import Decoder, Remat
from rapo_jax.models.sharding import constrain

HEAD_CHUNK = 512
"""Tokens of a batch shard whose logits are alive at the same time.

Enough for the matrix units of an accelerator; on a CPU fewer were faster, see
`benchmarks/update.py`.
"""


def token_log_probs(
  model: Decoder,
  tokens: Int[Array, "B T"],
  *,
  where: Bool[Array, "B T"],
  temperature: float = 1.0,
  positions: Int[Array, "B T"] | None = None,
  segment_ids: Int[Array, "B T"] | None = None,
  remat: Remat = "none",
  head_chunk: int | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Scores each token given what is before it in its segment.

  Entry t belongs to tokens[:, t], so it comes from the hidden state at t - 1.

    log_probs[t] = log softmax(logits[t - 1] / temperature)[tokens[t]]
    entropies[t] = entropy of softmax(logits[t - 1] / temperature)

  The output head runs on scored tokens alone, `head_chunk` of them at a time,
  and the backward pass computes each chunk's logits again. On a mesh every
  batch shard takes the tokens of its own rows, and the vocabulary stays cut:
  what travels is a maximum and sums over it.

  Args:
    model: the decoder.
    tokens: token ids.
    where: which tokens to score. A segment's first token has nothing before
      it and is never scored.
    temperature: of the distribution, above 0; the sampler's.
    positions: as for `Decoder.hidden_states`.
    segment_ids: as for `Decoder.hidden_states`.
    remat: as for `Decoder.hidden_states`.
    head_chunk: tokens of a batch shard whose logits are alive at the same
      time; `HEAD_CHUNK` if None.

  Returns:
    Float32 log-probabilities and entropies over the full vocabulary, in nats,
    both differentiable; exactly 0 where a token is not scored.
  """
  hidden = model.hidden_states(
    tokens, positions=positions, segment_ids=segment_ids, remat=remat
  )
  starts = attention.segment_starts(
    jnp.ones_like(tokens) if segment_ids is None else segment_ids
  )
  groups = _num_batch_shards(tokens.shape[0])
  scored = (where & ~starts).reshape(groups, -1)
  size = scored.shape[1]
  chunk = min(head_chunk or HEAD_CHUNK, size)
  # Scored tokens first; the others point past the end, where zeros are read
  # and gradients are dropped, so that a NaN in their place reaches nothing.
  order = jnp.argsort(~scored, axis=1, stable=True)
  order = jnp.where(jnp.take_along_axis(scored, order, axis=1), order, size)
  order = jnp.pad(order, ((0, 0), (0, -size % chunk)), constant_values=size)
  before = jnp.where(order < size, order - 1, size)
  values = _score(
    temperature,
    chunk,
    "dv" if model.head else "vd",
    _take(hidden.reshape(groups, size, -1), before),
    model.head.kernel[...] if model.head else model.embedding[...],
    _take(tokens.reshape(groups, size), order),
    -(-jnp.max(jnp.sum(scored, axis=1)) // chunk),
  )
  # Back from the order of scoring; past the end for what was not scored.
  place = jnp.where(scored, jnp.cumsum(scored, axis=1) - 1, order.shape[1])
  log_probs, entropies = (_take(x, place).reshape(tokens.shape) for x in values)
  return log_probs, entropies


def _num_batch_shards(batch: int) -> int:
  """Parts that the mesh cuts a batch of rows into; 1 if it does not."""
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
  return 1 if batch % shards else shards


@jax.vmap
def _take(values: Array, index: Int[Array, " N"]) -> Array:
  """Entries of `values`, 0 for an index past the end."""
  return values.at[index].get(mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _score(
  temperature: float,
  chunk: int,
  layout: str,
  hidden: Float[Array, "G N D"],
  head: Float[Array, "_ _"],
  targets: Int[Array, "G N"],
  num_chunks: Int[Array, ""],
) -> tuple[Float[Array, "G N"], Float[Array, "G N"]]:
  """Log-probabilities of the targets, and entropies, chunk by chunk.

  Args:
    temperature: of the distribution.
    chunk: tokens of a chunk in each group; divides N.
    layout: axes of the head, "vd" for an embedding and "dv" for a kernel.
    hidden: what the head reads.
    head: the head's weights, float32 or narrower.
    targets: token ids.
    num_chunks: how many chunks hold anything; the others stay 0.

  Returns:
    Float32 log-probabilities and entropies.
  """
  values, _ = _score_forward(
    temperature, chunk, layout, hidden, head, targets, num_chunks
  )
  return values


def _score_forward(
  temperature, chunk, layout, hidden, head, targets, num_chunks
):
  """The values, and what the backward pass needs beside the inputs."""
  head = _gather_head(head, layout)

  def body(index, carry):
    hidden_chunk, target = _chunks(index, chunk, hidden, targets)
    logits = _logits(hidden_chunk, head, layout, temperature)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - peak
    weights = jnp.exp(shifted)
    total = jnp.sum(weights, axis=-1)
    log_total = jnp.log(total)
    picked = jnp.sum(jnp.where(_is_target(target, logits), shifted, 0), axis=-1)
    entropies = log_total - jnp.sum(weights * shifted, axis=-1) / total
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(x, new, index * chunk, axis=1)
      for x, new in zip(
        carry,
        (picked - log_total, entropies, peak[..., 0] + log_total),
        strict=True,
      )
    )

  zeros = jnp.zeros(targets.shape, jnp.float32)
  log_probs, entropies, normalizers = jax.lax.fori_loop(
    0, num_chunks, body, (zeros, zeros, zeros)
  )
  residuals = hidden, head, targets, num_chunks, normalizers, entropies
  return (log_probs, entropies), residuals


def _score_backward(temperature, chunk, layout, residuals, cotangents):
  """Gradients of the hidden states and of the head, logits computed again.

  With p = softmax(z), z = logits / temperature, n = log Σ exp z, H = entropy:

    ∂ log p[target] / ∂z = onehot(target) - p
    ∂ H / ∂z = -p (z - n + H)
  """
  hidden, head, targets, num_chunks, normalizers, entropies = residuals
  head = _gather_head(head, layout)

  def body(index, carry):
    hidden_gradient, head_gradient = carry
    hidden_chunk, target, normalizer, entropy, by_log_prob, by_entropy = (
      _chunks(
        index, chunk, hidden, targets, normalizers, entropies, *cotangents
      )
    )
    logits = _logits(hidden_chunk, head, layout, temperature)
    offset = by_log_prob + by_entropy * (entropy - normalizer)
    probs = jnp.exp(logits - normalizer[..., None])
    gradient = jnp.where(
      _is_target(target, logits), by_log_prob[..., None], 0
    ) - probs * (offset[..., None] + by_entropy[..., None] * logits)
    gradient = (gradient / temperature).astype(head.dtype)
    new = jnp.einsum(f"gcv,{layout}->gcd", gradient, head)
    hidden_gradient = jax.lax.dynamic_update_slice_in_dim(
      hidden_gradient, new.astype(hidden.dtype), index * chunk, axis=1
    )
    head_gradient += jnp.einsum(
      f"gcv,gcd->g{layout}",
      gradient,
      hidden_chunk,
      preferred_element_type=jnp.float32,
    )
    return hidden_gradient, head_gradient

  # Each group sums into an array of its own, so that its device sends nothing
  # before the end.
  zeros = constrain(
    jnp.zeros((hidden.shape[0], *head.shape), jnp.float32),
    "batch",
    *_head_axes(layout),
  )
  hidden_gradient, head_gradient = jax.lax.fori_loop(
    0, num_chunks, body, (jnp.zeros_like(hidden), zeros)
  )
  head_gradient = head_gradient.sum(axis=0).astype(head.dtype)
  return hidden_gradient, head_gradient, None, None


_score.defvjp(_score_forward, _score_backward)


def _chunks(index: Array, chunk: int, *arrays: Array) -> list[Array]:
  """One chunk of each array; on a mesh, of each group where it lies."""
  return [
    constrain(
      jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1),
      "batch",
      *(None,) * (x.ndim - 1),
    )
    for x in arrays
  ]


def _head_axes(layout: str) -> tuple[str | None, ...]:
  return tuple("vocab" if axis == "v" else None for axis in layout)


def _gather_head(head: Float[Array, "_ _"], layout: str) -> Float[Array, "_ _"]:
  """Fetches a shard's part of the vocabulary once, not once a chunk."""
  return constrain(head, *_head_axes(layout))


def _logits(
  hidden: Float[Array, "G C D"],
  head: Float[Array, "_ _"],
  layout: str,
  temperature: float,
) -> Float[Array, "G C V"]:
  """Float32 logits over the temperature."""
  logits = jnp.einsum(
    f"gcd,{layout}->gcv", hidden, head, preferred_element_type=jnp.float32
  )
  return constrain(logits, "batch", None, "vocab") / temperature


def _is_target(
  target: Int[Array, "G C"], logits: Float[Array, "G C V"]
) -> Bool[Array, "G C V"]:
  """Where the target's logit is: fused into its use, local to a shard."""
  vocabulary = jax.lax.broadcasted_iota(target.dtype, logits.shape, 2)
  return vocabulary == target[..., None]
