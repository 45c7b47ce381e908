"""Tests of configuration and checkpoint exchange, torch not needed."""

import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from absl.testing import parameterized

from rapo_jax import models
from rapo_jax.models import huggingface
from tests.tiny_decoder import tiny_decoder


def tiny_model(**changes) -> models.Decoder:
  return tiny_decoder(
    **{
      "vocab_size": 31,
      "intermediate_size": 24,
      "head_dim": 6,
      "tie_embeddings": False,
      "rope": models.RopeConfig(theta=5_000.0),
      **changes,
    }
  )


class FingerprintTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)

  def fingerprint(self, model, **options):
    models.save_pretrained(model, self.root / "model", **options)
    return models.fingerprint(self.root / "model")

  def test_is_that_of_the_model_and_not_of_its_files(self):
    model = tiny_model()
    whole = self.fingerprint(model)
    self.assertLen(whole, 16)
    self.assertEqual(self.fingerprint(model, max_shard_bytes=2000), whole)

  def test_changes_with_a_weight_a_dtype_and_the_configuration(self):
    model = tiny_model()
    moved = jax.tree.map(jnp.copy, model)
    moved.final_norm.scale[...] += 1e-3
    others = (
      moved,
      model.astype("bfloat16"),
      tiny_model(rms_norm_eps=1e-5),
    )
    prints = {self.fingerprint(other) for other in (model, *others)}
    self.assertLen(prints, 4)


class CheckpointTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name) / "model"

  def assert_same(self, first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)

  def tensors(self):
    return safetensors.numpy.load_file(self.folder / "model.safetensors")

  def write(self, tensors):
    safetensors.numpy.save_file(tensors, self.folder / "model.safetensors")

  @parameterized.parameters(True, False)
  def test_survives_a_round_trip(self, tied):
    model = tiny_model(tie_embeddings=tied)
    models.save_pretrained(model, self.folder)
    loaded = models.from_pretrained(self.folder)
    self.assertEqual(loaded.config, model.config)
    self.assert_same(loaded, model)
    self.assertEqual("lm_head.weight" in self.tensors(), not tied)
    self.assertEqual(
      sorted(path.name for path in self.folder.iterdir()),
      ["config.json", "generation_config.json", "model.safetensors"],
    )

  def test_names_and_shapes_are_those_of_transformers(self):
    models.save_pretrained(tiny_model(num_layers=1), self.folder)
    layer = "model.layers.0."
    self.assertEqual(
      {name: value.shape for name, value in self.tensors().items()},
      {
        "model.embed_tokens.weight": (31, 16),
        layer + "input_layernorm.weight": (16,),
        layer + "self_attn.q_proj.weight": (24, 16),
        layer + "self_attn.q_proj.bias": (24,),
        layer + "self_attn.k_proj.weight": (12, 16),
        layer + "self_attn.k_proj.bias": (12,),
        layer + "self_attn.v_proj.weight": (12, 16),
        layer + "self_attn.v_proj.bias": (12,),
        layer + "self_attn.o_proj.weight": (16, 24),
        layer + "post_attention_layernorm.weight": (16,),
        layer + "mlp.gate_proj.weight": (24, 16),
        layer + "mlp.up_proj.weight": (24, 16),
        layer + "mlp.down_proj.weight": (16, 24),
        "model.norm.weight": (16,),
        "lm_head.weight": (31, 16),
      },
    )

  def test_bfloat16_is_written_as_such_and_read_as_asked(self):
    model = tiny_model(dtype="bfloat16")
    models.save_pretrained(model, self.folder)
    for value in self.tensors().values():
      self.assertEqual(value.dtype, ml_dtypes.bfloat16)
    same = models.from_pretrained(self.folder, dtype=jnp.bfloat16)
    self.assert_same(same, model)
    wide = models.from_pretrained(self.folder)
    self.assertEqual(
      wide.config, dataclasses.replace(model.config, dtype="float32")
    )
    self.assert_same(
      jax.tree.leaves(wide),
      [x.astype("float32") for x in jax.tree.leaves(model)],
    )

  def test_reads_shards(self):
    model = tiny_model()
    models.save_pretrained(model, self.folder)
    tensors = self.tensors()
    (self.folder / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(sorted(tensors)):
      weight_map[name] = f"model-0000{i % 2 + 1}-of-00002.safetensors"
    for shard in set(weight_map.values()):
      safetensors.numpy.save_file(
        {name: tensors[name] for name in tensors if weight_map[name] == shard},
        self.folder / shard,
      )
    (self.folder / "model.safetensors.index.json").write_text(
      json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8"
    )
    self.assert_same(models.from_pretrained(self.folder), model)

  def test_every_wrong_tensor_is_named_in_one_error(self):
    models.save_pretrained(tiny_model(), self.folder)
    tensors = self.tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    del tensors["lm_head.weight"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(6, np.float32)
    tensors["model.norm.weight"] = np.ones(17, np.float32)
    self.write(tensors)
    with self.assertRaises(ValueError) as caught:
      models.from_pretrained(self.folder)
    for part in (
      "model.layers.1.mlp.up_proj.weight is missing",
      "lm_head.weight is missing",
      "model.layers.0.self_attn.q_norm.weight is unknown",
      "model.norm.weight has shape (17,), not (16,)",
    ):
      self.assertIn(part, str(caught.exception))

  def test_a_tied_head_written_twice_is_read_once(self):
    model = tiny_model(tie_embeddings=True)
    models.save_pretrained(model, self.folder)
    tensors = self.tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    self.write(tensors)
    self.assert_same(models.from_pretrained(self.folder), model)

  def test_a_tied_head_that_differs_is_refused(self):
    models.save_pretrained(tiny_model(tie_embeddings=True), self.folder)
    tensors = self.tensors()
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1e-3
    self.write(tensors | {"lm_head.weight": head})
    with self.assertRaisesRegex(ValueError, "they differ: .*set tie_word_emb"):
      models.from_pretrained(self.folder)
    # None can tell what these hold: other dtypes, another shape.
    for other in (head.astype(np.float64), head.astype(np.int8), head[:-1]):
      self.write(tensors | {"lm_head.weight": other})
      with self.assertRaisesRegex(ValueError, "they differ: .*Delete lm_head"):
        models.check_pretrained(self.folder)
    # What is not a number is the same too where it stands in both.
    nan = np.full_like(head, np.nan)
    names = ("lm_head.weight", "model.embed_tokens.weight")
    self.write(tensors | dict.fromkeys(names, nan))
    models.check_pretrained(self.folder)

  def test_a_tied_head_alone_is_the_embedding(self):
    # As transformers takes it.
    model = tiny_model(tie_embeddings=True)
    models.save_pretrained(model, self.folder)
    tensors = self.tensors()
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    self.write(tensors)
    self.assert_same(models.from_pretrained(self.folder), model)

  def test_buffers_of_the_rotary_embedding_are_passed_over(self):
    model = tiny_model(model_type="llama", qkv_bias=False)
    models.save_pretrained(model, self.folder)
    buffers = {
      f"model.{name}": np.ones(3, np.float32)
      for name in (
        "layers.0.self_attn.rotary_emb.inv_freq",
        "layers.1.self_attn.rotary_emb.cos_cached",
        "rotary_emb.inv_freq",
      )
    }
    self.write(self.tensors() | buffers)
    self.assert_same(models.from_pretrained(self.folder), model)

  def test_other_names_are_not_passed_over(self):
    models.save_pretrained(tiny_model(), self.folder)
    name = "model.layers.0.self_attn.rotary_emb.weight"
    self.write(self.tensors() | {name: np.ones(3, np.float32)})
    with self.assertRaisesRegex(ValueError, "rotary_emb.weight is unknown"):
      models.from_pretrained(self.folder)

  def test_a_prefix_of_all_names_makes_a_short_message(self):
    models.save_pretrained(tiny_model(), self.folder)
    tensors = {f"module.{k}": v for k, v in self.tensors().items()}
    self.write(tensors)
    with self.assertRaisesRegex(
      ValueError, r"and \d+ more. Names begin with 'module.'"
    ) as caught:
      models.from_pretrained(self.folder)
    self.assertLess(len(str(caught.exception)), 700)

  def test_weights_that_are_there_twice_are_refused(self):
    # transformers reads the single file, vLLM the others.
    models.save_pretrained(tiny_model(), self.folder)
    whole = (self.folder / "model.safetensors").read_bytes()
    models.save_pretrained(tiny_model(), self.folder, max_shard_bytes=4000)
    (self.folder / "model.safetensors").write_bytes(whole)
    for read in (models.from_pretrained, models.fingerprint):
      with self.assertRaisesRegex(ValueError, "hold its weights once"):
        read(self.folder)

  def test_an_index_may_name_the_single_file(self):
    model = tiny_model()
    models.save_pretrained(model, self.folder)
    index = {"weight_map": dict.fromkeys(self.tensors(), "model.safetensors")}
    self.write_index(index)
    self.assert_same(models.from_pretrained(self.folder), model)

  def test_a_tensor_that_two_files_hold_is_refused(self):
    models.save_pretrained(tiny_model(), self.folder, max_shard_bytes=4000)
    second = next(self.folder.glob("model-00002-of-*"))
    tensors = safetensors.numpy.load_file(second)
    name, values = "model.norm.weight", np.ones(16, np.float32)
    safetensors.numpy.save_file(tensors | {name: values}, second)
    with self.assertRaisesRegex(ValueError, f"both hold {name}"):
      models.from_pretrained(self.folder)

  @parameterized.parameters(
    ({}, "must name the file of each tensor under weight_map"),
    ({"weight_map": []}, "under weight_map"),
    ({"weight_map": {"a": 1}}, "under weight_map"),
    ({"weight_map": {"a": "../a.safetensors"}}, "must name files beside it"),
  )
  def test_an_index_that_makes_no_sense_is_named(self, index, message):
    models.save_pretrained(tiny_model(), self.folder, max_shard_bytes=4000)
    self.write_index(index)
    with self.assertRaisesRegex(ValueError, message):
      models.from_pretrained(self.folder)

  def write_index(self, index):
    path = self.folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index), encoding="utf-8")

  def test_adapters_beside_a_model_are_refused(self):
    models.save_pretrained(tiny_model(), self.folder)
    (self.folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    with self.assertRaisesRegex(ValueError, "must hold no adapters"):
      models.from_pretrained(self.folder)

  @parameterized.parameters(
    b"[1]", b"null", b"{", b"", b'{"a": "\xff"}', b"[" * 9999
  )
  def test_a_broken_configuration_is_named(self, content):
    models.save_pretrained(tiny_model(), self.folder)
    (self.folder / "config.json").write_bytes(content)
    with self.assertRaisesRegex(ValueError, "config.json must "):
      models.from_pretrained(self.folder)

  def test_a_configuration_is_utf_8_whatever_the_locale(self):
    model = tiny_model()
    models.save_pretrained(model, self.folder)
    path = self.folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"note": "é 你好"}
    text = json.dumps(content, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    self.assert_same(models.from_pretrained(self.folder), model)

  def test_end_tokens_are_those_of_both_files(self):
    self.folder.mkdir()
    self.assertEqual(models.end_token_ids(self.folder), ())
    for name, ids in (("config", [5, 2]), ("generation_config", 7)):
      path = self.folder / f"{name}.json"
      path.write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    self.assertEqual(models.end_token_ids(self.folder), (2, 5, 7))

  @parameterized.parameters(
    ("<|im_end|>",), (-1,), (1.5,), (True,), ([[1]],), ([None],)
  )
  def test_an_end_token_that_is_no_id_is_named(self, ids):
    self.folder.mkdir()
    path = self.folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    with self.assertRaisesRegex(ValueError, "generation_config.json it is"):
      models.end_token_ids(self.folder)

  def test_absent_files_are_named(self):
    with self.assertRaisesRegex(FileNotFoundError, "config.json"):
      models.from_pretrained(self.folder)
    models.save_pretrained(tiny_model(), self.folder)
    (self.folder / "model.safetensors").unlink()
    with self.assertRaisesRegex(FileNotFoundError, "model.safetensors"):
      models.from_pretrained(self.folder)

  def test_tokenizer_goes_along_and_its_ids_into_the_configuration(self):
    tokenizer = mock.Mock(bos_token_id=None, eos_token_id=5, pad_token_id=0)
    tokenizer.save_pretrained.side_effect = lambda folder: (
      pathlib.Path(folder) / "tokenizer.json"
    ).write_text("{}", encoding="utf-8")
    models.save_pretrained(tiny_model(), self.folder, tokenizer=tokenizer)
    self.assertTrue((self.folder / "tokenizer.json").is_file())
    for name in ("config.json", "generation_config.json"):
      content = json.loads((self.folder / name).read_text(encoding="utf-8"))
      self.assertEqual(content["eos_token_id"], 5)
      self.assertEqual(content["pad_token_id"], 0)
      self.assertNotIn("bos_token_id", content)

  def test_an_earlier_export_survives_a_failure_and_is_replaced_otherwise(self):
    first = tiny_model()
    models.save_pretrained(first, self.folder)
    second = jax.tree.map(lambda x: x + 1, first)
    broken = mock.Mock(bos_token_id=None, eos_token_id=5, pad_token_id=0)
    broken.save_pretrained.side_effect = OSError("disk full")
    with self.assertRaisesRegex(OSError, "disk full"):
      models.save_pretrained(second, self.folder, tokenizer=broken)
    self.assert_same(models.from_pretrained(self.folder), first)
    models.save_pretrained(second, self.folder)
    self.assert_same(models.from_pretrained(self.folder), second)
    # Nothing is left beside it.
    self.assertEqual(list(self.folder.parent.iterdir()), [self.folder])

  @parameterized.parameters(
    (jnp.float32, jnp.bfloat16),
    (jnp.bfloat16, jnp.float16),
    (jnp.float16, jnp.float32),
  )
  def test_any_dtype_is_read_as_any_other(self, written, read):
    # Rounded by NumPy: XLA has no float16 on processors without F16C.
    model = jax.tree.map(
      lambda x: jnp.asarray(np.asarray(x).astype(written)), tiny_model()
    )
    models.save_pretrained(model, self.folder)
    self.assert_same(
      jax.tree.leaves(models.from_pretrained(self.folder, dtype=read)),
      [np.asarray(x).astype(read) for x in jax.tree.leaves(model)],
    )

  def test_other_dtypes_are_named(self):
    models.save_pretrained(tiny_model(), self.folder)
    tensors = self.tensors()
    tensors["model.norm.weight"] = np.ones(16, np.int32)
    self.write(tensors)
    with self.assertRaisesRegex(ValueError, "model.norm.weight has dtype I32"):
      models.from_pretrained(self.folder)

  @parameterized.parameters(
    {"qk_norm": True, "qkv_bias": False, "model_type": "qwen3"},
    {"qkv_bias": False, "model_type": "llama", "tie_embeddings": True},
    {"out_bias": True, "model_type": "llama"},
    {
      "rope": models.RopeConfig(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=16
      )
    },
  )
  def test_every_family_survives_a_round_trip(self, **changes):
    model = tiny_model(**changes)
    models.save_pretrained(model, self.folder)
    loaded = models.from_pretrained(self.folder)
    self.assertEqual(loaded.config, model.config)
    self.assert_same(loaded, model)

  def test_a_tensor_larger_than_a_block_is_transposed_in_several(self):
    model = tiny_model()
    models.save_pretrained(model, self.folder)
    with mock.patch.object(huggingface, "_BLOCK_BYTES", 3 * 16 * 4):
      self.assert_same(models.from_pretrained(self.folder), model)

  def test_devices_with_memory_of_their_own_are_filled_layer_by_layer(self):
    model = tiny_model()
    models.save_pretrained(model, self.folder)
    put, other = jax.device_put, mock.Mock(platform="gpu")

    def put_on_default(x, device=None):
      return put(x, None if device is other else device)

    with (
      mock.patch.object(jax, "devices", return_value=[other]),
      mock.patch.object(jax, "device_put", side_effect=put_on_default) as puts,
    ):
      loaded = models.from_pretrained(self.folder, dtype=jnp.float32)
    self.assert_same(loaded, model)
    largest = max(np.prod(call.args[0].shape) for call in puts.mock_calls)
    self.assertEqual(largest, 31 * 16)

  def test_the_model_can_be_donated(self):
    # Its memory was NumPy's, and the files are read-only.
    models.save_pretrained(tiny_model(), self.folder)
    loaded = models.from_pretrained(self.folder)
    add = jax.jit(lambda m: jax.tree.map(lambda x: x + 1, m), donate_argnums=0)
    expected = [np.asarray(x) + 1 for x in jax.tree.leaves(loaded)]
    self.assert_same(jax.tree.leaves(add(loaded)), expected)

  def test_broken_files_are_named(self):
    models.save_pretrained(tiny_model(), self.folder)
    weights = self.folder / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:4], whole[:200], whole[:-1], b"x" * 1000):
      weights.write_bytes(content)
      with self.assertRaisesRegex(ValueError, "model.safetensors must be a"):
        models.from_pretrained(self.folder)
    (self.folder / "config.json").write_text("{", encoding="utf-8")
    with self.assertRaisesRegex(ValueError, "config.json must be JSON"):
      models.from_pretrained(self.folder)

  def test_shards_that_the_index_names_and_are_absent_are_named(self):
    models.save_pretrained(tiny_model(), self.folder, max_shard_bytes=4000)
    for number in (2, 3):
      next(self.folder.glob(f"model-0000{number}-of-*")).unlink()
    with self.assertRaisesRegex(
      FileNotFoundError, "model-00002-of-.*, model-00003-of-"
    ):
      models.from_pretrained(self.folder)
