"""Tests of where models are looked for; nothing is downloaded."""

import pathlib
import tempfile
from unittest import mock

import huggingface_hub
from absl.testing import parameterized
from flax import nnx
from huggingface_hub import errors

from rapo_jax import models
from rapo_jax.models import hub
from tests.models import real_configs


class LocalFolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def hub_gives(self, **behaviour):
    return mock.patch.object(huggingface_hub, "snapshot_download", **behaviour)

  def test_a_hub_s_name_is_downloaded(self):
    config = models.DecoderConfig.from_hf(
      real_configs.shrunk(real_configs.QWEN3_14B)
    )
    model = models.Decoder(config, rngs=nnx.Rngs(0))
    models.save_pretrained(model, self.folder)
    with self.hub_gives(return_value=str(self.folder)) as download:
      loaded = models.from_pretrained("Qwen/Qwen3-14B")
    self.assertEqual(loaded.config, config)
    self.assertEqual(download.call_args.args, ("Qwen/Qwen3-14B",))

  def test_a_name_that_is_not_in_the_cache_has_no_folder_yet(self):
    self.assertEqual(hub.cached_folder(self.folder), self.folder)
    found = mock.patch.object(
      huggingface_hub, "try_to_load_from_cache", return_value=None
    )
    with found:
      self.assertIsNone(hub.cached_folder("Qwen/Qwen3-14B"))

  @parameterized.parameters("m/a--b", "m/a..b", "m/x.git", "м/имя")
  def test_a_name_that_no_hub_takes_is_a_folder(self, name):
    self.assertFalse(hub.is_hub_id(name))
    self.assertEqual(hub.local_folder(name), pathlib.Path(name))

  def test_a_file_is_no_model(self):
    file = self.folder / "notes.txt"
    file.touch()
    with self.assertRaisesRegex(ValueError, "notes.txt is a file"):
      hub.local_folder(file)

  @parameterized.parameters(
    ("config.json", True),
    ("generation_config.json", True),
    ("model-00001-of-00008.safetensors", True),
    ("model.safetensors.index.json", True),
    ("tokenizer.json", True),
    ("tokenizer.model", True),
    ("merges.txt", True),
    ("chat_template.jinja", True),
    ("pytorch_model.bin", False),
    ("model.gguf", False),
    ("README.md", False),
    ("original/params.json", False),
    ("original/consolidated.00.pth", False),
  )
  def test_only_what_is_read_is_downloaded(self, name, wanted):
    with self.hub_gives(return_value=str(self.folder)) as download:
      hub.local_folder("Qwen/Qwen3-14B")
    patterns = {
      key: download.call_args.kwargs[key]
      for key in ("allow_patterns", "ignore_patterns")
    }
    kept = huggingface_hub.utils.filter_repo_objects([name], **patterns)
    self.assertEqual(list(kept), [name] if wanted else [])

  def test_folders_are_not_looked_for_on_the_hub(self):
    with self.hub_gives() as download:
      for path in (
        str(self.folder),
        self.folder,
        "./absent",
        "/absent/too",
        pathlib.Path("Qwen/Qwen3-14B"),
        "three/parts/deep",
      ):
        self.assertEqual(hub.local_folder(path), pathlib.Path(path))
    download.assert_not_called()

  def test_without_a_network_the_remedy_is_named(self):
    # The tests' environment forbids the network, and the cache is empty.
    with (
      mock.patch.object(
        huggingface_hub.constants, "HF_HUB_CACHE", str(self.folder)
      ),
      self.assertRaisesRegex(
        FileNotFoundError, "run `hf download Qwen/Absent`.*HF_HUB_OFFLINE"
      ),
    ):
      models.from_pretrained("Qwen/Absent")

  def test_a_name_that_the_hub_does_not_show(self):
    error = errors.RepositoryNotFoundError("401", response=mock.Mock())
    with (
      self.hub_gives(side_effect=error),
      self.assertRaisesRegex(FileNotFoundError, "meta/secret.*hf auth login"),
    ):
      hub.local_folder("meta/secret")
