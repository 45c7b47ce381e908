"""Tests of reading and writing `config.json`."""

import copy

import jax
import numpy as np
import transformers
from absl.testing import parameterized
from flax import nnx

from rapo_jax import models
from tests.models import real_configs
from tests.tiny_decoder import tiny_config

QWEN = real_configs.QWEN2_5_7B


def newer_spelling(config):
  """What transformers 5 writes for what transformers 4 wrote."""
  renamed = {
    "rope_theta": None,
    "rope_scaling": None,
    "torch_dtype": "dtype",
  }
  content = {k: v for k, v in config.items() if k not in renamed}
  scaling = dict(config.get("rope_scaling") or {"type": "default"})
  rope_type = scaling.pop("type", None) or scaling.pop("rope_type")
  content["rope_parameters"] = {
    "rope_type": rope_type,
    "rope_theta": config["rope_theta"],
    **scaling,
  }
  content["dtype"] = config["torch_dtype"]
  if config["model_type"] != "llama":
    layers = config["num_hidden_layers"]
    content["layer_types"] = ["full_attention"] * layers
  return content


class FromHfTest(parameterized.TestCase):
  def test_every_field_is_read(self):
    # A value that no default has for each.
    config = models.DecoderConfig.from_hf(
      real_configs.LLAMA_3_2_1B
      | {"initializer_range": 0.01, "attention_bias": True, "head_dim": 32}
    )
    expected = models.DecoderConfig(
      vocab_size=128256,
      hidden_size=2048,
      intermediate_size=8192,
      num_layers=16,
      num_heads=32,
      num_kv_heads=8,
      head_dim=32,
      rope=models.RopeConfig(
        theta=500_000.0,
        rope_type="llama3",
        factor=32.0,
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
      ),
      rms_norm_eps=1e-5,
      tie_embeddings=True,
      max_position_embeddings=131072,
      qkv_bias=True,
      out_bias=True,
      qk_norm=False,
      initializer_range=0.01,
      model_type="llama",
      dtype="bfloat16",
    )
    self.assertEqual(config, expected)

  @parameterized.named_parameters(
    (name, name) for name in real_configs.PARAMETERS
  )
  def test_published_models(self, name):
    hf = real_configs.ALL[name]
    config = models.DecoderConfig.from_hf(hf)
    with self.subTest("both spellings say the same"):
      newer = models.DecoderConfig.from_hf(newer_spelling(hf))
      self.assertEqual(newer, config)
    with self.subTest("survives a round trip"):
      self.assertEqual(models.DecoderConfig.from_hf(config.to_hf()), config)
    with self.subTest("has the published number of parameters"):
      shapes = jax.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))
      total = sum(x.size for x in jax.tree.leaves(shapes))
      self.assertEqual(total, real_configs.PARAMETERS[name])

  @parameterized.product(
    name=tuple(real_configs.ALL), spelling=(dict, newer_spelling)
  )
  def test_transformers_reads_what_we_write_as_it_reads_the_original(
    self, name, spelling
  ):
    original = spelling(real_configs.ALL[name])
    written = models.DecoderConfig.from_hf(original).to_hf()
    theirs, ours = (
      # They write into what they are given.
      transformers.AutoConfig.for_model(**copy.deepcopy(content)).to_dict()
      for content in (original, written)
    )
    for key in (written.keys() & theirs.keys()) - {"rope_parameters"}:
      self.assertEqual(ours[key], theirs[key], key)
    # We name defaults of yarn that the original leaves out.
    rope = theirs["rope_parameters"]
    rope.pop("type", None)
    self.assertEqual(rope, {key: ours["rope_parameters"][key] for key in rope})

  @parameterized.parameters("qwen2", "qwen3", "llama")
  def test_silence_means_what_it_means_to_transformers(self, family):
    sizes = {
      "vocab_size": 31,
      "hidden_size": 4096,
      "intermediate_size": 24,
      "num_hidden_layers": 1,
      "num_attention_heads": 32,
    }
    config = models.DecoderConfig.from_hf({"model_type": family, **sizes})
    theirs = transformers.AutoConfig.for_model(family, **sizes)
    self.assertEqual(config.num_kv_heads, theirs.num_key_value_heads)
    self.assertEqual(
      config.head_dim, getattr(theirs, "head_dim", None) or 4096 // 32
    )
    self.assertEqual(config.rms_norm_eps, theirs.rms_norm_eps)
    self.assertEqual(config.rope.theta, theirs.rope_parameters["rope_theta"])
    self.assertEqual(config.rope.rope_type, theirs.rope_parameters["rope_type"])
    self.assertEqual(config.tie_embeddings, theirs.tie_word_embeddings)
    self.assertEqual(
      config.max_position_embeddings, theirs.max_position_embeddings
    )
    self.assertEqual(config.initializer_range, theirs.initializer_range)
    self.assertEqual(
      config.qkv_bias, family == "qwen2" or theirs.attention_bias
    )

  @parameterized.parameters(
    ({"model_type": "gemma"}, "one of qwen2, qwen3, llama, got 'gemma'"),
    (
      {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
      "one of default, linear, llama3, yarn, got 'dynamic'",
    ),
    ({"rope_parameters": {"rope_type": "llama3"}}, "must have factor, low"),
    ({"rope_scaling": {"type": "linear"}}, "linear must have factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "at least 1.*0.5"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.*0.5"),
    ({"hidden_act": "gelu"}, "'silu'.*'gelu'"),
    ({"mlp_bias": True}, "mlp_bias must be false"),
    ({"quantization_config": {"bits": 4}}, "unquantized"),
    ({"use_sliding_window": True}, "sliding window"),
    ({"layer_types": ["sliding_attention"]}, "sliding window"),
    ({"layer_types": 5}, "layer_types must be a list of texts, got 5"),
    ({"layer_types": [["x"]]}, "layer_types must be a list of texts"),
    ({"model_type": ["qwen2"]}, r"one of qwen2.*got \['qwen2'\]"),
    ({"num_key_value_heads": 3}, "multiple.*28 and 3"),
    ({"dtype": "float8"}, "bfloat16.*'float8'"),
    ({"compression_config": {"format": "int4"}}, "unquantized"),
    # A type left out would leave the factor out in silence.
    ({"rope_scaling": {"factor": 4.0}}, "theta alone, .* has factor=4.0 too"),
    (
      {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}},
      "linear reads factor, .* has beta_fast=1 too",
    ),
    (
      {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}},
      "mrope_section=",
    ),
    # transformers passes over it, and vLLM multiplies by it.
    (
      {"rope_scaling": {"type": "yarn", "factor": 4.0, "attn_factor": 0.878}},
      r"attn_factor=0.878 too; write attention_factor = attn_factor \*",
    ),
    (
      {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fst": 32}},
      "beta_fst=32 too; name the type",
    ),
    (
      {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
      "one each for full_attention",
    ),
  )
  def test_what_is_not_computed_is_an_error(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      models.DecoderConfig.from_hf(QWEN | changes)

  def test_missing_fields_are_named(self):
    with self.assertRaisesRegex(ValueError, "vocab_size, hidden_size"):
      models.DecoderConfig.from_hf({"model_type": "qwen2"})
    with self.assertRaisesRegex(ValueError, "must have num_hidden_layers"):
      models.DecoderConfig.from_hf(QWEN | {"num_hidden_layers": None})

  @parameterized.parameters(
    ("hidden_size", "3584", "a positive integer"),
    ("num_attention_heads", 0, "a positive integer"),
    ("num_key_value_heads", -4, "a positive integer"),
    ("vocab_size", 152064.0, "a positive integer"),
    ("head_dim", True, "a positive integer"),
    ("rms_norm_eps", "1e-6", "a positive number"),
    ("rope_theta", float("nan"), "a positive number"),
    ("tie_word_embeddings", "false", "true or false"),
    ("rope_scaling", "linear", "an object"),
    ("rope_scaling", {"type": ["linear"]}, "rope_type must be a text"),
    ("rope_scaling", {"type": "linear", "factor": "2"}, "must be a number"),
  )
  def test_values_of_another_kind_are_named(self, name, value, message):
    with self.assertRaisesRegex(ValueError, message):
      models.DecoderConfig.from_hf(QWEN | {name: value})

  @parameterized.parameters(
    "num_key_value_heads", "rope_theta", "rms_norm_eps", "head_dim"
  )
  def test_null_means_what_it_means_to_be_left_out(self, name):
    hf = {k: v for k, v in real_configs.LLAMA_3_2_1B.items() if k != name}
    self.assertEqual(
      models.DecoderConfig.from_hf(hf | {name: None}),
      models.DecoderConfig.from_hf(hf),
    )

  def test_two_names_of_one_activation(self):
    self.assertEqual(
      models.DecoderConfig.from_hf(QWEN | {"hidden_act": "swish"}),
      models.DecoderConfig.from_hf(QWEN),
    )

  def test_yarn_without_a_factor_takes_the_ratio_of_lengths(self):
    scaling = {"type": "yarn", "original_max_position_embeddings": 8192}
    config = models.DecoderConfig.from_hf(QWEN | {"rope_scaling": scaling})
    self.assertEqual(config.rope.factor, 32768 / 8192)

  def test_an_original_length_beside_the_rotary_parameters_wins(self):
    config = models.DecoderConfig.from_hf(
      real_configs.QWEN2_5_7B_LONG | {"original_max_position_embeddings": 4096}
    )
    self.assertEqual(config.rope.original_max_position_embeddings, 4096)


class ToHfTest(parameterized.TestCase):
  @parameterized.parameters(
    ("qwen2", {"qkv_bias": False}, "qkv_bias=False"),
    ("qwen2", {"qkv_bias": True, "qk_norm": True}, "qk_norm=False.*=True"),
    ("qwen3", {"qkv_bias": False}, "qk_norm=True.*=False"),
    ("llama", {"qkv_bias": True}, "qkv_bias=True, out_bias=False"),
    ("mistral", {}, "one of qwen2, qwen3, llama, got 'mistral'"),
  )
  def test_what_the_family_cannot_say_is_not_written(
    self, family, changes, message
  ):
    config = tiny_config(model_type=family, **changes)
    with self.assertRaisesRegex(ValueError, message):
      config.to_hf()


class RopeConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"rope_type": "su"}, "default, linear, llama3, yarn, got 'su'"),
    ({"factor": 4.0}, "default reads theta alone, got factor=4.0"),
    ({"rope_type": "linear", "mscale": 1.0}, "reads factor, got mscale=1.0"),
    ({"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings"),
    (
      {
        "rope_type": "llama3",
        "original_max_position_embeddings": 8,
        "low_freq_factor": 4.0,
      },
      "high_freq_factor must exceed low_freq_factor, got 4.0 and 4.0",
    ),
  )
  def test_what_would_have_no_meaning_is_an_error(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      models.RopeConfig(**fields)

  def test_what_is_used_is_what_the_type_reads(self):
    rope = models.RopeConfig(rope_type="linear", factor=2.0)
    self.assertEqual(rope.used(), {"factor": 2.0})
    self.assertEqual(models.RopeConfig().used(), {})


class ShrunkTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in real_configs.ALL)
  def test_runs_and_has_the_family_s_parts(self, name):
    hf = real_configs.shrunk(real_configs.ALL[name])
    config = models.DecoderConfig.from_hf(hf)
    model = models.Decoder(config, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, 97, (2, 40))
    logits = jax.jit(models.Decoder.__call__)(model, jax.numpy.asarray(tokens))
    self.assertTrue(np.isfinite(logits).all())
    attention = model.layers.attention
    self.assertEqual(attention.query.bias is not None, "Qwen2" in name)
    self.assertEqual(attention.query_norm is not None, "Qwen3" in name)
    self.assertEqual(model.head is None, hf["tie_word_embeddings"])
