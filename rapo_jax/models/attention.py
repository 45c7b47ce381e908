"""Causal attention: whole sequences for training, a cache for sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

KV_BLOCK = 64
"""Cache positions that one step of the online softmax takes in."""

# Low enough that exp(MASKED - any score) is exactly 0 in float32, and finite,
# so that a row with nothing to attend to gives no NaN.
_MASKED = -1e30


def rotary_angles(
  positions: Int[Array, "*B"],
  frequencies: Float[np.ndarray, "half"],
  scale: float = 1.0,
) -> tuple[Float[Array, "*B half"], Float[Array, "*B half"]]:
  """Returns cosines and sines of the rotary embedding at some positions.

  Args:
    positions: absolute positions, from 0.
    frequencies: radians a position, from `rope.inverse_frequencies`.
    scale: factor of cosines and sines, from the same.

  Returns:
    Two float32 arrays of one entry a frequency.
  """
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
  heads: Float[Array, "*B H D"],
  angles: tuple[Float[Array, "*#B half"], Float[Array, "*#B half"]],
) -> Float[Array, "*B H D"]:
  """Turns the pairs (i, i + D / 2) of every head, as Hugging Face does."""
  cos, sin = (a[..., None, :] for a in angles)
  first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return turned.astype(heads.dtype)


def segment_mask(
  segment_ids: Int[Array, "B T"] | None, length: int
) -> Bool[Array, "#B 1 T T"]:
  """Returns which keys (last axis) each query may read: earlier, same segment.

  Padding (segment 0) reads earlier padding, so that its rows stay finite.
  """
  causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
  if segment_ids is None:
    return causal
  same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
  return causal & same


def segment_positions(
  segment_ids: Int[Array, "B T"],
) -> Int[Array, "B T"]:
  """Returns positions that restart at 0 with every segment."""
  index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
  starts = jnp.where(segment_starts(segment_ids), index, 0)
  return index - jax.lax.cummax(starts, axis=1)


def segment_starts(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
  """Returns True at the first token of every segment."""
  changed = segment_ids[:, 1:] != segment_ids[:, :-1]
  return jnp.pad(changed, ((0, 0), (1, 0)), constant_values=True)


def write_rows(
  stack: Shaped[Array, "layers B S ..."],
  layer: Int[Array, ""] | int,
  positions: Int[Array, "B C"],
  values: Shaped[Array, "B C ..."],
) -> Shaped[Array, "layers B S ..."]:
  """Writes a few positions of every row of one layer, in place if donated.

  Said to the compiler as one write a row and not as writes to any rows, so
  that rows which lie on several devices are written where they lie.

  Args:
    stack: what is written to.
    layer: which part of it.
    positions: where each value goes in its row, no place twice; one past the
      end writes nothing.
    values: what is written.
  """
  numbers = jax.lax.ScatterDimensionNumbers(
    update_window_dims=tuple(range(2, values.ndim)),
    inserted_window_dims=(0, 2),
    scatter_dims_to_operand_dims=(0, 2),
    operand_batching_dims=(1,),
    scatter_indices_batching_dims=(0,),
  )
  index = jnp.stack(
    [jnp.full_like(positions, layer), positions.astype(jnp.int32)], axis=-1
  )
  return jax.lax.scatter(
    stack,
    index,
    values,
    numbers,
    mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
  )


def attend_cache(
  queries: Float[Array, "B C H D"],
  keys: Float[Array, "layers B S kv D"],
  values: Float[Array, "layers B S kv D"],
  layer: Int[Array, ""],
  positions: Int[Array, "B C"],
  num_blocks: Int[Array, ""],
) -> Float[Array, "B C H D"]:
  """Attention of a few new tokens over one layer of the cache.

  An online softmax over blocks of `KV_BLOCK` cache positions, in order. A
  block that is masked throughout multiplies the running sums by exactly 1 and
  adds exactly 0, and every block runs the same compiled body, so more blocks
  than a row needs change no bit of its result.

  Args:
    queries: rotated queries.
    keys: the whole cache, the new tokens' keys already written.
    values: the same for values.
    layer: which layer of the cache to read.
    positions: absolute position of each query; it reads positions up to this.
    num_blocks: how many blocks to read, at least 1.

  Returns:
    The heads' outputs in the dtype of `queries`.
  """
  batch, chunk, num_heads, head_dim = queries.shape
  num_kv_heads = keys.shape[3]
  num_rows = chunk * num_heads // num_kv_heads
  # Query heads that share a key head, and the tokens of the chunk, are the
  # rows of one small matrix product per (batch row, key head).
  grouped = queries.reshape(batch, chunk, num_kv_heads, -1, head_dim)
  grouped = grouped.swapaxes(1, 2).reshape(
    batch, num_kv_heads, num_rows, head_dim
  )
  reach = jnp.repeat(positions, num_rows // chunk, axis=1)[:, None, :, None]

  def block(index, carry):
    peak, total, weighted = carry
    start = index * KV_BLOCK
    k, v = (
      jax.lax.dynamic_slice(
        x,
        (layer, 0, start, 0, 0),
        (1, batch, KV_BLOCK, num_kv_heads, head_dim),
      )[0]
      for x in (keys, values)
    )
    scores = jnp.einsum(
      "bkrd,bskd->bkrs", grouped, k, preferred_element_type=jnp.float32
    )
    visible = start + jnp.arange(KV_BLOCK) <= reach
    scores = jnp.where(visible, scores * head_dim**-0.5, _MASKED)
    new_peak = jnp.maximum(peak, scores.max(axis=-1))
    weights = jnp.exp(scores - new_peak[..., None])
    keep = jnp.exp(peak - new_peak)
    added = jnp.einsum(
      "bkrs,bskd->bkrd",
      weights.astype(v.dtype),
      v,
      preferred_element_type=jnp.float32,
    )
    return (
      new_peak,
      total * keep + weights.sum(axis=-1),
      weighted * keep[..., None] + added,
    )

  shape = (batch, num_kv_heads, num_rows)
  carry = (
    jnp.full(shape, _MASKED, jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros((*shape, head_dim), jnp.float32),
  )
  _, total, weighted = jax.lax.fori_loop(0, num_blocks, block, carry)
  out = (weighted / total[..., None]).astype(queries.dtype)
  out = out.reshape(batch, num_kv_heads, chunk, -1, head_dim).swapaxes(1, 2)
  return out.reshape(batch, chunk, num_heads, head_dim)
