"""Tests of the device programs of the rollout by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax.rollout import sampler

draw = jax.jit(sampler._inverse_cdf)


@pytest.mark.parametrize("vocab_size", [1, 5, 128, 1000])
def test_a_uniform_number_picks_where_the_cumulative_sum_passes_it(vocab_size):
  rng = np.random.default_rng(0)
  probs = rng.dirichlet(np.full(vocab_size, 0.1), size=64).astype(np.float32)
  probs[rng.random(probs.shape) < 0.3] = 0
  probs[:, -1] += 1e-3
  uniforms = rng.random(64).astype(np.float32)
  cumulative = np.cumsum(probs.astype(np.float64), axis=1)
  threshold = uniforms * cumulative[:, -1]
  got = np.asarray(draw(probs, uniforms))
  rows = np.arange(64)
  # float32 sums are off by a few units in the last place.
  assert np.all(cumulative[rows, got] >= threshold - 1e-6)
  before = cumulative[rows, got] - probs[rows, got]
  assert np.all(before <= threshold + 1e-6)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("vocab_size", [3, 300])
def test_a_token_of_probability_0_is_never_drawn(vocab_size, uniform):
  rng = np.random.default_rng(1)
  probs = rng.random((2000, vocab_size)).astype(np.float32) ** 8
  # At both ends, where rounding would put it, and in between.
  probs[:, [0, -1]] = 0
  probs[rng.random(probs.shape) < 0.5] = 0
  probs[:, 1] += np.float32(1e-30)
  probs /= probs.sum(axis=1, keepdims=True)
  got = np.asarray(draw(probs, np.full(2000, uniform, np.float32)))
  assert np.all(probs[np.arange(2000), got] > 0)


def test_frequencies_are_the_probabilities():
  probs = jnp.asarray([0.5, 0.0, 0.2, 0.05, 0.25])
  uniforms = jnp.linspace(0, 1, 20_000, endpoint=False)
  got = draw(jnp.broadcast_to(probs, (20_000, 5)), uniforms)
  counts = np.bincount(np.asarray(got), minlength=5) / 20_000
  np.testing.assert_allclose(counts, probs, atol=1e-4)
