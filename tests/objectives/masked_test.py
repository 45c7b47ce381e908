import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.objectives import masked

VALUES = jnp.array([1.0, jnp.nan, 3.0, -jnp.inf, 8.0])
WHERE = jnp.array([True, False, True, False, True])
IDS = jnp.array([0, 0, 2, 7, -1])


def test_reductions_by_hand():
  # Over 1, 3 and 8: sum 12, mean 4, squares 9 + 1 + 16.
  assert masked.masked_sum(VALUES, WHERE) == 12
  assert masked.masked_mean(VALUES, WHERE) == 4
  assert masked.masked_max(-VALUES, WHERE) == -1
  np.testing.assert_allclose(
    masked.masked_std(VALUES, WHERE), np.sqrt(26 / 3), rtol=1e-6
  )


def test_reductions_over_nothing_are_zero():
  nothing = WHERE & False
  for reduce in (
    masked.masked_sum,
    masked.masked_mean,
    masked.masked_max,
    masked.masked_std,
  ):
    assert reduce(VALUES, nothing) == 0, reduce


def test_segments_leave_out_the_mask_and_ids_out_of_range():
  np.testing.assert_array_equal(
    masked.segment_sum(VALUES, IDS, WHERE, 3), [1, 0, 3]
  )
  np.testing.assert_array_equal(
    masked.take_segment(jnp.array([5.0, 6.0, 7.0]), IDS, WHERE), [5, 0, 7, 0, 0]
  )


def test_constant_segments_are_found_exactly():
  # 0.1, 0.1 | 1, 2 | empty | 4 beside a masked NaN | NaN.
  values = jnp.array([0.1, 1.0, 0.1, 2.0, 4.0, jnp.nan, jnp.nan])
  ids = jnp.array([0, 1, 0, 1, 3, 3, 4])
  where = jnp.arange(7) != 5
  np.testing.assert_array_equal(
    masked.segment_is_constant(values, ids, where, 5),
    [True, False, True, True, False],
  )


def test_gradients_of_masked_slots_are_zero():
  def total(values):
    return (
      masked.masked_mean(values, WHERE)
      + masked.masked_std(values, WHERE)
      + jnp.sum(masked.segment_mean(values, IDS, WHERE, 3))
    )

  gradient = jax.jit(jax.grad(total))(VALUES)
  assert np.all(np.isfinite(gradient))
  np.testing.assert_array_equal(gradient[~WHERE], [0, 0])
