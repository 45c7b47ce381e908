import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import objectives

token_entropy = jax.jit(objectives.token_entropy)
QUICK = hypothesis.settings(max_examples=25, deadline=None)


def oracle_entropy(logits):
  logits = np.asarray(logits, np.float64)
  p = np.exp(logits - logits.max())
  p /= p.sum()
  return -sum(x * math.log(x) for x in p if x > 0)


def test_token_entropy_by_hand():
  logits = jnp.log(jnp.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0]]))
  # Uniform over 4: log 4. Then 0.5 log 2 + 2 * 0.25 log 4 = 1.5 log 2; the
  # token of probability 0 (logit -inf) adds nothing.
  expected = [2 * math.log(2), 1.5 * math.log(2)]
  np.testing.assert_allclose(token_entropy(logits), expected, rtol=1e-6)


def test_token_entropy_of_impossible_tokens_has_a_finite_gradient():
  logits = jnp.array([0.3, -0.2, -jnp.inf])
  gradient = jax.grad(token_entropy)(logits)
  rest = jax.grad(token_entropy)(logits[:2])
  np.testing.assert_allclose(gradient, [*rest, 0.0], rtol=1e-5)


@QUICK
@hypothesis.given(
  hnp.arrays(
    np.float32, (3, 7), elements=st.floats(-(2.0**99), 2.0**99, width=32)
  )
)
def test_token_entropy_agrees_with_the_oracle(logits):
  entropies = token_entropy(logits)
  np.testing.assert_allclose(
    entropies, [oracle_entropy(row) for row in logits], rtol=1e-4, atol=1e-5
  )
  assert np.all(entropies >= 0)
  assert np.all(entropies <= math.log(7) + 1e-5)


def test_token_entropy_ignores_masked_positions():
  logits = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf], [0.0, 0.0]])
  where = jnp.array([True, False, True])

  def total(x):
    return jnp.sum(token_entropy(x, where=where))

  clean = logits.at[1].set(0.0)
  assert token_entropy(logits, where=where)[1] == 0
  np.testing.assert_array_equal(total(logits), total(clean))
  np.testing.assert_array_equal(jax.grad(total)(logits), jax.grad(total)(clean))
  np.testing.assert_array_equal(jax.grad(total)(logits)[1], [0, 0])


def test_token_entropy_sums_half_precision_in_float32():
  logits = jnp.zeros((1000,), jnp.bfloat16)
  entropy = token_entropy(logits)
  assert entropy.dtype == jnp.float32
  # A bfloat16 sum of 1000 terms of 0.0069 stops growing near 2.
  np.testing.assert_allclose(entropy, math.log(1000), rtol=1e-5)


def test_step_entropy_by_hand():
  entropies = jnp.array([[9.0, 1.0, 3.0, 9.0, 5.0], [2.0, 4.0, 6.0, 0.5, 9.0]])
  step_ids = jnp.array([[-1, 0, 0, 0, 2], [0, 0, 1, 2, 3]])
  where = jnp.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]], bool)
  # Row 0: step 0 is (1 + 3) / 2, its masked 9 left out; step 1 is empty; 5.
  # Row 1: (2 + 4) / 2, 6, 0.5; step 3 does not fit into three steps.
  np.testing.assert_allclose(
    objectives.step_entropy(entropies, step_ids, num_steps=3, where=where),
    [[2, 0, 5], [3, 6, 0.5]],
  )


def test_step_entropy_ignores_masked_positions():
  entropies = jnp.array([[1.0, jnp.nan, 3.0, jnp.inf]])
  step_ids = jnp.array([[0, 0, 1, 1]])
  where = jnp.array([[True, False, True, False]])

  def total(x):
    steps = objectives.step_entropy(x, step_ids, num_steps=2, where=where)
    return jnp.sum(steps), steps

  gradient, steps = jax.jit(jax.grad(total, has_aux=True))(entropies)
  np.testing.assert_array_equal(steps, [[1, 3]])
  np.testing.assert_array_equal(gradient, [[1, 0, 1, 0]])


def test_step_entropy_agrees_with_the_oracle_under_jit_and_vmap():
  rng = np.random.default_rng(0)
  entropies = rng.uniform(0, 3, (2, 4, 30)).astype(np.float32)
  step_ids = rng.integers(-1, 6, (2, 4, 30))
  where = rng.random((2, 4, 30)) < 0.6
  expected = np.zeros((2, 4, 5))
  for i, j, s in np.ndindex(2, 4, 5):
    values = entropies[i, j][(step_ids[i, j] == s) & where[i, j]]
    expected[i, j, s] = values.mean() if len(values) else 0

  @jax.jit
  @jax.vmap
  def steps(entropies, step_ids, where):
    return objectives.step_entropy(
      entropies, step_ids, num_steps=5, where=where
    )

  np.testing.assert_allclose(
    steps(entropies, step_ids, where), expected, rtol=1e-5
  )


def test_wrong_inputs_are_named():
  ones = jnp.ones((2, 3))
  ids = jnp.zeros((2, 3), int)
  mask = ones > 0
  with pytest.raises(ValueError, match=r"`logits` must have shape \[\.\.\., V"):
    objectives.token_entropy(jnp.float32(1))
  with pytest.raises(ValueError, match="`where` must be boolean, got float32"):
    objectives.token_entropy(ones, where=jnp.ones(2))
  with pytest.raises(ValueError, match=r"`step_ids` must have shape \(2, 3\)"):
    objectives.step_entropy(ones, ids[:, 1:], num_steps=2, where=mask)
  with pytest.raises(ValueError, match="`step_ids` must be integers"):
    objectives.step_entropy(ones, ones, num_steps=2, where=mask)
  with pytest.raises(ValueError, match=r"must have shape \[B, T\]"):
    objectives.step_entropy(ones[0], ids[0], num_steps=2, where=mask[0])
  with pytest.raises(ValueError, match="`num_steps` must be a static integer"):
    jax.jit(objectives.step_entropy)(ones, ids, num_steps=2, where=mask)
