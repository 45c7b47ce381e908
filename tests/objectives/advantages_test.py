import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import objectives

group_advantages = jax.jit(
  objectives.group_advantages, static_argnames=("num_groups", "ddof")
)
QUICK = hypothesis.settings(max_examples=40, deadline=None)


def oracle(rewards, group_ids, num_groups, ddof=1, eps=1e-6):
  rewards = np.asarray(rewards, np.float64)
  advantages = np.zeros(len(rewards))
  for g in range(num_groups):
    rows = np.flatnonzero(group_ids == g)
    if len(rows) > 1 and np.ptp(rewards[rows]) > 0:
      group = rewards[rows]
      advantages[rows] = (group - group.mean()) / (group.std(ddof=ddof) + eps)
  return advantages


@pytest.mark.parametrize(
  ("ddof", "expected"),
  [
    # Group 0 holds 0, 1, 2: mean 1, squares 2; std 1 with ddof 1 and
    # sqrt(2/3) with 0. Group 1 holds 1, 5: mean 3, squares 8; sqrt 8 and 2.
    (1, [-1, 0, 1, -2 / math.sqrt(8), 2 / math.sqrt(8)]),
    (0, [-math.sqrt(1.5), 0, math.sqrt(1.5), -1, 1]),
  ],
)
def test_group_advantages_by_hand(ddof, expected):
  order = np.array([3, 0, 4, 2, 1])  # The groups are interleaved.
  rewards = jnp.array([0.0, 1.0, 2.0, 1.0, 5.0])[order]
  group_ids = jnp.array([0, 0, 0, 1, 1])[order]
  np.testing.assert_allclose(
    group_advantages(rewards, group_ids, num_groups=2, ddof=ddof),
    np.array(expected)[order],
    rtol=1e-5,
  )


def test_eps_is_added_to_the_standard_deviation():
  # mean 1, std sqrt(2) with ddof 1.
  np.testing.assert_allclose(
    group_advantages(
      jnp.array([0, 2]), jnp.array([0, 0]), num_groups=1, eps=1.0
    ),
    [-1 / (math.sqrt(2) + 1), 1 / (math.sqrt(2) + 1)],
    rtol=1e-6,
  )


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_groups_without_a_difference_get_exactly_zero(ddof, eps):
  # Three times float32 0.1 has a mean that is not 0.1: dividing the rounding
  # error by itself plus eps would give advantages of a percent or so.
  rewards = jnp.array([0.1, 0.1, 0.1, 0.7, 0.0, 1.0])
  group_ids = jnp.array([0, 0, 0, 1, 3, 3])  # Group 2 has no rows.

  def total(x):
    advantages = group_advantages(
      x, group_ids, num_groups=4, ddof=ddof, eps=eps
    )
    return jnp.sum(advantages * jnp.arange(6)), advantages

  gradient, advantages = jax.jit(jax.grad(total, has_aux=True))(rewards)
  np.testing.assert_array_equal(advantages[:4], np.zeros(4))
  np.testing.assert_array_equal(gradient[:4], np.zeros(4))
  assert np.all(np.isfinite(gradient))
  assert advantages[5] > 0.7


def test_rows_of_no_group_get_zero_and_touch_nobody():
  rewards = jnp.array([0.0, jnp.nan, 2.0, jnp.inf])
  group_ids = jnp.array([0, -1, 0, 1])

  def total(x):
    advantages = group_advantages(x, group_ids, num_groups=1)
    return advantages[2], advantages

  gradient, advantages = jax.jit(jax.grad(total, has_aux=True))(rewards)
  half = 1 / math.sqrt(2)
  np.testing.assert_allclose(advantages, [-half, 0, half, 0], rtol=1e-5)
  np.testing.assert_array_equal(gradient[jnp.array([1, 3])], [0, 0])
  assert np.all(np.isfinite(gradient))


def test_a_broken_reward_is_not_hidden():
  advantages = group_advantages(
    jnp.array([0.0, jnp.nan, 1.0, 2.0]), jnp.array([0, 0, 1, 1]), num_groups=2
  )
  np.testing.assert_array_equal(
    np.isnan(advantages), [True, True, False, False]
  )


@QUICK
@hypothesis.given(
  # Rewards on a grid: differences far below float32's rounding say nothing.
  hnp.arrays(np.int32, (12,), elements=st.integers(-20, 20)),
  hnp.arrays(np.int32, (12,), elements=st.integers(0, 3)),
  st.permutations(range(12)),
)
def test_group_advantages_agree_with_the_oracle_in_any_order(
  tenths, group_ids, order
):
  rewards = (tenths / 10).astype(np.float32)
  result = group_advantages(rewards, group_ids, num_groups=4)
  np.testing.assert_allclose(
    result, oracle(rewards, group_ids, 4), rtol=1e-4, atol=1e-5
  )
  order = np.array(order)
  np.testing.assert_allclose(
    group_advantages(rewards[order], group_ids[order], num_groups=4),
    result[order],
    rtol=1e-4,
    atol=1e-5,
  )


def test_group_advantages_under_vmap_are_those_of_each_row():
  rewards = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
  group_ids = jnp.array([0, 1, 0, 1, 1, 0])

  def advantages(rewards):
    return group_advantages(rewards, group_ids, num_groups=2)

  np.testing.assert_allclose(
    jax.vmap(advantages)(rewards), [advantages(r) for r in rewards], rtol=1e-6
  )


def test_advantages_without_a_deviation_are_differences():
  # Group 0 has mean 2, group 1 has one member alone.
  actual = objectives.group_advantages(
    jnp.array([1.0, 3.0, 7.0]), jnp.array([0, 0, 1]), num_groups=2, std=False
  )
  np.testing.assert_allclose(actual, [-1.0, 1.0, 0.0])


def test_step_returns_by_hand():
  where = np.array([[True, False, True, True], [True, True, False, False]])
  rewards = np.array([[1.0, 50, 0, 8], [0, 2, 50, 50]])
  actual = objectives.step_returns(rewards, where=where, discount=0.5)
  # 1 + 4 / 2, 0 + 8 / 2, 8: the step left out takes no discount.
  np.testing.assert_allclose(actual, [[3, 0, 4, 8], [1, 2, 0, 0]])


def test_a_response_costs_for_the_last_share_of_its_limit():
  # From 80 of 100 tokens on: half of the way at 90, and on below -1.
  np.testing.assert_allclose(
    objectives.overlong_penalty(
      np.array([0, 80, 90, 100, 110]), limit=100, share=0.2
    ),
    [0, 0, -0.5, -1, -1.5],
    atol=1e-6,
  )


def test_rapo_advantages_by_hand():
  # (1 + 0.2 * 1) * 2 = 2.4; (1 - 0.2 * 2) * -1 = -0.6: a retrieval that hurt
  # softens the blow, a good one doubles down; 0 retrieval leaves 3.
  np.testing.assert_allclose(
    objectives.rapo_advantages(
      jnp.array([2.0, -1.0, 3.0]), jnp.array([1.0, -2.0, 0.0])
    ),
    [2.4, -0.6, 3],
    rtol=1e-6,
  )


@pytest.mark.parametrize("size", [16, 28, 32, 128])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_bad_retrieval_does_not_flip_the_sign(size, sign):
  ids = jnp.zeros(size, int)
  one = np.eye(1, size, dtype=np.float32)[0]
  outcome = group_advantages(sign * one, ids, num_groups=1)
  worth = group_advantages(-one, ids, num_groups=1)
  # Of one among n: -(n - 1) / n over sqrt(1 / n), that is -(n - 1) / sqrt(n).
  least = -(size - 1) / np.sqrt(size)
  np.testing.assert_allclose(worth[0], least, rtol=1e-3)
  final = objectives.rapo_advantages(outcome, worth)
  np.testing.assert_array_equal(np.sign(final), np.sign(outcome))
  factor = max(1 + 0.2 * least, 0.01)
  np.testing.assert_allclose(final[0], factor * outcome[0], rtol=1e-2)
  as_written = objectives.rapo_advantages(outcome, worth, min_factor=None)
  assert (np.sign(as_written[0]) == sign) == (size < 28)
  if size <= 16:
    np.testing.assert_array_equal(final, as_written)


@pytest.mark.parametrize("retrieval_coef", [0.0, 0.2, 1e6])
def test_rapo_advantages_without_retrieval_are_the_outcome_s(retrieval_coef):
  outcome = np.random.default_rng(0).normal(size=64).astype(np.float32)
  for function in (
    objectives.rapo_advantages,
    jax.jit(objectives.rapo_advantages),
  ):
    np.testing.assert_array_equal(
      function(outcome, np.zeros(64), retrieval_coef=retrieval_coef), outcome
    )


def test_wrong_inputs_are_named():
  rewards, ids = jnp.ones(4), jnp.zeros(4, int)
  with pytest.raises(ValueError, match=r"`group_ids` must have shape \(4,\)"):
    objectives.group_advantages(rewards, ids[:3], num_groups=1)
  with pytest.raises(ValueError, match="`group_ids` must be integers"):
    objectives.group_advantages(rewards, rewards, num_groups=1)
  with pytest.raises(ValueError, match=r"must have shape \[B\]"):
    objectives.group_advantages(rewards[None], ids[None], num_groups=1)
  with pytest.raises(ValueError, match="`num_groups` must be a static integer"):
    objectives.group_advantages(rewards, ids, num_groups=0)
  with pytest.raises(ValueError, match="`ddof` must be 0 or 1, got 2"):
    objectives.group_advantages(rewards, ids, num_groups=1, ddof=2)
  with pytest.raises(ValueError, match="`eps` must be at least 0"):
    objectives.group_advantages(rewards, ids, num_groups=1, eps=-1e-6)
  with pytest.raises(ValueError, match="`min_factor` must be at least 0"):
    objectives.rapo_advantages(rewards, rewards, min_factor=-1.0)
  with pytest.raises(
    ValueError, match="`retrieval_advantages` must have shape"
  ):
    objectives.rapo_advantages(rewards, jnp.ones(()))


def test_leave_one_out_by_hand():
  # Each against the mean of the others: 1 - 2.5, 2 - 2, 3 - 1.5.
  np.testing.assert_allclose(
    objectives.leave_one_out_advantages(
      jnp.array([1.0, 9.0, 2.0, 3.0, 4.0]),
      jnp.array([0, 1, 0, 0, -1]),
      num_groups=2,
    ),
    [-1.5, 0.0, 0.0, 1.5, 0.0],
    atol=1e-6,
  )


def test_equal_rewards_leave_nothing_out():
  rewards = jnp.full(3, 0.1)
  advantages = objectives.leave_one_out_advantages(
    rewards, jnp.zeros(3, int), num_groups=1
  )
  assert not np.any(advantages)


@pytest.mark.parametrize(("ddof", "variance"), [(0, 2.0), (1, 3.0)])
def test_whitening_by_hand(ddof, variance):
  # 3, 3 and 0 have mean 2 and squares 1, 1 and 4.
  values = jnp.array([[3.0, jnp.nan], [3.0, 0.0]])
  where = jnp.array([[True, False], [True, True]])
  actual = objectives.whiten(values, where=where, ddof=ddof, eps=1.0)
  root = math.sqrt(variance + 1)
  np.testing.assert_allclose(
    actual, [[1 / root, 0], [1 / root, -2 / root]], rtol=1e-6
  )


def test_whitening_has_no_gradient_at_masked_positions():
  values = jnp.array([3.0, 1e30, 1.0, 0.0])
  where = jnp.array([True, False, True, True])
  gradient = jax.grad(
    lambda v: jnp.sum(objectives.whiten(v, where=where) ** 3)
  )(values)
  assert gradient[1] == 0
  assert np.all(np.isfinite(gradient))
  assert np.any(gradient)


def test_differences_without_a_square_are_none():
  ids, both = jnp.zeros(2, int), jnp.ones(2, bool)
  values = jnp.asarray([0.0, 1e-25], jnp.float32)
  relative = objectives.group_advantages(values, ids, num_groups=1, eps=0.0)
  np.testing.assert_array_equal(relative, [0, 0])
  compared = objectives.reference_advantages(
    values, ids, both, num_groups=1, eps=0.0
  )
  assert np.all(np.isfinite(compared))
  whitened = objectives.whiten(values, where=both, eps=0.0)
  np.testing.assert_array_equal(whitened, [0, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16])
def test_narrow_ids_reach_any_number_of_groups(dtype):
  ids = np.array([0, 0, 44, 44, 1, 1], dtype)
  advantages = objectives.group_advantages(
    jnp.arange(6.0), ids, num_groups=300, eps=0.0
  )
  np.testing.assert_allclose(advantages, [-0.70711, 0.70711] * 3, rtol=1e-4)


@pytest.mark.parametrize("values", [[0.1] * 3, [0.7, 0.7, 5.0]])
def test_equal_values_whiten_to_nothing(values):
  where = jnp.asarray([True, True, values[2] == values[0]])
  whitened = objectives.whiten(jnp.asarray(values), where=where)
  assert not np.any(whitened)


def test_what_whitening_refuses():
  ones = jnp.ones(3)
  with pytest.raises(ValueError, match="`where` must be boolean"):
    objectives.whiten(ones, where=ones)
  with pytest.raises(ValueError, match="`ddof` must be 0 or 1, got 2"):
    objectives.whiten(ones, where=ones > 0, ddof=2)


def test_balanced_advantages_by_hand():
  # Entropies 0, 1 and 2: mean 1, deviation 1 with ddof 1.
  entropies = jnp.array([[0.0, 1.0], [2.0, jnp.nan]])
  where = jnp.array([[True, True], [True, False]])
  for advantages in (
    jnp.array([2.0, -1.0]),
    jnp.array([[2.0] * 2, [-1.0] * 2]),
  ):
    np.testing.assert_allclose(
      objectives.balanced_advantages(
        advantages, entropies, where=where, weight=0.5
      ),
      [[1.0, 2.0], [-1.5, 0.0]],
      rtol=1e-6,
    )


def test_what_balanced_advantages_refuse():
  where = jnp.ones((2, 3), bool)
  with pytest.raises(ValueError, match="`advantages` must have shape"):
    objectives.balanced_advantages(jnp.ones(3), jnp.ones((2, 3)), where=where)
  with pytest.raises(ValueError, match="`weight` must be at least 0"):
    objectives.balanced_advantages(
      jnp.ones(2), jnp.ones((2, 3)), where=where, weight=-1.0
    )


def test_shared_means_by_hand():
  means = objectives.shared_means(
    jnp.array([1.0, 3.0, 8.0]), jnp.array([[0, 1], [0, 3], [4, -1]])
  )
  np.testing.assert_array_equal(means, [[2.0, 1.0], [2.0, 3.0], [8.0, 0.0]])
  with pytest.raises(ValueError, match="`node_ids` must have shape"):
    objectives.shared_means(jnp.ones(3), jnp.zeros((2, 2), int))


def test_reference_advantages_by_hand():
  # Group 0 is compared with 1 and 3; group 1 with equal rewards; group 2 has
  # no reference; the last row has no group.
  rewards = jnp.array([1.0, 3.0, 6.0, 0.1, 0.1, 1.1, 5.0, 9.0])
  group_ids = jnp.array([0, 0, 0, 1, 1, 1, 2, -1])
  reference = jnp.array([1, 1, 0, 1, 1, 0, 0, 1], bool)
  np.testing.assert_allclose(
    objectives.reference_advantages(
      rewards, group_ids, reference, num_groups=3, ddof=0, eps=0.0
    ),
    [-1.0, 1.0, 4.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    rtol=1e-5,
  )


def test_a_reference_of_all_is_the_group():
  rewards = jnp.array([0.3, 1.7, 2.0, 0.4, 0.0])
  group_ids = jnp.array([0, 1, 0, 1, 0])
  np.testing.assert_allclose(
    objectives.reference_advantages(
      rewards, group_ids, jnp.ones(5, bool), num_groups=2
    ),
    group_advantages(rewards, group_ids, num_groups=2),
    rtol=1e-5,
  )


def test_what_reference_advantages_refuse():
  with pytest.raises(ValueError, match="`ddof` must be 0 or 1"):
    objectives.reference_advantages(
      jnp.ones(2), jnp.zeros(2, int), jnp.ones(2, bool), num_groups=1, ddof=2
    )
  with pytest.raises(ValueError, match="`reference` must be boolean"):
    objectives.reference_advantages(
      jnp.ones(2), jnp.zeros(2, int), jnp.ones(2), num_groups=1
    )
