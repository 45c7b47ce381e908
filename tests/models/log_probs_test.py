"""Tests of token_log_probs against the full logits and against sampling."""

import functools
import json
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import nnx

from rapo_jax import models
from rapo_jax.models import log_probs as log_probs_lib
from tests import fake_devices
from tests.closeness import assert_close
from tests.tiny_decoder import tiny_decoder

VOCAB = 37

score = jax.jit(models.token_log_probs, static_argnames="temperature")


@functools.cache
def tiny_model(**changes) -> models.Decoder:
  return tiny_decoder(
    vocab_size=VOCAB,
    intermediate_size=24,
    head_dim=4,
    initializer_range=0.3,
    **changes,
  )


def random_tokens(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, shape))


def from_logits(model, tokens, where, temperature, segment_ids=None):
  """The definition, on the array of all logits."""
  logits = model(tokens, segment_ids=segment_ids)[:, :-1] / temperature
  log_softmax = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_softmax, tokens[:, 1:, None], -1)[..., 0]
  entropies = -jnp.sum(jnp.exp(log_softmax) * log_softmax, axis=-1)
  return tuple(
    jnp.where(where, jnp.pad(x, ((0, 0), (1, 0))), 0)
    for x in (picked, entropies)
  )


def compiled_gradient(config, shape, **options):
  """The compiled loss and gradient of a model that has no arrays."""
  model = jax.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))

  def loss(model, tokens, where, segment_ids):
    log_probs, entropies = models.token_log_probs(
      model, tokens, where=where, segment_ids=segment_ids, **options
    )
    return log_probs.sum() + entropies.sum()

  ids = jax.ShapeDtypeStruct(shape, jnp.int32)
  where = jax.ShapeDtypeStruct(shape, bool)
  gradient = jax.jit(jax.value_and_grad(loss))
  return gradient.lower(model, ids, where, ids).compile(), model


def largest_buffer(compiled, model, dimension=None):
  """Bytes of the largest array in a program that is shaped like no parameter.

  Args:
    compiled: the program.
    model: whose parameters and their gradients do not count.
    dimension: only arrays with an axis of this size count.
  """
  parameters = set()
  layers = model.config.num_layers
  group = models.nested_group(layers)
  for leaf in jax.tree.leaves(model):
    one = leaf.shape[1:]
    # Stacked, of a layer, of a group of remat "nested", and of all groups.
    shapes = (leaf.shape, one, (group, *one), (layers // group, group, *one))
    parameters |= {tuple(sorted(n for n in x if n > 1)) for x in shapes}
  sizes = [0]
  for dtype, dims in re.findall(
    r"\b(pred|bf16|[fsu]\d+)\[([\d,]+)\]", compiled.as_text()
  ):
    shape = [int(size) for size in dims.split(",")]
    is_parameter = tuple(sorted(n for n in shape if n > 1)) in parameters
    if not is_parameter and (dimension is None or dimension in shape):
      bits = 8 if dtype == "pred" else int(dtype.lstrip("bfsu"))
      sizes.append(math.prod(shape) * bits // 8)
  return max(sizes)


class TokenLogProbsTest(parameterized.TestCase):
  # 22 tokens are scored: in one chunk, in chunks that divide 2 * 15 = 30, and
  # in chunks that do not.
  @parameterized.product(chunk=(512, 5, 7), tied=(True, False))
  def test_values_and_gradients_match_the_full_logits(self, chunk, tied):
    model = tiny_model(tie_embeddings=tied)
    tokens = random_tokens((2, 15))
    where = jnp.asarray(np.random.default_rng(1).random((2, 15)) < 0.7)
    where = where.at[:, 0].set(False)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, 2, 15)))

    def loss(model, function):
      log_probs, entropies = function(model)
      loss = jnp.sum(log_probs * weights[0] + entropies * weights[1])
      return loss, (log_probs, entropies)

    ours = functools.partial(
      models.token_log_probs, tokens=tokens, where=where, temperature=0.7
    )
    direct = functools.partial(
      from_logits, tokens=tokens, where=where, temperature=0.7
    )
    with mock.patch.object(log_probs_lib, "HEAD_CHUNK", chunk):
      got = jax.jit(
        jax.value_and_grad(functools.partial(loss, function=ours), has_aux=True)
      )(model)
    expected = jax.jit(
      jax.value_and_grad(functools.partial(loss, function=direct), has_aux=True)
    )(model)
    assert_close(got, expected)
    for values in got[0][1]:
      np.testing.assert_array_equal(values[~where], 0)

  @parameterized.product(chunk=(512, 7), tied=(True, False))
  def test_a_sum_of_losses_has_the_gradient_of_its_parts(self, chunk, tied):
    model = tiny_model(tie_embeddings=tied)
    tokens = random_tokens((2, 15))
    rng = np.random.default_rng(1)
    # The first tokens of segments are asked for too, and not scored.
    where = jnp.asarray(rng.random((2, 15)) < 0.7).at[:, 0].set(True)
    segment_ids = jnp.asarray([[1] * 15, [1] * 4 + [2] * 8 + [0] * 3])
    weights, offsets = jnp.asarray(rng.normal(size=(2, 2, 15)))

    def token_loss(log_probs, arguments):
      return arguments["weights"] * jnp.square(log_probs - arguments["offsets"])

    def direct(model):
      log_probs, _ = models.token_log_probs(
        model, tokens, where=where, temperature=0.7, segment_ids=segment_ids
      )
      arguments = {"weights": weights, "offsets": offsets}
      starts = models.attention.segment_starts(segment_ids)
      losses = token_loss(log_probs, arguments)
      return 3 * jnp.sum(jnp.where(where & ~starts, losses, 0)), log_probs

    def ours(model):
      total, log_probs = models.token_loss_sum(
        model,
        tokens,
        token_loss,
        {"weights": weights, "offsets": offsets},
        where=where,
        temperature=0.7,
        segment_ids=segment_ids,
        head_chunk=chunk,
      )
      return 3 * total, log_probs

    expected = jax.jit(jax.value_and_grad(direct, has_aux=True))(model)
    got = jax.jit(jax.value_and_grad(ours, has_aux=True))(model)
    assert_close(got, expected)
    # Without a gradient another path computes the values.
    assert_close(jax.jit(ours)(model), expected[0])

  @parameterized.product(tied=(True, False))
  def test_bfloat16_gradients_sum_in_float32(self, tied):
    model = tiny_model(tie_embeddings=tied, dtype="bfloat16")
    tokens = random_tokens((4, 64))
    where = jnp.ones(tokens.shape, bool).at[:, 0].set(False)

    def gradient(function):
      def loss(model):
        log_probs, entropies = function(model, tokens, where=where)
        return jnp.sum(log_probs - 0.3 * entropies)

      model_gradient = jax.jit(jax.grad(loss))(model)
      head = model_gradient.embedding if tied else model_gradient.head.kernel
      return np.asarray(head[...], np.float32)

    with mock.patch.object(log_probs_lib, "HEAD_CHUNK", 8):
      got = gradient(models.token_log_probs)
    expected = gradient(functools.partial(from_logits, temperature=1.0))
    # bfloat16 keeps 8 bits: one rounding of each chunk's gradients is 2^-9 of
    # them. 32 chunks summed in bfloat16 would be several percent off.
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    self.assertLess(error, 0.01)

  def test_a_mesh_gives_the_values_of_one_device(self):
    self._check_meshes("2x4")

  @pytest.mark.slow
  def test_other_meshes_give_the_values_of_one_device(self):
    self._check_meshes("8x1", "4x2", "1x8")

  def _check_meshes(self, *meshes):
    output = fake_devices.run_python(
      "-m", "tests.models.log_probs_on_meshes", *meshes
    )
    report = json.loads(output)
    self.assertLen(report, 2 * len(meshes))  # Heads tied and untied.
    for mesh in report:
      with self.subTest(**mesh):
        self.assertLess(mesh["value_gap"], 1e-5)
        self.assertLess(mesh["gradient_gap"], 1e-5)
        self.assertTrue(mesh["own_logits"])
        self.assertFalse(mesh["whole_logits"])

  def test_uniform_model_by_hand(self):
    # All weights 0 give equal logits: log-prob -log 37 = -3.6109, and the
    # entropy is its opposite, at any temperature.
    model = jax.tree.map(jnp.zeros_like, tiny_model())
    where = jnp.asarray([[False, True, False, True]])
    log_probs, entropies = score(
      model, random_tokens((1, 4)), where=where, temperature=2.0
    )
    expected = np.asarray([[0, 3.6109, 0, 3.6109]])
    assert_close((log_probs, entropies), (-expected, expected))

  def test_packed_segments_equal_separate_sequences(self):
    model = tiny_model()
    pieces = [random_tokens((1, n), seed=n) for n in (6, 4)]
    tokens = jnp.concatenate([*pieces, jnp.zeros((1, 2), int)], axis=1)
    segment_ids = jnp.asarray([[1] * 6 + [2] * 4 + [0] * 2])
    got = score(model, tokens, where=segment_ids > 0, segment_ids=segment_ids)
    alone = [
      score(model, piece, where=jnp.ones(piece.shape, bool)) for piece in pieces
    ]
    for values, parts in zip(got, zip(*alone, strict=True), strict=True):
      expected = jnp.concatenate([*parts, jnp.zeros((1, 2))], axis=1)
      assert_close(values, expected)
      # A segment's first token follows nothing, in particular not the token
      # that happens to lie before it.
      self.assertEqual(values[0, 0], 0)
      self.assertEqual(values[0, 6], 0)

  def test_a_nan_that_is_not_scored_reaches_nothing(self):
    model = tiny_model()
    tokens = random_tokens((1, 8))
    where = jnp.arange(8)[None] < 4

    def loss(hidden):
      with mock.patch.object(
        models.Decoder, "hidden_states", return_value=hidden
      ):
        return sum(
          x.sum() for x in models.token_log_probs(model, tokens, where=where)
        )

    hidden = model.hidden_states(tokens)
    spoilt = hidden.at[:, 3:].set(jnp.nan)
    value, grad = jax.value_and_grad(loss)(hidden)
    spoilt_value, spoilt_grad = jax.value_and_grad(loss)(spoilt)
    self.assertEqual(value, spoilt_value)
    np.testing.assert_array_equal(grad, spoilt_grad)

  @parameterized.product(tied=(True, False))
  def test_all_logits_are_never_alive(self, tied):
    config = models.DecoderConfig(
      vocab_size=50_000,
      hidden_size=8,
      intermediate_size=8,
      num_layers=1,
      num_heads=1,
      num_kv_heads=1,
      head_dim=8,
      tie_embeddings=tied,
    )
    # 16 rows of 512 tokens: 1.6 GB of logits, 102 MB in a chunk of 512.
    compiled, model = compiled_gradient(config, (16, 512))
    logits = 16 * 512 * 50_000 * 4
    self.assertLess(largest_buffer(compiled, model), 0.07 * logits)
    # A few arrays of a chunk's size at a time.
    temporary = compiled.memory_analysis().temp_size_in_bytes
    self.assertLess(temporary, 0.4 * logits)

  @parameterized.parameters(
    # XLA's CPU back end widens bfloat16: on other devices half of this. The
    # inputs of all 28 layers, and of every fourth.
    ("layer", 0.7),
    ("nested", 0.17),
  )
  @pytest.mark.slow
  def test_the_7b_update_holds_no_logits(self, remat, most):
    config = models.DecoderConfig(
      vocab_size=152_064,
      hidden_size=3584,
      intermediate_size=18_944,
      num_layers=28,
      num_heads=28,
      num_kv_heads=4,
      head_dim=128,
      tie_embeddings=False,
      dtype="bfloat16",
    )
    compiled, model = compiled_gradient(config, (1, 5632), remat=remat)
    logits = 5632 * 152_064 * 4
    self.assertLess(largest_buffer(compiled, model), most * logits)
    self.assertLess(
      largest_buffer(compiled, model, dimension=152_064), 0.1 * logits
    )

  def test_equals_what_sampling_through_the_cache_records(self):
    model = tiny_model()
    temperature, num_steps = 0.8, 20
    tokens = np.zeros((3, 30), int)
    prompts = np.array([10, 4, 1])
    for row, length in enumerate(prompts):
      tokens[row, :length] = random_tokens((length,), seed=row)

    @jax.jit
    def step(cache, new, starts, counts, key):
      hidden, cache = model.extend(cache, new, starts, counts, attend_length=64)
      last = hidden[jnp.arange(3), counts - 1]
      scores = jax.nn.log_softmax(model.unembed(last) / temperature)
      chosen = jax.random.categorical(key, scores)
      entropy = -jnp.sum(jnp.exp(scores) * scores, axis=-1)
      return cache, chosen, scores[jnp.arange(3), chosen], entropy

    cache = model.init_cache(3, 64)
    new, starts, counts = jnp.asarray(tokens[:, :10]), prompts * 0, prompts
    sampled = np.zeros((2, 3, 30), np.float32)
    where = np.zeros((3, 30), bool)
    for i in range(num_steps):
      cache, chosen, log_prob, entropy = step(
        cache, new, jnp.asarray(starts), jnp.asarray(counts), jax.random.key(i)
      )
      starts = starts + counts
      for row, at in enumerate(starts):
        tokens[row, at] = chosen[row]
        sampled[:, row, at] = log_prob[row], entropy[row]
        where[row, at] = True
      new, counts = chosen[:, None], np.ones(3, int)
    got = score(
      model,
      jnp.asarray(tokens),
      where=jnp.asarray(where),
      temperature=temperature,
    )
    assert_close(np.asarray(got), sampled)
