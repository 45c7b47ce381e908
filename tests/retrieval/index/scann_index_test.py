import shutil
import subprocess
import sys

import numpy as np
import pytest

from rapo_jax.retrieval import ExactIndex
from rapo_jax.retrieval.index import scann_index
from rapo_jax.retrieval.index.mapped import MappedIndex


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
  exact = ExactIndex.build(vectors).search(queries, 3)
  hits = [
    np.isin(a, b) for a, b in zip(exact.ids, approximate.ids, strict=True)
  ]
  assert np.mean(hits) > 0.95
  assert np.mean(exact.ids[:, 0] == approximate.ids[:, 0]) > 0.96


@pytest.fixture(scope="module")
def vectors():
  return clustered(scann_index.BRUTE_FORCE_BELOW, 0)[0]


class TestParameters:
  def test_a_higher_target_searches_more_and_recalls_more(self, vectors):
    low, high = (
      scann_index.ScannIndex.build(vectors, recall_target=target).parameters
      for target in (0.5, 0.995)
    )
    assert low["leaves_to_search"] < high["leaves_to_search"]
    assert low["recall"] < high["recall"]
    assert low["recall"] >= 0.5
    assert high["recall"] >= 0.98
    assert high["recall_target"] == 0.995

  def test_what_no_parameters_reach_is_said(self, vectors, monkeypatch):
    # One candidate by hashes alone is not the nearest every time.
    monkeypatch.setattr(scann_index, "_MIN_REORDER", 1)
    monkeypatch.setattr(scann_index, "_MAX_REORDER", 1)
    index = scann_index.ScannIndex.build(vectors, recall_target=0.9999)
    parameters = index.parameters
    assert parameters["leaves_to_search"] == parameters["leaves"]
    assert parameters["recall"] < 0.9999

  def test_enough_is_found_where_few_leaves_hold_too_little(self, vectors):
    index = scann_index.ScannIndex.build(vectors, recall_target=0.5)
    index._chosen = scann_index._Chosen(
      leaves=index.parameters["leaves"], leaves_to_search=1, reorder=400
    )
    neighbors = index.search(vectors[:20], 300)
    assert (neighbors.ids >= 0).all()

  def test_trees_are_as_good_as_one(self, vectors):
    index = scann_index.ScannIndex.build(vectors, max_shard_vectors=7_000)
    assert index.parameters["trees"] == 3
    assert index.parameters["recall"] >= 0.97
    # Rows of the first, of the last, and beside the borders of all trees.
    rows = [0, 6_665, 6_666, 6_667, 13_333, 13_334, 19_999]
    neighbors = index.search(vectors[rows], 1)
    np.testing.assert_array_equal(neighbors.ids[:, 0], rows)

  def test_a_missing_tree_is_noticed(self, vectors, tmp_path):
    index = scann_index.ScannIndex.build(vectors, max_shard_vectors=10_000)
    index.save(tmp_path / "index")
    shutil.rmtree(tmp_path / "index" / "scann" / "10000")
    with pytest.raises(ValueError, match=r"1 of its 2 trees.*Copy"):
      scann_index.ScannIndex.load(tmp_path / "index")

  @pytest.mark.parametrize("target", [0.0, 1.0])
  def test_the_target_is_a_share(self, vectors, target):
    with pytest.raises(ValueError, match=r"between 0 and 1.*use ExactIndex"):
      scann_index.ScannIndex.build(vectors, recall_target=target)

  def test_steps_of_leaves(self):
    steps = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 50]
    assert list(scann_index._ladder(50)) == steps
    assert list(scann_index._ladder(1)) == [1]

  def test_nearest_others_by_hand(self):
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1], [1, 0]], np.float32)
    rows = np.array([0, 1, 2])
    queries = vectors[rows]
    nearest = scann_index._nearest_others(vectors, queries, rows, 1)
    np.testing.assert_allclose(nearest, [[1], [0.8], [0.8]])
    nearest = scann_index._nearest_others(vectors, queries, rows, 2)
    np.testing.assert_allclose(nearest, [[1, 0.6], [0.8, 0.6], [0.8, 0]])

  def test_ranks_of_the_nearest_others_by_hand(self, monkeypatch):
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]], np.float32)
    found = np.array([[2, 0, 1, 3], [0, 1, 2, -1]])
    monkeypatch.setattr(scann_index, "_candidates", lambda *_: found)
    rows = np.array([0, 2])
    queries = vectors[rows]
    nearest = scann_index._nearest_others(vectors, queries, rows, 2)
    # Row 0 has 3 and then 1 nearest, found at places 4 and 3: the best two are
    # there after 4. Row 2 has 1 and then 3, which is not found.
    ranks = scann_index._ranks(vectors, (), queries, rows, nearest, 1)
    np.testing.assert_array_equal(ranks, [[4, 4], [2, np.inf]])

  def test_more_neighbors_take_more_work(self, vectors):
    # Two builds have other leaves, so both choices are made on one.
    index = scann_index.ScannIndex.build(
      vectors, recall_target=0.9, neighbors=3
    )
    exact = ExactIndex.build(vectors).search(vectors[:300], 4).ids
    found = index.search(vectors[:300], 4).ids
    assert (
      np.mean([np.isin(a, b) for a, b in zip(exact, found, strict=True)]) >= 0.9
    )
    leaves = index.parameters["leaves"]
    one, three = (
      scann_index._tune(vectors, index._shards, leaves, 0.9, neighbors, 1.0)[0]
      for neighbors in (1, 3)
    )

    def work(chosen):
      codes = chosen.leaves_to_search * len(vectors) / leaves
      return codes + chosen.reorder * scann_index._CODES_A_RANKED

    assert work(one) < work(three)

  def test_queries_between_two_vectors(self):
    vectors = np.eye(4, dtype=np.float32)
    queries, rows = scann_index._queries(vectors, np.arange(4), 0.6)
    np.testing.assert_allclose(
      queries,
      [[0.6, 0, 0.8, 0], [0, 0.6, 0, 0.8], [0.8, 0, 0.6, 0], [0, 0.8, 0, 0.6]],
      atol=1e-6,
    )
    assert rows.tolist() == [-1] * 4
    # Both of them are neighbours.
    nearest = scann_index._nearest_others(vectors, queries, rows, 2)
    np.testing.assert_allclose(nearest, [[0.8, 0.6]] * 4, atol=1e-6)
    queries, rows = scann_index._queries(vectors, np.arange(4), 1.0)
    np.testing.assert_array_equal(queries, vectors)
    assert rows.tolist() == [0, 1, 2, 3]

  @pytest.mark.parametrize("cosine", [0.0, 1.1])
  def test_a_cosine_of_queries_lies_above_zero(self, vectors, cosine):
    with pytest.raises(ValueError, match=r"query_cosine must lie in \(0, 1\]"):
      scann_index.ScannIndex.build(vectors, query_cosine=cosine)

  @pytest.mark.parametrize("neighbors", [0, -1])
  def test_neighbors_are_at_least_one(self, vectors, neighbors):
    with pytest.raises(ValueError, match="at least 1"):
      scann_index.ScannIndex.build(vectors, neighbors=neighbors)

  def test_vectors_of_two_bytes_stay_in_their_file(self, vectors, tmp_path):
    half = np.lib.format.open_memmap(
      tmp_path / "half.npy", "w+", np.float16, vectors.shape
    )
    half[:] = vectors
    built = scann_index.ScannIndex.build(half)
    assert built._vectors.base is half or built._vectors is half
    built.save(tmp_path / "index")
    loaded = scann_index.ScannIndex.load(tmp_path / "index")
    assert loaded._vectors.dtype == np.float16
    found = loaded.search(vectors[:50], 1)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(50))
    assert found.scores.dtype == np.float32
    exact = MappedIndex.load(tmp_path / "index").search(vectors[:50], 1)
    np.testing.assert_array_equal(exact.scores, found.scores)

  def test_a_loaded_index_reads_its_vectors_from_the_file(
    self, vectors, tmp_path
  ):
    scann_index.ScannIndex.build(vectors).save(tmp_path / "index")
    loaded = scann_index.ScannIndex.load(tmp_path / "index")
    assert isinstance(loaded._vectors, np.memmap)
    # Four bits for two dimensions, in a byte each; centres, and assignments.
    tree = tmp_path / "index" / "scann"
    size = sum(f.stat().st_size for f in tree.rglob("*") if f.is_file())
    assert size < vectors.nbytes / 3


def test_below_the_tree_it_equals_exact_search_bit_for_bit():
  vectors, queries = clustered(3_000, 100)
  approximate = scann_index.ScannIndex.build(vectors).search(queries, 5)
  exact = ExactIndex.build(vectors).search(queries, 5)
  np.testing.assert_array_equal(exact.ids, approximate.ids)
  np.testing.assert_array_equal(exact.scores, approximate.scores)


def test_without_scann_building_says_what_to_use(monkeypatch):
  monkeypatch.setattr(scann_index, "is_scann_installed", lambda: False)
  with pytest.raises(ModuleNotFoundError, match="use ExactIndex"):
    scann_index.ScannIndex.build(np.zeros((1, 2), np.float32))


def test_an_index_of_another_kind_is_refused(tmp_path):
  vectors, _ = clustered(10, 0)
  ExactIndex.build(vectors).save(tmp_path / "index")
  with pytest.raises(ValueError, match="'exact', not 'scann'"):
    scann_index.ScannIndex.load(tmp_path / "index")


def test_a_pickle_in_the_folder_is_refused(tmp_path):
  vectors, _ = clustered(10, 0)
  scann_index.ScannIndex.build(vectors).save(tmp_path / "index")
  tree = tmp_path / "index" / "scann" / "0"
  tree.mkdir(parents=True)
  (tree / "scann_docids.pkl").write_bytes(b"")
  with pytest.raises(ValueError, match="is a pickle"):
    scann_index.ScannIndex.load(tmp_path / "index")


def test_importing_the_package_does_not_import_scann():
  code = (
    "import sys, rapo_jax.retrieval;"
    "assert not {'scann', 'torch', 'tensorflow'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
