"""Tests of what export carries over, and of how it fails."""

import dataclasses
import errno
import json
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
import safetensors.numpy
from absl.testing import parameterized
from flax import nnx

from rapo_jax import models
from rapo_jax.models import export, tensor_files
from tests.models import real_configs


class SavePretrainedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)
    self.folder = self.root / "model"
    self.hf = real_configs.shrunk(
      real_configs.LLAMA_3_1_8B,
      eos_token_id=[1, 8, 9],
      transformers_version="4.42.3",
    )
    self.model = models.Decoder(
      models.DecoderConfig.from_hf(self.hf), rngs=nnx.Rngs(0)
    )

  def source(self, **changes):
    """A folder as a hub has it, weights left out: they are not read."""
    folder = self.root / "source"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
      json.dumps(self.hf | changes), encoding="utf-8"
    )
    (folder / "generation_config.json").write_text(
      '{"top_p": 0.9}', encoding="utf-8"
    )
    (folder / "tokenizer.json").write_text('{"a": 1}', encoding="utf-8")
    (folder / "chat_template.jinja").write_text(
      "{{ messages }}", encoding="utf-8"
    )
    (folder / "README.md").write_text("# Card", encoding="utf-8")
    return folder

  def read(self, name):
    return json.loads((self.folder / name).read_text(encoding="utf-8"))

  def assert_loads(self, model):
    jax.tree.map(
      np.testing.assert_array_equal, models.from_pretrained(self.folder), model
    )

  def test_carries_over_what_a_decoder_does_not_have(self):
    models.save_pretrained(self.model, self.folder, source=self.source())
    config = self.read("config.json")
    self.assertEqual(config["eos_token_id"], [1, 8, 9])
    self.assertEqual(config["transformers_version"], "4.42.3")
    self.assertEqual(config["pretraining_tp"], 1)
    # End tokens too, where the source's own file leaves them out.
    generation = {"eos_token_id": [1, 8, 9], "top_p": 0.9}
    self.assertEqual(self.read("generation_config.json"), generation)
    self.assertEqual(self.read("tokenizer.json"), {"a": 1})
    template = (self.folder / "chat_template.jinja").read_text(encoding="utf-8")
    self.assertEqual(template, "{{ messages }}")
    self.assertFalse((self.folder / "README.md").exists())
    self.assert_loads(self.model)

  def test_the_tokenizer_given_replaces_the_source_s(self):
    tokenizer = mock.Mock(bos_token_id=7, eos_token_id=5, pad_token_id=None)
    tokenizer.save_pretrained.side_effect = lambda folder: (
      pathlib.Path(folder) / "tokenizer.json"
    ).write_text('{"b": 2}', encoding="utf-8")
    models.save_pretrained(
      self.model, self.folder, tokenizer=tokenizer, source=self.source()
    )
    self.assertEqual(self.read("tokenizer.json"), {"b": 2})
    self.assertFalse((self.folder / "chat_template.jinja").exists())
    # The source knows three end tokens, and no first token.
    self.assertEqual(self.read("config.json")["eos_token_id"], [1, 8, 9])
    self.assertEqual(self.read("config.json")["bos_token_id"], 7)
    generation = self.read("generation_config.json")
    self.assertEqual(generation["eos_token_id"], [1, 5, 8, 9])

  def test_the_source_may_be_what_is_replaced(self):
    models.save_pretrained(self.model, self.folder, source=self.source())
    trained = jax.tree.map(lambda x: x + 1, self.model)
    models.save_pretrained(trained, self.folder, source=self.folder)
    self.assertEqual(self.read("generation_config.json")["top_p"], 0.9)
    self.assert_loads(trained)

  def test_what_the_weights_do_not_know_of_may_differ(self):
    config = dataclasses.replace(
      self.model.config, attention="xla", initializer_range=0.5
    )
    model = models.Decoder(config, rngs=nnx.Rngs(0))
    models.save_pretrained(model, self.folder, source=self.source())
    self.assertEqual(self.read("config.json")["initializer_range"], 0.5)

  def test_another_model_is_not_a_source(self):
    source = self.source(rms_norm_eps=1e-3, torch_dtype="bfloat16")
    with self.assertRaisesRegex(ValueError, "in rms_norm_eps 1e-05 and 0.001"):
      models.save_pretrained(self.model, self.folder, source=source)
    self.assertFalse(self.folder.exists())

  def test_files_are_the_format_s(self):
    models.save_pretrained(self.model, self.folder)
    ours = (self.folder / "model.safetensors").read_bytes()
    tensors = safetensors.numpy.load(ours)
    self.assertEqual(
      ours, safetensors.numpy.save(tensors, metadata={"format": "pt"})
    )

  def test_shards(self):
    limit = 20_000
    models.save_pretrained(self.model, self.folder, max_shard_bytes=limit)
    index = self.read("model.safetensors.index.json")
    files = sorted(self.folder.glob("*.safetensors"))
    self.assertGreater(len(files), 3)
    self.assertEqual(
      files[1].name, f"model-00002-of-{len(files):05d}.safetensors"
    )
    found, total = {}, 0
    for file in files:
      tensors = safetensors.numpy.load_file(file)
      size = sum(x.nbytes for x in tensors.values())
      self.assertLessEqual(size, limit)
      total += size
      found |= dict.fromkeys(tensors, file.name)
    self.assertEqual(found, index["weight_map"])
    self.assertEqual(index["metadata"]["total_size"], total)
    self.assertFalse((self.folder / "model.safetensors").exists())
    self.assert_loads(self.model)

  def test_a_tensor_above_the_limit_has_a_file_of_its_own(self):
    models.save_pretrained(self.model, self.folder, max_shard_bytes=1)
    weight_map = self.read("model.safetensors.index.json")["weight_map"]
    self.assertLen(set(weight_map.values()), len(weight_map))
    self.assert_loads(self.model)

  def test_tensors_are_fetched_one_at_a_time(self):
    fetched = []
    real = export._fetch

    def fetch(array, layout, layer):
      values = real(array, layout, layer)
      fetched.append(values.nbytes)
      return values

    with mock.patch.object(export, "_fetch", fetch):
      models.save_pretrained(self.model, self.folder)
    # The embedding, not a stack of layers.
    self.assertEqual(max(fetched), 97 * 32 * 4)

  def test_a_full_disk_leaves_the_earlier_export(self):
    models.save_pretrained(self.model, self.folder)
    write = tensor_files.write_weights

    def fill_disk(folder, *args):
      write(folder, *args)
      raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with (
      mock.patch.object(export, "write_weights", fill_disk),
      self.assertRaises(OSError) as caught,
    ):
      models.save_pretrained(
        jax.tree.map(lambda x: x + 1, self.model), self.folder
      )
    (note,) = caught.exception.__notes__
    total = sum(x.nbytes for x in jax.tree.leaves(self.model))
    self.assertIn(f"needs {total:,} bytes", note)
    self.assert_loads(self.model)
    self.assertEqual(list(self.root.iterdir()), [self.folder])

  def test_a_failed_rename_brings_the_earlier_export_back(self):
    models.save_pretrained(self.model, self.folder)
    rename = pathlib.Path.rename

    def fail_for_new(path, target):
      if ".new-" in path.name:
        raise OSError(errno.EACCES, "Permission denied")
      return rename(path, target)

    with (
      mock.patch.object(pathlib.Path, "rename", fail_for_new),
      self.assertRaises(OSError),
    ):
      models.save_pretrained(
        jax.tree.map(lambda x: x + 1, self.model), self.folder
      )
    self.assert_loads(self.model)
    self.assertEqual(list(self.root.iterdir()), [self.folder])
