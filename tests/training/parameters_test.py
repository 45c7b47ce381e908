"""Norms that do not overflow, and names of what is not finite."""

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.training import non_finite, parameter_norm


def test_the_norm_is_over_all_leaves():
  tree = {"a": jnp.array([3.0, 0.0]), "b": [jnp.array([[4.0]]), jnp.arange(9)]}
  assert parameter_norm(tree) == 5.0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
def test_large_and_small_numbers_do_not_overflow(scale):
  norm = parameter_norm({"a": jnp.full(4, scale, jnp.float32)})
  np.testing.assert_allclose(norm, 2 * scale, rtol=1e-6)


def test_zeros_and_nothing():
  assert parameter_norm({"a": jnp.zeros(3)}) == 0.0
  assert parameter_norm({}) == 0.0
  assert non_finite({}) == []


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_is_named(value):
  tree = {"a": jnp.ones(2), "b": [jnp.ones(2), jnp.array([1.0, value])]}
  assert non_finite(tree) == ["['b'][1]"]
  assert not np.isfinite(parameter_norm(tree))


def test_bfloat16_is_looked_at():
  assert non_finite({"a": jnp.array([jnp.nan], jnp.bfloat16)}) == ["['a']"]
