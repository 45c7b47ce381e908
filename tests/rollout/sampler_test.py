"""Tests of the device programs of the rollout by themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.rollout import RolloutConfig, sampler
from tests.closeness import assert_close
from tests.tiny_decoder import tiny_decoder


@jax.jit
def draw(probs, uniforms):
  return sampler._inverse_cdf(sampler._in_blocks(probs), uniforms)


@jax.jit
def keep(probs, sampling):
  """Filtered probabilities, `[S, V]`."""
  filtered = sampler._filter(sampler._in_blocks(probs), sampling)
  return filtered.reshape(len(probs), -1)[:, : probs.shape[1]]


def _sampling(**filters):
  return sampler.sampling(RolloutConfig(**filters))


def _all_filters(temperature=1.0, *, top_k, top_p=1.0, min_p=0.0):
  """The same without leaving out those that let everything pass."""
  return sampler.Sampling(
    jnp.float32(temperature),
    jnp.int32(top_k),
    jnp.float32(top_p),
    jnp.float32(min_p),
  )


def _kept_by_sorting(probs, top_k, top_p, min_p):
  """What the filters keep of one row, by its definition, in float64."""
  kept = probs.astype(np.float64)
  if top_k < kept.size:
    kept[kept < np.sort(kept)[::-1][top_k - 1]] = 0
  if top_p < 1:
    ordered = np.sort(kept)[::-1]
    count = np.argmax(np.cumsum(ordered) >= top_p * ordered.sum()) + 1
    kept[kept < ordered[count - 1]] = 0
  kept[kept < np.float32(min_p) * kept.max()] = 0
  return kept > 0


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


def _rows(seed, vocab_size):
  """Rows of four kinds: spread, peaked, with many ties, and with zeros."""
  rng = np.random.default_rng(seed)
  logits = (
    rng.normal(size=(8, vocab_size)) * np.repeat([1, 6, 1, 3], 2)[:, None]
  )
  logits[4:6] = np.round(logits[4:6])
  probs = np.exp(logits)
  probs[6:, rng.random(vocab_size) < 0.5] = 0
  probs[6:, rng.integers(vocab_size)] = 1
  return (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
  seed=st.integers(0, 2**32 - 1),
  vocab_size=st.sampled_from([7, 300]),
  top_k=st.sampled_from([1, 2, 20, 1000]),
  # Not of few bits, lest a cumulative sum of ties meet it exactly.
  top_p=st.sampled_from([1.0, 1e-6, 0.31417, 0.90123, 0.99917]),
  min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_filters_keep_what_sorting_keeps(seed, vocab_size, top_k, top_p, min_p):
  probs = _rows(seed, vocab_size)
  sampling = _all_filters(top_k=top_k, top_p=top_p, min_p=min_p)
  if top_p == 1:
    # Sums of float32 reach the whole without what is too small to count.
    sampling = sampling._replace(top_p=None)
  kept = np.asarray(keep(probs, sampling))
  for row, got in zip(probs, kept, strict=True):
    expected = _kept_by_sorting(row, top_k, top_p, min_p)
    np.testing.assert_array_equal(got > 0, expected)
    np.testing.assert_array_equal(got[expected], row[expected])


def test_filters_by_hand():
  probs = np.asarray([[0.4, 0.3, 0.1, 0.1, 0.06, 0.04]], np.float32)

  def kept(**filters):
    return np.flatnonzero(keep(probs, _sampling(**filters))[0]).tolist()

  assert kept() == [0, 1, 2, 3, 4, 5]
  assert kept(top_k=2) == [0, 1]
  # A tie at the threshold stays whole.
  assert kept(top_k=3) == [0, 1, 2, 3]
  assert kept(top_p=0.35) == [0]
  assert kept(top_p=0.65) == [0, 1]
  assert kept(top_p=0.75) == [0, 1, 2, 3]
  assert kept(min_p=0.2) == [0, 1, 2, 3]
  # 0.6 of the 0.7 that top-k leaves is 0.42: the first token is not enough.
  # Of the whole, 0.39 would be less than it.
  assert kept(top_k=2, top_p=0.39 / 0.7) == [0]
  assert kept(top_k=2, top_p=0.6) == [0, 1]
  # min-p goes by the likeliest token, which no filter drops.
  assert kept(top_k=2, top_p=0.6, min_p=0.8) == [0]


def test_a_row_is_filtered_alike_in_any_company():
  probs = _rows(3, 300)
  sampling = _sampling(top_k=40, top_p=0.9, min_p=0.01)
  together = np.asarray(keep(probs, sampling))
  order = np.random.default_rng(0).permutation(len(probs))
  np.testing.assert_array_equal(keep(probs[order], sampling), together[order])
  for row in range(len(probs)):
    # Neighbours that are done after the fewest halvings.
    company = np.zeros_like(probs)
    company[:, 0] = 1
    company[row] = probs[row]
    np.testing.assert_array_equal(keep(company, sampling)[row], together[row])


def test_frequencies_are_those_of_the_filtered_probabilities():
  probs = jnp.asarray([0.4, 0.05, 0.3, 0.05, 0.2])
  uniforms = jnp.linspace(0, 1, 20_000, endpoint=False)
  rows = jnp.broadcast_to(probs, (20_000, 5))
  got = draw(keep(rows, _sampling(top_k=3)), uniforms)
  counts = np.bincount(np.asarray(got), minlength=5) / 20_000
  expected = np.asarray([0.4, 0, 0.3, 0, 0.2]) / 0.9
  np.testing.assert_allclose(counts, expected, atol=1e-4)


@pytest.mark.parametrize(
  ("filters", "message"),
  [
    ({"top_k": -1}, "top_k must be at least 0, got -1"),
    ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
    ({"top_p": 1.01}, r"top_p must lie in \(0, 1\]"),
    ({"top_p": float("nan")}, r"top_p must lie in \(0, 1\]"),
    ({"min_p": -0.1}, r"min_p must lie in \[0, 1\], got -0.1"),
    ({"min_p": 1.5}, r"min_p must lie in \[0, 1\]"),
  ],
)
def test_filters_out_of_range_are_refused(filters, message):
  with pytest.raises(ValueError, match=message):
    RolloutConfig(**filters)


_SLOTS, _LENGTH, _VOCABULARY = 4, 64, 300


@pytest.fixture(scope="module")
def model():
  return tiny_decoder(vocab_size=_VOCABULARY, initializer_range=0.5)


def _decode(model, sampling):
  """Forty tokens in each slot, after one of a prompt."""
  state = sampler.init_slots(model, _SLOTS, _LENGTH)._replace(
    lengths=jnp.ones(_SLOTS, jnp.int32),
    limits=jnp.full(_SLOTS, 41, jnp.int32),
    active=jnp.ones(_SLOTS, bool),
    keys=sampler.sequence_keys(
      0,
      jnp.int32(0),
      jnp.arange(_SLOTS, dtype=jnp.uint32),
      jnp.zeros(_SLOTS, jnp.uint32),
    ),
  )
  return sampler.decode(
    model,
    state,
    jnp.zeros((2, _VOCABULARY), jnp.int32),
    jnp.zeros(_VOCABULARY, bool),
    sampling,
    num_tokens=40,
    attend_length=_LENGTH,
  )


def test_filters_that_let_everything_pass_change_no_bit(model):
  plain = _decode(model, _sampling(temperature=0.7))
  assert _sampling().top_k is _sampling().top_p is _sampling().min_p is None
  loose = _all_filters(0.7, top_k=_VOCABULARY)
  for first, second in zip(plain[1:], _decode(model, loose)[1:], strict=True):
    np.testing.assert_array_equal(first, second)


def test_stored_log_probs_and_entropies_are_of_the_full_measure(model):
  config = RolloutConfig(temperature=0.7, top_k=8, top_p=0.9, min_p=0.02)
  state = _decode(model, sampler.sampling(config))
  tokens = np.asarray(state.tokens[:, :41])
  full = jax.nn.log_softmax(model(state.tokens[:, :41])[:, :-1] / 0.7)
  assert_close(
    state.log_probs[:, 1:41],
    np.take_along_axis(np.asarray(full), tokens[:, 1:, None], axis=2)[..., 0],
  )
  assert_close(state.entropies[:, 1:41], -np.sum(np.exp(full) * full, axis=2))
  # Every token is one that the filters let pass, and not always the likeliest.
  probs = np.exp(np.asarray(full)).reshape(-1, _VOCABULARY)
  allowed = np.stack([_kept_by_sorting(row, 8, 0.9, 0.02) for row in probs])
  drawn = tokens[:, 1:].reshape(-1)
  assert allowed[np.arange(len(drawn)), drawn].all()
  assert (allowed.sum(axis=1) < 9).all()
  assert (drawn != probs.argmax(axis=1)).sum() > 10


def test_top_k_of_one_is_greedy(model):
  greedy = _decode(model, sampler.GREEDY)
  one = _decode(model, _all_filters(top_k=1))
  np.testing.assert_array_equal(greedy.tokens, one.tokens)
  np.testing.assert_array_equal(greedy.log_probs, one.log_probs)


def test_other_numbers_compile_nothing(model):
  config = RolloutConfig(temperature=0.7, top_k=8, top_p=0.9, min_p=0.02)
  _decode(model, sampler.sampling(config))
  compiled = sampler.decode._cache_size()
  other = dataclasses.replace(
    config, temperature=1.3, top_k=3, top_p=0.5, min_p=0.1
  )
  _decode(model, sampler.sampling(other))
  assert sampler.decode._cache_size() == compiled
