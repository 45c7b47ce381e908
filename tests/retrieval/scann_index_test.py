import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from rapo_jax.retrieval import index as index_lib
from rapo_jax.retrieval import scann_index


def clustered(n, queries, dimension=48, seed=0):
  """Points around n / 50 centres, as keys of steps lie around questions."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(max(1, n // 50), dimension))
  points = centres[rng.integers(len(centres), size=n)]
  points = points + 0.3 * rng.normal(size=points.shape)
  points /= np.linalg.norm(points, axis=1, keepdims=True)
  asked = points[:queries] + 0.02 * rng.normal(size=(queries, dimension))
  asked /= np.linalg.norm(asked, axis=1, keepdims=True)
  return points.astype(np.float32), asked.astype(np.float32)


def test_a_tree_recalls_the_neighbours_of_clustered_vectors():
  vectors, queries = clustered(scann_index.BRUTE_FORCE_BELOW, 200)
  approximate = scann_index.ScannIndex.build(vectors).search(queries, 3)
  exact = index_lib.ExactIndex.build(vectors).search(queries, 3)
  hits = [
    np.isin(a, b) for a, b in zip(exact.ids, approximate.ids, strict=True)
  ]
  assert np.mean(hits) > 0.95
  assert np.mean(exact.ids[:, 0] == approximate.ids[:, 0]) > 0.97


def test_below_the_tree_it_equals_exact_search_bit_for_bit():
  vectors, queries = clustered(3_000, 100)
  approximate = scann_index.ScannIndex.build(vectors).search(queries, 5)
  exact = index_lib.ExactIndex.build(vectors).search(queries, 5)
  np.testing.assert_array_equal(exact.ids, approximate.ids)
  np.testing.assert_array_equal(exact.scores, approximate.scores)


def test_without_scann_the_default_is_exact(monkeypatch, caplog):
  assert scann_index.default_index_class() is scann_index.ScannIndex
  monkeypatch.setattr(scann_index, "is_scann_installed", lambda: False)
  with caplog.at_level(logging.WARNING):
    assert scann_index.default_index_class() is index_lib.ExactIndex
  assert "searching exactly instead" in caplog.text
  with pytest.raises(ModuleNotFoundError, match="use ExactIndex"):
    scann_index.ScannIndex.build(np.zeros((1, 2), np.float32))


def test_an_index_of_another_kind_is_refused(tmp_path):
  vectors, _ = clustered(10, 0)
  index_lib.ExactIndex.build(vectors).save(tmp_path / "index")
  with pytest.raises(ValueError, match="'exact', not 'scann'"):
    scann_index.ScannIndex.load(tmp_path / "index")


def test_load_index_picks_the_class_that_saved(tmp_path, monkeypatch):
  vectors, queries = clustered(10, 1)
  for index_cls in (index_lib.ExactIndex, scann_index.ScannIndex):
    index_cls.build(vectors).save(tmp_path / "index")
    assert type(scann_index.load_index(tmp_path / "index")) is index_cls
  monkeypatch.setattr(scann_index, "is_scann_installed", lambda: False)
  moved_to_a_mac = scann_index.load_index(tmp_path / "index")
  assert isinstance(moved_to_a_mac, index_lib.ExactIndex)
  assert moved_to_a_mac.search(queries, 1).ids[0, 0] == 0


def test_load_index_refuses_an_unknown_kind(tmp_path):
  meta = {"kind": "hnsw", "encoder_sha256": None}
  (tmp_path / index_lib.META_FILE).write_text(json.dumps(meta))
  with pytest.raises(ValueError, match="kind 'hnsw'; known are"):
    scann_index.load_index(tmp_path)


def test_a_pickle_in_the_folder_is_refused(tmp_path):
  vectors, _ = clustered(10, 0)
  scann_index.ScannIndex.build(vectors).save(tmp_path / "index")
  (tmp_path / "index" / "scann" / "scann_docids.pkl").write_bytes(b"")
  with pytest.raises(ValueError, match="a pickle"):
    scann_index.ScannIndex.load(tmp_path / "index")


def test_importing_the_package_does_not_import_scann():
  code = (
    "import sys, rapo_jax.retrieval;"
    "assert not {'scann', 'torch', 'tensorflow'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
