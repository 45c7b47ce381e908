"""Tests of reading and writing safetensors, against the library's own."""

import pathlib
import tempfile

import ml_dtypes
import numpy as np
import safetensors.numpy
from absl.testing import parameterized

from rapo_jax.models import tensor_files


class TensorFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    rng = np.random.default_rng(0)
    self.tensors = {
      "b": rng.normal(size=(3, 5)).astype(np.float32),
      "a": rng.normal(size=7).astype(np.float16),
      "a.b.c": rng.normal(size=(2, 3, 1)).astype(ml_dtypes.bfloat16),
    }

  def assert_maps(self, expected):
    stored = tensor_files.stored_tensors(self.folder)
    self.assertEqual(stored.keys(), expected.keys())
    for name, values in expected.items():
      got = stored[name].map()
      self.assertEqual(got.dtype, values.dtype)
      np.testing.assert_array_equal(got, values)
      with self.assertRaisesRegex(ValueError, "read-only"):
        got[...] = 0

  def to_write(self):
    return [
      tensor_files.TensorToWrite(
        name, values.dtype, values.shape, lambda values=values: values
      )
      for name, values in self.tensors.items()
    ]

  def test_reads_what_the_library_writes(self):
    safetensors.numpy.save_file(
      self.tensors, self.folder / "model.safetensors", metadata={"format": "pt"}
    )
    self.assert_maps(self.tensors)

  @parameterized.parameters(10**9, 60, 1)
  def test_the_library_reads_what_is_written(self, max_shard_bytes):
    tensor_files.write_weights(self.folder, self.to_write(), max_shard_bytes)
    self.assert_maps(self.tensors)
    found = {}
    for path in self.folder.glob("*.safetensors"):
      found |= safetensors.numpy.load_file(path)
    self.assertEqual(found.keys(), self.tensors.keys())
    for name, values in self.tensors.items():
      np.testing.assert_array_equal(found[name], values)

  def test_a_view_is_written_in_its_own_order(self):
    self.tensors = {"t": self.tensors["b"].T}
    tensor_files.write_weights(self.folder, self.to_write(), 10**9)
    self.assert_maps(self.tensors)

  def test_other_dtypes_are_found_and_not_readable(self):
    safetensors.numpy.save_file(
      {"a": np.ones(2, np.int8)}, self.folder / "model.safetensors"
    )
    (stored,) = tensor_files.stored_tensors(self.folder).values()
    self.assertEqual(stored.dtype_name, "I8")
    self.assertFalse(stored.readable)

  def test_an_index_that_is_no_json_is_named(self):
    (self.folder / "model.safetensors.index.json").write_text(
      "[", encoding="utf-8"
    )
    with self.assertRaisesRegex(ValueError, "index.json must be JSON"):
      tensor_files.stored_tensors(self.folder)
