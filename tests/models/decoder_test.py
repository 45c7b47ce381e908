"""Tests of the decoder: forward pass, cache, and use as a plain pytree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized
from flax import nnx

from rapo_jax import models
from rapo_jax.models import rope
from tests import tiny_decoder
from tests.closeness import assert_close

# Compiled once for all tests; unjitted, each call compiles its scan anew.
logits_of = jax.jit(models.Decoder.__call__)
hidden_of = jax.jit(models.Decoder.hidden_states, static_argnames="remat")


tiny_config = functools.partial(
  tiny_decoder.tiny_config,
  vocab_size=53,
  hidden_size=24,
  intermediate_size=40,
  num_layers=3,
  initializer_range=0.3,
)


@functools.cache
def tiny_model(**changes) -> models.Decoder:
  model = models.Decoder(tiny_config(**changes), rngs=nnx.Rngs(0))
  leaves, treedef = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  # Biases and norms start at 0 and 1, which would hide them.
  return treedef.unflatten(
    x + 0.1 * jax.random.normal(key, x.shape, x.dtype)
    for x, key in zip(leaves, keys, strict=True)
  )


def random_tokens(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 53, shape)


def oracle_logits(model, tokens):
  """One sequence, token by token, head by head, in float64 NumPy."""
  config = model.config
  half = config.head_dim // 2
  frequencies, rope_scale = rope.inverse_frequencies(
    config.rope, config.head_dim
  )
  group = config.num_heads // config.num_kv_heads

  def value(param):
    return np.asarray(param[...], np.float64)

  def norm(module, x, layer=None):
    scale = value(module.scale)
    scale = scale if layer is None else scale[layer]
    return scale * x / np.sqrt(np.mean(x * x) + config.rms_norm_eps)

  def linear(module, x, layer):
    y = x @ value(module.kernel)[layer]
    return y if module.bias is None else y + value(module.bias)[layer]

  def rotate(head, position):
    out = np.empty_like(head)
    for i in range(half):
      angle = position * frequencies[i]
      a, b = rope_scale * head[i], rope_scale * head[i + half]
      out[i] = a * np.cos(angle) - b * np.sin(angle)
      out[i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out

  stream = [value(model.embedding)[token] for token in tokens]
  for layer in range(config.num_layers):
    block = model.layers
    keys, values = [], []
    for t, x in enumerate(stream):
      normed = norm(block.attention_norm, x, layer)
      q, k, v = (
        linear(proj, normed, layer).reshape(-1, config.head_dim)
        for proj in (
          block.attention.query,
          block.attention.key,
          block.attention.value,
        )
      )
      if config.qk_norm:
        q, k = (
          [norm(module, head, layer) for head in heads]
          for module, heads in (
            (block.attention.query_norm, q),
            (block.attention.key_norm, k),
          )
        )
      keys.append([rotate(head, t) for head in k])
      values.append(v)
      heads = []
      for h in range(config.num_heads):
        scores = np.array(
          [
            rotate(q[h], t) @ keys[s][h // group] / config.head_dim**0.5
            for s in range(t + 1)
          ]
        )
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        heads.append(
          sum(w * values[s][h // group] for s, w in enumerate(weights))
        )
      x = x + linear(block.attention.out, np.concatenate(heads), layer)
      normed = norm(block.feed_forward_norm, x, layer)
      gate = linear(block.feed_forward.gate, normed, layer)
      up = linear(block.feed_forward.up, normed, layer)
      hidden = gate / (1 + np.exp(-gate)) * up
      stream[t] = x + linear(block.feed_forward.down, hidden, layer)
  head = (
    value(model.embedding).T if model.head is None else value(model.head.kernel)
  )
  return np.stack([norm(model.final_norm, x) @ head for x in stream])


# What sets a family apart, on top of `tiny_config`, which is a Qwen2.
VARIANTS = (
  {},
  {"num_kv_heads": 1},
  {"num_kv_heads": 4, "tie_embeddings": False},
  {"qk_norm": True, "qkv_bias": False},
  {"qkv_bias": False, "tie_embeddings": False},
  {"out_bias": True},
  {"rope": models.RopeConfig(rope_type="linear", factor=3.0)},
  {
    "rope": models.RopeConfig(
      rope_type="llama3", factor=8.0, original_max_position_embeddings=64
    )
  },
  {
    "rope": models.RopeConfig(
      rope_type="yarn", factor=4.0, original_max_position_embeddings=64
    )
  },
)


class ForwardTest(parameterized.TestCase):
  @parameterized.parameters({"changes": changes} for changes in VARIANTS)
  def test_matches_a_slow_oracle(self, changes):
    model = tiny_model(**changes)
    tokens = random_tokens((2, 9))
    logits = logits_of(model, jnp.asarray(tokens))
    self.assertEqual(logits.dtype, jnp.float32)
    for row, got in zip(tokens, logits, strict=True):
      assert_close(got, oracle_logits(model, row))

  def test_packed_segments_equal_separate_sequences(self):
    model = tiny_model()
    lengths = (5, 1, 7)
    pieces = [random_tokens(n, seed=n) for n in lengths]
    tokens = np.concatenate([*pieces, np.zeros(3, int)])[None]
    segment_ids = np.repeat([1, 2, 3, 0], [*lengths, 3])[None]
    logits = logits_of(
      model, jnp.asarray(tokens), segment_ids=jnp.asarray(segment_ids)
    )
    self.assertTrue(np.isfinite(logits).all())
    alone = [logits_of(model, jnp.asarray(piece[None]))[0] for piece in pieces]
    assert_close(logits[0, :-3], np.concatenate(alone))

  def test_positions_can_be_given(self):
    # Rotary embeddings see differences only: a shift changes nothing, a
    # stretch does.
    model = tiny_model()
    tokens = jnp.asarray(random_tokens((1, 6)))
    default = logits_of(model, tokens)
    shifted = logits_of(model, tokens, positions=jnp.arange(6)[None] + 100)
    stretched = logits_of(model, tokens, positions=3 * jnp.arange(6)[None])
    assert_close(shifted, default)
    self.assertGreater(np.abs(stretched - default).max(), 1e-2)

  @parameterized.parameters("nested", "layer", "attention", "dots")
  def test_remat_changes_no_value_and_no_gradient(self, policy):
    model = tiny_model(num_layers=4)
    tokens = jnp.asarray(random_tokens((2, 7)))

    def loss(model, remat):
      return jnp.sum(hidden_of(model, tokens, remat=remat) ** 2)

    plain = jax.value_and_grad(loss)(model, "none")
    remat = jax.value_and_grad(loss)(model, policy)
    assert_close(remat, plain)


class ExtendTest(parameterized.TestCase):
  @parameterized.parameters({"changes": changes} for changes in VARIANTS)
  def test_every_variant_gives_the_full_forward(self, changes):
    model = tiny_model(**changes)
    tokens = jnp.asarray(random_tokens((1, 12)))
    extend = functools.partial(model.extend, attend_length=64)
    first, cache = extend(
      model.init_cache(1, 64), tokens[:, :7], jnp.zeros(1, int), jnp.full(1, 7)
    )
    second, _ = extend(cache, tokens[:, 7:], jnp.full(1, 7), jnp.full(1, 5))
    assert_close(
      jnp.concatenate([first, second], axis=1), hidden_of(model, tokens)
    )

  @parameterized.parameters({"changes": changes} for changes in VARIANTS)
  def test_layers_one_by_one_give_the_same(self, changes):
    model = tiny_model(**changes)
    arguments = (
      model.init_cache(2, 64),
      jnp.asarray(random_tokens((2, 5))),
      jnp.zeros(2, int),
      jnp.asarray([5, 3]),
    )
    stacked = model.extend(*arguments, attend_length=64)
    layers = model.unstack()
    self.assertLen(layers, model.config.num_layers)
    got = model.extend(*arguments, attend_length=64, layers=layers)
    assert_close(got, stacked)

  @parameterized.parameters(64, 128)
  def test_any_cut_into_calls_gives_the_full_forward(self, attend_length):
    model = tiny_model()
    tokens = random_tokens((2, 40))
    # Row 0 and row 1 are fed in pieces of other sizes; 0 is a row that waits.
    counts = [(17, 5), (1, 0), (0, 8), (3, 1), (1, 1), (18, 10), (0, 15)]
    extend = jax.jit(
      functools.partial(models.Decoder.extend, attend_length=attend_length)
    )
    cache = model.init_cache(2, 128)
    starts = np.zeros(2, int)
    got = np.zeros((2, 40, 24), np.float32)
    for count in counts:
      chunk = np.zeros((2, 18), int)
      for row, n in enumerate(count):
        chunk[row, :n] = tokens[row, starts[row] : starts[row] + n]
      hidden, cache = extend(
        model, cache, chunk, jnp.asarray(starts), jnp.asarray(count)
      )
      self.assertTrue(np.isfinite(hidden).all())
      for row, n in enumerate(count):
        got[row, starts[row] : starts[row] + n] = hidden[row, :n]
      starts = starts + count
    self.assertEqual(starts.tolist(), [40, 40])
    expected = hidden_of(model, jnp.asarray(tokens))
    assert_close(got, expected)
    # Tokens that were not real wrote nothing.
    for part in cache:
      # Positions behind the row, blocks and heads away.
      rows = jnp.moveaxis(part, 1, 3)
      rows = rows.reshape(*rows.shape[:3], -1, rows.shape[-1])
      self.assertEqual(float(jnp.abs(rows[..., 40:, :]).max()), 0)

  def test_crosses_block_boundaries(self):
    model = tiny_model()
    tokens = random_tokens((1, 150))
    cache = model.init_cache(1, 192)
    hidden, _ = model.extend(
      cache,
      jnp.asarray(tokens),
      jnp.zeros(1, int),
      jnp.full(1, 150),
      attend_length=192,
    )
    expected = hidden_of(model, jnp.asarray(tokens))
    assert_close(hidden, expected)

  def decode(self, tokens, prompts, attend_length, num_steps=12):
    """Prefills, then decodes greedily inside one `while_loop`."""
    model = tiny_model()

    @jax.jit
    def run(model, tokens, prompts):
      batch = tokens.shape[0]
      cache = model.init_cache(batch, 256)
      hidden, cache = model.extend(
        cache,
        tokens,
        jnp.zeros_like(prompts),
        prompts,
        attend_length=attend_length,
      )
      last = hidden[jnp.arange(batch), prompts - 1]

      def step(carry):
        index, cache, hidden, logits = carry
        now = model.unembed(hidden)
        logits = logits.at[index].set(now)
        hidden, cache = model.extend(
          cache,
          jnp.argmax(now, axis=-1)[:, None],
          prompts + index,
          jnp.ones_like(prompts),
          attend_length=attend_length,
        )
        return index + 1, cache, hidden[:, 0], logits

      logits = jnp.zeros((num_steps, batch, model.config.vocab_size))
      carry = (0, cache, last, logits)
      return jax.lax.while_loop(lambda c: c[0] < num_steps, step, carry)[3]

    return np.asarray(run(model, jnp.asarray(tokens), jnp.asarray(prompts)))

  def test_longer_attend_length_changes_no_bit(self):
    tokens = random_tokens((3, 40))
    prompts = np.array([40, 3, 25])
    short = self.decode(tokens, prompts, 64)
    np.testing.assert_array_equal(short, self.decode(tokens, prompts, 128))
    np.testing.assert_array_equal(short, self.decode(tokens, prompts, 256))

  def test_a_row_does_not_depend_on_its_neighbours_or_its_place(self):
    # Row 2 ends within one KV block. At first its neighbours do too; then
    # they reach into the third, which is read for all rows.
    tokens = random_tokens((16, 150))
    prompts = np.random.default_rng(1).integers(1, 40, 16)
    got = self.decode(tokens, prompts, 192)
    others = random_tokens((16, 150), seed=5)
    other_prompts = np.random.default_rng(2).integers(100, 150, 16)
    others[11], other_prompts[11] = tokens[2], prompts[2]
    moved = self.decode(others, other_prompts, 192)
    np.testing.assert_array_equal(got[:, 2], moved[:, 11])

  def test_the_cache_is_updated_in_place(self):
    model = tiny_model()

    @functools.partial(jax.jit, donate_argnums=1)
    def decode(model, cache):
      def step(index, cache):
        where = jnp.full(64, index)
        new = jnp.zeros((64, 1), jnp.int32)
        return model.extend(
          cache, new, where, jnp.ones_like(where), attend_length=512
        )[1]

      return jax.lax.fori_loop(0, 100, step, cache)

    cache = jax.eval_shape(lambda: model.init_cache(64, 512))
    memory = decode.lower(model, cache).compile().memory_analysis()
    # One copy of the keys alone would be 6 MB; scratch is a few KV blocks.
    self.assertGreater(memory.alias_size_in_bytes, 2 * 6e6)
    self.assertLess(memory.temp_size_in_bytes, 3e6)

  def test_wrong_lengths_name_the_rule_and_the_value(self):
    model = tiny_model()
    cache = model.init_cache(1, 64)
    call = functools.partial(
      model.extend,
      cache,
      jnp.zeros((1, 1), int),
      jnp.zeros(1, int),
      jnp.ones(1, int),
    )
    with self.assertRaisesRegex(ValueError, "attend_length.*multiple.*65"):
      call(attend_length=65)
    with self.assertRaisesRegex(ValueError, "128 > 64"):
      call(attend_length=128)
    with self.assertRaisesRegex(ValueError, "max_length.*100"):
      model.init_cache(1, 100)


class PytreeTest(parameterized.TestCase):
  def test_trains_with_plain_jax_and_optax(self):
    model = models.Decoder(tiny_config(), rngs=nnx.Rngs(3))
    tokens = jnp.asarray(random_tokens((4, 12)))
    where = jnp.ones(tokens.shape, bool)
    optimizer = optax.adamw(3e-2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(model, state):
      def loss(model):
        log_probs, _ = models.token_log_probs(model, tokens, where=where)
        return -log_probs.sum()

      value, grads = jax.value_and_grad(loss)(model)
      updates, state = optimizer.update(grads, state, model)
      return optax.apply_updates(model, updates), state, value

    state = optimizer.init(model)
    losses = []
    for _ in range(8):
      model, state, value = update(model, state)
      losses.append(float(value))
    self.assertIsInstance(model, models.Decoder)
    self.assertLess(losses[-1], 0.5 * losses[0])
    self.assertEqual(update._cache_size(), 1)

  def test_two_models_of_one_config_have_one_structure(self):
    first, second = (
      models.Decoder(tiny_config(), rngs=nnx.Rngs(seed)) for seed in (0, 1)
    )
    self.assertEqual(jax.tree.structure(first), jax.tree.structure(second))

  def test_initial_values_are_those_of_the_family(self):
    config = tiny_config(hidden_size=256, initializer_range=0.02)
    model = models.Decoder(config, rngs=nnx.Rngs(0))
    layers = model.layers
    for kernel in (
      model.embedding,
      layers.attention.query.kernel,
      layers.feed_forward.down.kernel,
    ):
      self.assertAlmostEqual(float(jnp.std(kernel[...])), 0.02, delta=0.001)
    # Each layer has its own draw.
    first, second = layers.attention.query.kernel[...][:2]
    self.assertGreater(float(jnp.abs(first - second).max()), 0.01)
    self.assertTrue((layers.attention.query.bias[...] == 0).all())
    self.assertTrue((layers.attention_norm.scale[...] == 1).all())
    self.assertIsNone(layers.attention.out.bias)

  def test_bfloat16_stays_bfloat16_and_logits_are_float32(self):
    model = models.Decoder(tiny_config(dtype="bfloat16"), rngs=nnx.Rngs(0))
    tokens = jnp.asarray(random_tokens((1, 5)))
    self.assertEqual(hidden_of(model, tokens).dtype, jnp.bfloat16)
    self.assertEqual(logits_of(model, tokens).dtype, jnp.float32)
    hidden, cache = model.extend(
      model.init_cache(1, 64),
      tokens,
      jnp.zeros(1, int),
      jnp.full(1, 5),
      attend_length=64,
    )
    self.assertEqual(hidden.dtype, jnp.bfloat16)
    self.assertEqual(cache.keys.dtype, jnp.bfloat16)
