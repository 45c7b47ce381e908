"""Conversion and trace-time checks of what callers pass in.

All of them look at shapes, dtypes and Python numbers only, so they cost
nothing in a compiled program. Messages state the rule, the value and the
remedy.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp


def as_float(value: chex.Numeric) -> jax.Array:
  """`value` as float32, or as float64 where it is float64 already.

  Sums over thousands of bfloat16 tokens lose the small terms, so half
  precision is widened before any arithmetic.
  """
  array = jnp.asarray(value)
  return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def check_rank(name: str, value: chex.Array, axes: str) -> None:
  """Requires one axis of `value` for each letter in `axes`, as in "BT"."""
  chex.assert_rank(
    value,
    len(axes),
    custom_message=(
      f"`{name}` must have shape [{', '.join(axes)}], got {value.shape}; "
      "reshape it, or jax.vmap over further axes"
    ),
    exception_type=ValueError,
  )


def check_shape(
  name: str, value: chex.Array, shape: Sequence[int], source: str
) -> None:
  """Requires `value.shape == shape`, which is that of the input `source`."""
  chex.assert_shape(
    value,
    tuple(shape),
    custom_message=(
      f"`{name}` must have shape {tuple(shape)} to match {source}, got "
      f"{value.shape}; pad or slice it so that equal positions describe the "
      "same trajectory, step or token"
    ),
    exception_type=ValueError,
  )


def as_mask(
  name: str, value: chex.Array, shape: Sequence[int], source: str
) -> jax.Array:
  """`value` as an array, required to be boolean and of the given shape."""
  mask = jnp.asarray(value)
  if mask.dtype != jnp.bool_:
    raise ValueError(
      f"`{name}` must be boolean, got {mask.dtype}; pass `{name}.astype(bool)`"
    )
  check_shape(name, mask, shape, source)
  return mask


def as_ids(
  name: str, value: chex.Array, shape: Sequence[int], source: str
) -> jax.Array:
  """`value` as an array, required to be integer and of the given shape."""
  ids = jnp.asarray(value)
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise ValueError(
      f"`{name}` must be integers, got {ids.dtype}; number the groups or "
      f"steps from 0 and pass `{name}.astype('int32')`"
    )
  check_shape(name, ids, shape, source)
  # A narrow type holds its ids, and may not hold their number.
  return ids.astype(jnp.promote_types(ids.dtype, jnp.int32))


def check_count(name: str, value: object) -> None:
  """Requires a static integer of at least 1, since it sets a shape."""
  if not isinstance(value, numbers.Integral) or int(value) < 1:
    raise ValueError(
      f"`{name}` must be a static integer of at least 1, got {value!r}; it "
      "sets a shape, so count from 1 and mark it static under jax.jit"
    )


def is_static(value: chex.Numeric | None) -> bool:
  """Whether `value` is a plain number, known while tracing."""
  return isinstance(value, numbers.Real)


def check_above(name: str, value: chex.Numeric, bound: float) -> None:
  """Requires `value > bound` of a plain number; traced values pass."""
  if is_static(value) and not value > bound:
    raise ValueError(
      f"`{name}` must be > {bound:g}, got {value}; raise it above {bound:g}"
    )


def check_at_most(name: str, value: chex.Numeric, bound: float) -> None:
  """Requires `value <= bound` of a plain number; traced values pass."""
  if is_static(value) and not value <= bound:
    raise ValueError(
      f"`{name}` must be at most {bound:g}, got {value}; lower it to {bound:g} "
      "or less"
    )


def check_at_least(name: str, value: chex.Numeric, bound: float) -> None:
  """Requires `value >= bound` of a plain number; traced values pass."""
  if is_static(value) and not value >= bound:
    raise ValueError(
      f"`{name}` must be at least {bound:g}, got {value}; raise it to "
      f"{bound:g} or more"
    )
