"""The contract of `Index`, over all implementations."""

import functools
import json

import numpy as np
import pytest

from rapo_jax.retrieval import ExactIndex
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.index import kinds, scann_index
from rapo_jax.retrieval.index.mapped import MappedIndex


class Forest(scann_index.ScannIndex):
  """Several trees where one would do."""

  @classmethod
  def build(cls, vectors, *, encoder_sha256=None):
    return super().build(
      vectors, encoder_sha256=encoder_sha256, max_shard_vectors=9_000
    )


IMPLEMENTATIONS = {
  "exact": ExactIndex,
  "mapped": MappedIndex,
  "scann": scann_index.ScannIndex,
  "forest": Forest,
}
SIZES = [0, 1, 5, 100, 2_000, 20_000]
MANY = 200_000
DIMENSION = 24

pytestmark = pytest.mark.parametrize(
  "index_cls", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys()
)


@functools.cache
def built(index_cls, n):
  """An index over `unit_vectors(n)`, built once for all tests."""
  return index_cls.build(unit_vectors(n))


def unit_vectors(n, seed=0, dimension=DIMENSION):
  vectors = np.random.default_rng(seed).normal(size=(n, dimension))
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / np.maximum(norms, 1e-9)).astype(np.float32)


def oracle(vectors, queries, k):
  """Slow reference in float64."""
  scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
  ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return ids, np.take_along_axis(scores, ids, axis=1)


@pytest.mark.parametrize("n", SIZES)
def test_finds_the_nearest(index_cls, n):
  check_finds_the_nearest(built(index_cls, n), n)


@pytest.mark.slow
def test_finds_the_nearest_among_many(index_cls):
  check_finds_the_nearest(built(index_cls, MANY), MANY)


def check_finds_the_nearest(index, n):
  vectors, queries, k = unit_vectors(n), unit_vectors(99, seed=1), 3
  assert len(index) == n
  neighbors = index.search(queries, k)
  assert neighbors.ids.shape == neighbors.scores.shape == (99, k)
  assert neighbors.ids.dtype == np.int64
  assert neighbors.scores.dtype == np.float32
  ids, scores = oracle(vectors, queries, k)
  real = min(n, k)
  if n < scann_index.BRUTE_FORCE_BELOW:
    np.testing.assert_array_equal(neighbors.ids[:, :real], ids)
    np.testing.assert_allclose(neighbors.scores[:, :real], scores, atol=1e-6)
  else:
    assert np.mean(neighbors.ids[:, 0] == ids[:, 0]) > 0.93
    pairs = zip(ids, neighbors.ids, strict=True)
    assert np.mean([np.isin(found, true) for true, found in pairs]) > 0.93
  assert (neighbors.ids[:, real:] == -1).all()
  assert (neighbors.scores[:, real:] == -np.inf).all()


@pytest.mark.parametrize("n", SIZES[1:])
def test_a_vector_finds_itself(index_cls, n):
  vectors = unit_vectors(n)
  rows = np.arange(n)[:: max(1, n // 50)]
  neighbors = built(index_cls, n).search(vectors[rows], 1)
  np.testing.assert_array_equal(neighbors.ids[:, 0], rows)
  np.testing.assert_allclose(neighbors.scores[:, 0], 1, atol=1e-5)


@pytest.mark.parametrize("n", [5, 2_000, 20_000])
def test_all_equal_vectors(index_cls, n):
  vectors = np.tile(unit_vectors(1), (n, 1))
  neighbors = index_cls.build(vectors).search(vectors[:2], 4)
  np.testing.assert_allclose(neighbors.scores, 1, atol=1e-6)
  assert (np.diff(neighbors.ids, axis=1) > 0).all()
  assert ((neighbors.ids >= 0) & (neighbors.ids < n)).all()


@pytest.mark.parametrize("n", [0, 5, 20_000])
def test_more_neighbors_than_vectors_are_padded(index_cls, n):
  vectors = unit_vectors(n, dimension=8)
  neighbors = index_cls.build(vectors).search(
    unit_vectors(2, seed=3, dimension=8), n + 2
  )
  for ids, scores in zip(neighbors.ids, neighbors.scores, strict=True):
    np.testing.assert_array_equal(np.sort(ids[:n]), np.arange(n))
    assert (np.diff(scores[:n]) <= 0).all()
    np.testing.assert_array_equal(ids[n:], -1)
    np.testing.assert_array_equal(scores[n:], -np.inf)


@pytest.mark.parametrize("n", [1, 100, 2_000, 20_000])
def test_a_query_does_not_depend_on_its_batch(index_cls, n):
  queries = unit_vectors(40, seed=2)
  index = built(index_cls, n)
  together = index.search(queries, 3)
  for row in range(40):
    alone = index.search(queries[row : row + 1], 3)
    np.testing.assert_array_equal(alone.ids[0], together.ids[row])
    np.testing.assert_array_equal(alone.scores[0], together.scores[row])


def test_ties_go_to_the_lower_id(index_cls):
  vectors = unit_vectors(100)
  vectors[[7, 3, 90]] = vectors[50]
  neighbors = index_cls.build(vectors).search(vectors[50:51], 3)
  np.testing.assert_array_equal(neighbors.ids, [[3, 7, 50]])


def test_no_queries(index_cls):
  neighbors = index_cls.build(unit_vectors(5)).search(unit_vectors(0), 3)
  assert neighbors.ids.shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_build_refuses_what_is_not_finite(index_cls, value):
  vectors = unit_vectors(5)
  vectors[1, 2] = value
  with pytest.raises(ValueError, match="row 1 holds NaN or inf"):
    index_cls.build(vectors)


@pytest.mark.parametrize("n", [0, 5])
def test_search_refuses_what_does_not_fit(index_cls, n):
  index = index_cls.build(unit_vectors(n))
  with pytest.raises(ValueError, match=r"dimension 24, but.*dimension 23"):
    index.search(unit_vectors(1, dimension=23), 1)
  with pytest.raises(ValueError, match="finite"):
    index.search(np.full((1, DIMENSION), np.nan, np.float32), 1)
  with pytest.raises(ValueError, match="at least 1, got 0"):
    index.search(unit_vectors(1), 0)


@pytest.mark.parametrize("n", [0, 1, 2_000, 20_000])
def test_saved_moved_and_loaded_it_finds_the_same(index_cls, n, tmp_path):
  check_saved_and_moved(built(index_cls, n), index_cls, tmp_path)


@pytest.mark.slow
def test_many_saved_moved_and_loaded_find_the_same(index_cls, tmp_path):
  check_saved_and_moved(built(index_cls, MANY), index_cls, tmp_path)


def check_saved_and_moved(index, index_cls, tmp_path):
  queries = unit_vectors(20, seed=5)
  expected = index.search(queries, 3)
  index.save(tmp_path / "first" / "index")
  (tmp_path / "first").rename(tmp_path / "moved")
  assert [p.name for p in (tmp_path / "moved").iterdir()] == ["index"]
  for path in (tmp_path / "moved").rglob("*"):
    if path.suffix in (".json", ".pbtxt"):
      assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert path.suffix != ".pkl"
  loaded = index_cls.load(tmp_path / "moved" / "index")
  assert loaded.parameters == index.parameters
  found = loaded.search(queries, 3)
  np.testing.assert_array_equal(found.ids, expected.ids)
  np.testing.assert_array_equal(found.scores, expected.scores)


def test_save_replaces_an_older_index(index_cls, tmp_path):
  index_cls.build(unit_vectors(5)).save(tmp_path / "index")
  index_cls.build(unit_vectors(7)).save(tmp_path / "index")
  assert len(index_cls.load(tmp_path / "index")) == 7
  assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_failed_save_leaves_the_older_index(index_cls, tmp_path, monkeypatch):
  index_cls.build(unit_vectors(5)).save(tmp_path / "index")

  def full_disk(*_, **__):
    raise OSError("no space left")

  monkeypatch.setattr(json, "dumps", full_disk)
  with pytest.raises(OSError, match="no space"):
    index_cls.build(unit_vectors(7)).save(tmp_path / "index")
  monkeypatch.undo()
  assert len(index_cls.load(tmp_path / "index")) == 5
  assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_load_refuses_a_folder_without_an_index(index_cls, tmp_path):
  with pytest.raises(ValueError, match="holds no index"):
    index_cls.load(tmp_path)


def test_another_encoder_is_refused(index_cls, tmp_path):
  index = index_cls.build(unit_vectors(5), encoder_sha256="a" * 64)
  index.save(tmp_path / "index")
  load = kinds.load_index
  for wanted in (None, "a" * 64):
    loaded = load(tmp_path / "index", encoder_sha256=wanted)
    assert loaded.encoder_sha256 == "a" * 64
  with pytest.raises(ValueError, match=r"aaaaaaaaaaaa, but.*bbbbbbbbbbbb\."):
    load(tmp_path / "index", encoder_sha256="b" * 64)
  index_cls.build(unit_vectors(5)).save(tmp_path / "index")
  with pytest.raises(ValueError, match="of encoder unknown, but"):
    load(tmp_path / "index", encoder_sha256="b" * 64)


def test_is_an_index_and_its_class_makes_them(index_cls):
  assert isinstance(index_cls, index_lib.IndexClass)
  for n in (0, 5, 20_000):
    index = built(index_cls, n)
    assert isinstance(index, index_lib.Index)
    assert json.loads(json.dumps(index.parameters)) == index.parameters
    assert index.parameters["kind"] == index_cls.kind
    assert index.parameters["recall"] >= 0.97
    assert index.encoder_sha256 is None


def test_exact_search_reads_every_kind(index_cls, tmp_path):
  index_cls.build(unit_vectors(5)).save(tmp_path / "index")
  assert len(ExactIndex.load(tmp_path / "index")) == 5
