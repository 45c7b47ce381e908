import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import objectives

retrieval_reward = jax.jit(objectives.retrieval_reward)
QUICK = hypothesis.settings(max_examples=40, deadline=None)
P, R, X = (False, True), (True, True), (True, False)  # X: padding.


def oracle_reward(entropies, retrieved, where, scale=2.0, eps=1e-6):
  """Eq. 5-7 by walking outwards from each retrieved step."""
  written = [w and not r for w, r in zip(where, retrieved, strict=True)]
  worths = []
  for t in range(len(entropies)):
    if not (retrieved[t] and where[t]):
      continue
    before = [s for s in range(t) if written[s]]
    after = [s for s in range(t + 1, len(entropies)) if written[s]]
    if before and after:
      h0, h1 = float(entropies[before[-1]]), float(entropies[after[0]])
      worths.append(math.tanh(-scale * (h1 - h0) / (h0 + eps)) * h0)
  return sum(worths) / len(worths) if worths else 0.0


def test_quality_by_hand():
  # dH = -(0.5 - 1) / 1 = 0.5 -> tanh 1. Twice the entropy: dH = -1. The same
  # entropy: 0. From 2 to 0: dH = 1.
  np.testing.assert_allclose(
    objectives.retrieval_quality(
      jnp.array([1.0, 1.0, 3.0, 2.0]), jnp.array([0.5, 2.0, 3.0, 0.0])
    ),
    [math.tanh(1), -math.tanh(2), 0, math.tanh(2)],
    rtol=1e-5,
    atol=1e-7,
  )


def test_quality_has_a_scale_and_takes_scalars():
  assert objectives.retrieval_quality(
    1.0, 0.5, scale=4.0, eps=0.0
  ) == pytest.approx(math.tanh(2))


@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_quality_after_a_step_of_entropy_zero(eps):
  def total(before, after):
    quality = objectives.retrieval_quality(before, after, eps=eps)
    return jnp.sum(quality), quality

  gradients, quality = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(
    jnp.zeros(2), jnp.array([0.0, 1.0])
  )
  # Nothing changed: 0. From sure to unsure: the worst there is.
  np.testing.assert_array_equal(quality, [0, -1])
  assert np.all(np.isfinite(gradients))


@pytest.mark.parametrize(
  ("name", "steps", "entropies", "expected"),
  [
    # The policy step goes from 1 to 0.5: tanh(1) * 1.
    ("one", [P, R, P], [1, 99, 0.5], math.tanh(1)),
    # Two in a row share both sides, so their mean is that of one.
    ("in a row", [P, R, R, P], [1, 99, 98, 0.5], math.tanh(1)),
    # tanh(1) * 1 and from 0.5 to 1 (dH = -1): -tanh(2) * 0.5; halved.
    (
      "two",
      [P, R, P, R, P],
      [1, 9, 0.5, 9, 1],
      (math.tanh(1) - 0.5 * math.tanh(2)) / 2,
    ),
    # A first or last one lacks a side and is no part of the mean.
    ("first", [R, P, R, P], [9, 1, 9, 0.5], math.tanh(1)),
    ("last", [P, R, P, R], [1, 9, 0.5, 9], math.tanh(1)),
    ("only last", [P, R], [1, 9], 0),
    ("only first", [R, P], [9, 1], 0),
    ("none", [P, P], [1, 2], 0),
    ("nothing but", [R, R], [1, 2], 0),
    # What is not `where` is skipped on either side, retrieved or not.
    (
      "gaps",
      [P, (False, False), R, (False, False), P],
      [1, 7, 9, 7, 0.5],
      0.76159,
    ),
    ("padding", [P, R, (False, False)], [1, 9, 0.5], 0),
    ("padded retrieval", [P, X, P], [1, 9, 0.5], 0),
  ],
)
def test_reward_by_hand(name, steps, entropies, expected):
  # Padded to one shape, with entropies that must not be read.
  steps = steps + [(False, False)] * (5 - len(steps))
  entropies = entropies + [77] * (5 - len(entropies))
  retrieved, where = (
    jnp.array([column]) for column in zip(*steps, strict=True)
  )
  reward = retrieval_reward(
    jnp.array([entropies], float), retrieved, where=where
  )
  np.testing.assert_allclose(reward, [expected], rtol=1e-5, err_msg=name)


@QUICK
@hypothesis.given(
  hnp.arrays(np.float32, (4, 7), elements=st.floats(0, 12, width=32)),
  hnp.arrays(bool, (4, 7)),
  hnp.arrays(bool, (4, 7)),
)
def test_reward_agrees_with_the_oracle(entropies, retrieved, where):
  rewards = retrieval_reward(entropies, retrieved, where=where)
  expected = [
    oracle_reward(*row) for row in zip(entropies, retrieved, where, strict=True)
  ]
  np.testing.assert_allclose(rewards, expected, rtol=1e-4, atol=1e-5)


def test_reward_ignores_masked_and_retrieved_entropies():
  steps = [P, R, P, (False, False), R]
  retrieved, where = (
    jnp.array([column]) for column in zip(*steps, strict=True)
  )
  clean = jnp.array([[1.0, 0.0, 0.5, 0.0, 0.0]])
  dirty = jnp.array([[1.0, jnp.nan, 0.5, jnp.inf, -jnp.inf]])

  def total(x):
    return jnp.sum(retrieval_reward(x, retrieved, where=where))

  np.testing.assert_array_equal(total(dirty), total(clean))
  gradient = jax.grad(total)(dirty)
  np.testing.assert_array_equal(gradient, jax.grad(total)(clean))
  np.testing.assert_array_equal(gradient[0, [1, 3, 4]], [0, 0, 0])
  assert np.all(gradient[0, [0, 2]] != 0)


def test_reward_maps_over_further_axes():
  rng = np.random.default_rng(0)
  entropies = rng.uniform(0, 2, (3, 2, 5)).astype(np.float32)
  retrieved = rng.random((3, 2, 5)) < 0.4
  where = rng.random((3, 2, 5)) < 0.9

  def reward(entropies, retrieved, where):
    return retrieval_reward(entropies, retrieved, where=where)

  # Another compiled program may round the last bit of tanh differently.
  np.testing.assert_allclose(
    jax.vmap(reward)(entropies, retrieved, where),
    [reward(*rows) for rows in zip(entropies, retrieved, where, strict=True)],
    rtol=1e-6,
  )


def test_fraction_by_hand():
  retrieved = jnp.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
  where = jnp.array([[0, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
  # One of three response tokens (the other mark is outside); none; no response.
  fractions = objectives.retrieved_fraction(retrieved, where=where)
  np.testing.assert_allclose(fractions, [1 / 3, 0, 0])
  assert fractions.dtype == jnp.float32


def test_wrong_inputs_are_named():
  entropies, mask = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
  with pytest.raises(ValueError, match="`entropy_after` must have shape"):
    objectives.retrieval_quality(entropies, entropies[0])
  with pytest.raises(ValueError, match=r"`eps` must be at least 0, got -1"):
    objectives.retrieval_quality(entropies, entropies, eps=-1)
  with pytest.raises(ValueError, match=r"must have shape \[B, S\]"):
    objectives.retrieval_reward(entropies[0], mask[0], where=mask[0])
  with pytest.raises(ValueError, match="`retrieved` must be boolean"):
    objectives.retrieval_reward(entropies, entropies, where=mask)
  with pytest.raises(ValueError, match=r"`where` must have shape \(2, 3\)"):
    objectives.retrieval_reward(entropies, mask, where=mask[:1])
  with pytest.raises(ValueError, match="`retrieved_tokens` must have shape"):
    objectives.retrieved_fraction(mask[:1], where=mask)
  with pytest.raises(ValueError, match="`where` must be boolean, got int32"):
    objectives.retrieved_fraction(mask, where=mask.astype("int32"))
