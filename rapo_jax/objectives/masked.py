"""Every masked reduction of the objectives, in one place.

A mask is applied by selection, never by multiplication: 0 * NaN is NaN. Each
function selects before it computes. So a masked slot cannot reach the value.
Nor can it reach its own gradient, through the gradient of what follows. A
reduction over nothing is 0.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

Axis = int | tuple[int, ...] | None


def select(
  values: chex.Array, where: chex.Array, fill: float = 0.0
) -> jax.Array:
  """`values` where the mask holds and `fill` elsewhere."""
  return jnp.where(where, values, jnp.asarray(fill, values.dtype))


def masked_count(
  where: chex.Array, axis: Axis = None, *, dtype: chex.ArrayDType
) -> jax.Array:
  """Number of positions in the mask, as a float that can be divided by."""
  return jnp.sum(where, axis=axis, dtype=dtype)


def masked_sum(
  values: chex.Array, where: chex.Array, axis: Axis = None
) -> jax.Array:
  """Sum over the positions in the mask."""
  return jnp.sum(select(values, where), axis=axis)


def masked_mean(
  values: chex.Array, where: chex.Array, axis: Axis = None
) -> jax.Array:
  """Mean over the positions in the mask."""
  count = masked_count(where, axis, dtype=values.dtype)
  return masked_sum(values, where, axis) / jnp.maximum(count, 1)


def masked_max(values: chex.Array, where: chex.Array) -> jax.Array:
  """Largest value in the mask."""
  largest = jnp.max(values, initial=-jnp.inf, where=where)
  return select(largest, jnp.any(where))


def masked_std(values: chex.Array, where: chex.Array) -> jax.Array:
  """Standard deviation (ddof 0) over the positions in the mask."""
  centred = select(values - masked_mean(values, where), where)
  return jnp.sqrt(masked_mean(jnp.square(centred), where))


def segment_sum(
  values: chex.Array, ids: chex.Array, where: chex.Array, num_segments: int
) -> jax.Array:
  """Sum by segment of `values` `[N]`; ids out of range are left out."""
  ids = jnp.where(_in_range(ids, num_segments) & where, ids, num_segments)
  totals = jax.ops.segment_sum(select(values, where), ids, num_segments + 1)
  return totals[:num_segments]


def segment_count(
  ids: chex.Array,
  where: chex.Array,
  num_segments: int,
  *,
  dtype: chex.ArrayDType,
) -> jax.Array:
  """Number of masked-in positions of each segment, as a float."""
  return segment_sum(jnp.ones(ids.shape, dtype), ids, where, num_segments)


def segment_mean(
  values: chex.Array, ids: chex.Array, where: chex.Array, num_segments: int
) -> jax.Array:
  """Mean by segment of `values` `[N]`; ids out of range are left out."""
  count = segment_count(ids, where, num_segments, dtype=values.dtype)
  total = segment_sum(values, ids, where, num_segments)
  return total / jnp.maximum(count, 1)


def segment_is_constant(
  values: chex.Array, ids: chex.Array, where: chex.Array, num_segments: int
) -> jax.Array:
  """Whether the values of each segment are all equal; true for an empty one.

  Exact, where a standard deviation is not: three times 0.1 has a mean that
  differs from 0.1 in its last bit. NaN equals nothing.
  """
  ids = jnp.where(_in_range(ids, num_segments) & where, ids, num_segments)
  values = select(values, where)
  smallest = jax.ops.segment_min(values, ids, num_segments + 1)
  first = take_segment(smallest, ids, where)
  return (
    segment_count(
      ids, where & (values != first), num_segments, dtype=values.dtype
    )
    == 0
  )


def take_segment(
  values: chex.Array, ids: chex.Array, where: chex.Array
) -> jax.Array:
  """`values[ids]`, and 0 outside of the mask or where the id is not valid."""
  known = where & _in_range(ids, values.shape[0])
  return select(values[jnp.where(known, ids, 0)], known)


def _in_range(ids: chex.Array, num_segments: int) -> jax.Array:
  return (ids >= 0) & (ids < num_segments)
