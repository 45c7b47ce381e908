"""Approximate nearest-neighbour search with ScaNN.

The only file that imports `scann`, and only when an index is built or loaded:
ScaNN has wheels for Linux alone. Elsewhere `index_class` gives exact search.

Guo et al., "Accelerating Large-Scale Inference with Anisotropic Vector
Quantization", ICML 2020.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from rapo_jax import files
from rapo_jax.errors import InputError
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.index.exact import ExactIndex

BRUTE_FORCE_BELOW = 20_000
"""Fewer vectors than this are all scored: exact, built at once, and as fast."""
RECALL_TARGET = 0.99
MAX_SHARD_VECTORS = 500_000
"""More vectors than this are cut into trees of about equal size. ScaNN copies
what it builds from: 0.8 GB for so many of dimension 384."""

_TRAINING_VECTORS = 50_000
_HASH_TRAINING_VECTORS = 10_000
_TRAINING_ITERATIONS = 6
_SAMPLE = 500
"""Vectors asked for when parameters are chosen, and as many others when their
recall is measured."""
_MIN_REORDER, _MAX_REORDER = 32, 512
_CODES_A_RANKED = 64
"""Codes that are scored in the time that it takes to rank one candidate. The
candidate is read from a mapped file. Measured on one core, batches of 64 and
512."""
_EXACT_ROWS = 2**14
_SCANN_FOLDER = "scann"
_UNSAFE_FILE = "scann_docids.pkl"
_SAME = 1e-6
"""Inner products of unit vectors that differ by less are of equal vectors."""


def is_scann_installed() -> bool:
  """Whether the package `scann` is there; does not import it."""
  return importlib.util.find_spec("scann") is not None


def _scann() -> Any:
  if not is_scann_installed():
    raise ModuleNotFoundError(
      "ScannIndex needs ScaNN, which is not installed. On Linux: `pip install"
      ' scann`. Elsewhere use ExactIndex, as the kind "auto" does.'
    )
  from scann.scann_ops.py import scann_ops_pybind

  return scann_ops_pybind


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A ScaNN tree over the rows from `first` on.

  It has 4 bits for every two dimensions of a vector, and no vectors.
  """

  first: int
  searcher: Any


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """How trees are searched.

  Attributes:
    leaves: of each tree.
    leaves_to_search: of each tree, for each query.
    reorder: candidates of a query, over all trees, whose scores are computed.
  """

  leaves: int
  leaves_to_search: int
  reorder: int


class ScannIndex:
  """ScaNN over all vectors, its parameters chosen from their number.

  Below `BRUTE_FORCE_BELOW` vectors it scores all of them. From there on a tree
  sorts them into leaves. Asymmetric hashing scores all vectors in the leaves
  nearest to a query. The best of these are ranked by their true inner products.
  The numbers of leaves and of candidates are tuned when the index is built, on
  a sample of vectors. Each of them has to find its nearest other, which exact
  search knows.

  Memory holds the hashes alone. The vectors are read where they lie, in the
  caller's array or in a mapped file. Two builds of such a tree from the same
  vectors differ, so save an index rather than rebuild it.

  Attributes:
    encoder_sha256: digest of the encoder of its vectors; None if nobody said.
    parameters: its kind; `recall_target`; `recall`, measured on a sample that
      nothing was tuned on; and, of trees, their number, `leaves`,
      `leaves_to_search` and `reorder`.
  """

  kind: ClassVar[str] = "scann"

  def __init__(
    self,
    vectors: Float[np.ndarray, "N D"],
    shards: Sequence[_Shard],
    *,
    parameters: Mapping[str, Any],
    encoder_sha256: str | None = None,
  ):
    """Joins the parts; use `build` or `load`.

    Args:
      vectors: the vectors.
      shards: trees over all of them; none to score all.
      parameters: see the attributes.
      encoder_sha256: see `IndexClass.build`.
    """
    self._vectors = vectors
    self._shards = tuple(shards)
    self.parameters = parameters
    self.encoder_sha256 = encoder_sha256
    if shards:
      self._chosen = _Chosen(
        **{f.name: parameters[f.name] for f in dataclasses.fields(_Chosen)}
      )
    else:
      self._exact = ExactIndex(vectors)

  @classmethod
  def build(
    cls,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
    recall_target: float = RECALL_TARGET,
    max_shard_vectors: int = MAX_SHARD_VECTORS,
    neighbors: int = 1,
    query_cosine: float = 1.0,
  ) -> ScannIndex:
    """Builds an index; see `IndexClass.build`.

    Args:
      vectors: the vectors; a map of a file if they are too many for memory.
        Those of float16 stay as they are and are read as float32.
      encoder_sha256: digest of their encoder.
      recall_target: share of queries that shall find their nearest vector, in
        (0, 1). Where no parameters reach it, those that come nearest are
        taken; `parameters` has what was measured.
      max_shard_vectors: vectors of one tree. Trees are built one by one.
      neighbors: the target is the share of so many nearest vectors that
        queries shall find, not of the nearest one alone.
      query_cosine: of the queries of the sample to vectors that they are made
        from, in (0, 1]; 1 for the vectors themselves, which do not count as
        their own neighbours.

    Raises:
      ModuleNotFoundError: if ScaNN is not installed.
      InputError: if the vectors are not a finite float array of rank 2, or the
        target is not a share.
    """
    scann = _scann()
    if not 0 < recall_target < 1:
      raise InputError(
        f"recall_target must lie between 0 and 1, got {recall_target}. For a"
        " recall of 1 use ExactIndex."
      )
    if neighbors < 1:
      raise InputError(
        f"neighbors must be at least 1, got {neighbors}: correct it."
      )
    if not 0 < query_cosine <= 1:
      raise InputError(
        f"query_cosine must lie in (0, 1], got {query_cosine}: correct it."
      )
    vectors = index_lib.kept_vectors("vectors", vectors)
    parameters = {"kind": cls.kind, "recall_target": recall_target}
    if len(vectors) < BRUTE_FORCE_BELOW:
      parameters |= {"recall": 1.0, "trees": 0}
      return cls(
        vectors, (), parameters=parameters, encoder_sha256=encoder_sha256
      )
    num_shards = -(-len(vectors) // max_shard_vectors)
    bounds = np.linspace(0, len(vectors), num_shards + 1).astype(int).tolist()
    leaves = _num_leaves(bounds[1])
    shards = [
      _Shard(first, _build_tree(scann, _floats(vectors[first:end]), leaves))
      for first, end in itertools.pairwise(bounds)
    ]
    chosen, recall = _tune(
      vectors, shards, leaves, recall_target, neighbors, query_cosine
    )
    parameters |= {
      "recall": recall,
      "trees": num_shards,
      **dataclasses.asdict(chosen),
    }
    return cls(
      vectors, shards, parameters=parameters, encoder_sha256=encoder_sha256
    )

  def __len__(self) -> int:
    return len(self._vectors)

  def search(
    self, queries: Float[np.ndarray, "Q D"], num_neighbors: int
  ) -> index_lib.Neighbors:
    """Finds vectors with large inner products; see `Index.search`."""
    if not self._shards:
      return self._exact.search(queries, num_neighbors)
    queries = index_lib.checked_queries(
      queries,
      dimension=self._vectors.shape[1],
      num_neighbors=num_neighbors,
    )
    count = min(num_neighbors + index_lib.EXTRA_CANDIDATES, len(self))
    found = self._candidates(queries, count)
    return index_lib.rank(self._vectors, queries, found, num_neighbors)

  def _candidates(self, queries: np.ndarray, count: int) -> np.ndarray:
    """Row numbers, [Q, C] for a C of at least `count`, -1 where none."""
    chosen = self._chosen
    if not len(queries):
      return np.empty((0, count), np.int64)
    if count > chosen.reorder:
      # More than the searched leaves are sure to hold, so search them all.
      return _candidates(self._shards, queries, chosen.leaves, count)
    found = _candidates(
      self._shards, queries, chosen.leaves_to_search, chosen.reorder
    )
    short = np.flatnonzero(found[:, count - 1] < 0)
    if len(short):
      found[short] = _candidates(
        self._shards, queries[short], chosen.leaves, chosen.reorder
      )
    return found

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the index to a folder, whole or not at all."""
    with files.replaced_folder(path) as new:
      np.save(new / index_lib.VECTORS_FILE, self._vectors)
      index_lib.write_meta(new, self)
      for shard in self._shards:
        tree = new / _SCANN_FOLDER / str(shard.first)
        tree.mkdir(parents=True)
        shard.searcher.serialize(str(tree), relative_path=True)

  @classmethod
  def load(cls, path: str | pathlib.Path) -> ScannIndex:
    """Reads a folder written by `save`, also after it was moved.

    The vectors stay in their file, which is mapped.

    Raises:
      ModuleNotFoundError: if ScaNN is not installed; `ExactIndex.load` reads
        the same folder.
      InputError: if the folder holds an index of another kind, or a pickle,
        which ScaNN would run, or lacks a tree.
    """
    scann = _scann()
    path = pathlib.Path(path)
    parameters = index_lib.read_meta(path)
    encoder_sha256 = parameters.pop("encoder_sha256")
    if parameters["kind"] != cls.kind:
      raise InputError(
        f"{path} holds an index of kind {parameters['kind']!r}, not"
        f" {cls.kind!r}. Load it with the class that saved it."
      )
    for unsafe in path.glob(f"{_SCANN_FOLDER}/**/{_UNSAFE_FILE}"):
      raise InputError(
        f"{unsafe} is a pickle that ScaNN would run and that save() never"
        " writes. Do not trust this index."
      )
    vectors = index_lib.read_vectors(path, half=True)
    folders = sorted((path / _SCANN_FOLDER).glob("*"))
    num_trees = index_lib.whole_number(parameters, "trees", least=0)
    if len(folders) != num_trees or not all(
      f.name.isdecimal() for f in folders
    ):
      raise InputError(
        f"{path} holds {len(folders)} of its {num_trees} trees. Copy"
        " the folder again, or build the index again."
      )
    if folders:
      for field in dataclasses.fields(_Chosen):
        index_lib.whole_number(parameters, field.name, least=1)
    shards = [
      _Shard(int(tree.name), scann.load_searcher(str(tree))) for tree in folders
    ]
    return cls(
      vectors, shards, parameters=parameters, encoder_sha256=encoder_sha256
    )


def _num_leaves(num_vectors: int) -> int:
  return max(1, math.isqrt(num_vectors))


def _floats(vectors: np.ndarray) -> np.ndarray:
  return np.asarray(vectors, np.float32)


def _build_tree(scann: Any, vectors: np.ndarray, leaves: int) -> Any:
  """A searcher over the vectors, without ScaNN's own reordering.

  That would need a copy of them; `index.rank` reads them where they lie.
  """
  builder = scann.builder(vectors, 1, "dot_product")
  builder = builder.tree(
    num_leaves=leaves,
    num_leaves_to_search=leaves,
    training_sample_size=min(len(vectors), _TRAINING_VECTORS),
    training_iterations=_TRAINING_ITERATIONS,
    # Centres of length 1. Means of unit vectors are shorter the wider their
    # leaf. So a wide leaf would lose to narrow ones farther from the query.
    spherical=True,
  ).score_ah(
    2,
    anisotropic_quantization_threshold=0.2,
    training_sample_size=min(len(vectors), _HASH_TRAINING_VECTORS),
  )
  return builder.build()


def _candidates(
  shards: Sequence[_Shard], queries: np.ndarray, leaves: int, count: int
) -> np.ndarray:
  """The `count` best by their hashes: row numbers, [Q, count], -1 where none.

  Scores by hashes estimate inner products, so they compare between trees.
  """
  all_ids = np.full((len(queries), len(shards) * count), -1, np.int64)
  all_scores = np.full(all_ids.shape, -np.inf, np.float32)
  for number, shard in enumerate(shards):
    ids, scores = shard.searcher.search_batched(
      queries, final_num_neighbors=count, leaves_to_search=leaves
    )
    # Where ScaNN found fewer, it gives id 0 with a score of NaN, or fewer
    # columns.
    columns = slice(number * count, number * count + ids.shape[1])
    all_ids[:, columns] = np.where(
      np.isnan(scores), -1, ids.astype(np.int64) + shard.first
    )
    all_scores[:, columns] = np.nan_to_num(scores, nan=-np.inf)
  if len(shards) == 1:
    return all_ids
  best = np.argsort(-all_scores, axis=1, kind="stable")[:, :count]
  return np.take_along_axis(all_ids, best, axis=1)


def _tune(
  vectors: np.ndarray,
  shards: Sequence[_Shard],
  leaves: int,
  recall_target: float,
  neighbors: int,
  query_cosine: float,
) -> tuple[_Chosen, float]:
  """Chooses the cheapest search that reaches the target.

  A sample of vectors looks for its nearest others, `neighbors` each. For each
  number of leaves, the candidates' order tells how many of them have to be
  ranked. Choices have to miss half as often as the target lets them, to allow
  for the luck of the sample. Among them the least work is chosen.

  Returns:
    The choice, and its recall on another sample.
  """
  rng = np.random.default_rng(0)
  sample = rng.permutation(len(vectors))[: 2 * _SAMPLE]
  sample, held_out = np.sort(sample[::2]), np.sort(sample[1::2])
  allowed = 0.5 * (1 - recall_target)
  queries, sample = _queries(vectors, sample, query_cosine)
  nearest = _nearest_others(vectors, queries, sample, neighbors)
  chosen, least = None, math.inf
  codes_a_leaf = len(vectors) / len(shards) / leaves
  for searched in _ladder(leaves):
    work = searched * codes_a_leaf * len(shards)
    if work >= least:
      break
    ranks = _ranks(vectors, shards, queries, sample, nearest, searched)
    needed = np.quantile(ranks, 1 - allowed, method="higher")
    if not math.isfinite(needed) and searched < leaves:
      continue
    reorder = int(min(max(needed, _MIN_REORDER), _MAX_REORDER))
    work += reorder * _CODES_A_RANKED
    if work < least:
      chosen, least = _Chosen(leaves, searched, reorder), work
  assert chosen is not None
  queries, held_out = _queries(vectors, held_out, query_cosine)
  nearest = _nearest_others(vectors, queries, held_out, neighbors)
  ranks = _ranks(
    vectors, shards, queries, held_out, nearest, chosen.leaves_to_search
  )
  return chosen, float(np.mean(ranks <= chosen.reorder))


def _ladder(leaves: int) -> Iterator[int]:
  """Numbers of leaves to try: 1, 2, 3, 4, 6, 8, 12, 16, ..., all."""
  searched = 1
  while searched < leaves:
    yield searched
    searched += max(1, (1 << searched.bit_length()) // 4)
  yield leaves


def _queries(
  vectors: np.ndarray, rows: np.ndarray, cosine: float
) -> tuple[np.ndarray, np.ndarray]:
  """Queries at about a cosine to some vectors, turned towards other ones.

  Returns:
    The queries [R, D], and the row that is not a neighbour of each: its own
    where the query is that vector, otherwise -1.
  """
  queries = _floats(vectors[rows])
  if cosine == 1:
    return queries, rows
  # Rows are sorted, so that vectors half a sample apart are strangers.
  others = np.roll(queries, len(queries) // 2, axis=0)
  mixed = cosine * queries + (1 - cosine**2) ** 0.5 * others
  norms = np.linalg.norm(mixed, axis=1, keepdims=True)
  return mixed / np.maximum(norms, _SAME), np.full(len(rows), -1)


def _nearest_others(
  vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray, count: int
) -> np.ndarray:
  """Each query's largest inner products, best first: [R, count].

  That with the row of the query itself is left out.
  """
  best = np.full((len(rows), count), -np.inf, np.float32)
  for start in range(0, len(vectors), _EXACT_ROWS):
    scores = queries @ _floats(vectors[start : start + _EXACT_ROWS]).T
    own = (rows >= start) & (rows < start + _EXACT_ROWS)
    scores[own, rows[own] - start] = -np.inf
    if count == 1:
      best = np.maximum(best, scores.max(axis=1, keepdims=True))
    else:
      scores = np.hstack([best, scores])
      best = -np.partition(-scores, count - 1, axis=1)[:, :count]
  return -np.sort(-best, axis=1)


def _ranks(
  vectors: np.ndarray,
  shards: Sequence[_Shard],
  queries: np.ndarray,
  rows: np.ndarray,
  nearest: np.ndarray,
  leaves: int,
) -> np.ndarray:
  """At which places each query's candidates have its nearest; inf if not.

  Returns:
    [R, count], as `nearest`.
  """
  found = _candidates(shards, queries, leaves, _MAX_REORDER)
  scores = index_lib.inner_products(vectors, queries, found)
  scores[(found == rows[:, None]) & (found >= 0)] = -np.inf
  ranks = []
  for place, least in enumerate(nearest.T, 1):
    # The place-th of those that are as near as the place-th nearest.
    hit = np.cumsum(scores >= least[:, None] - _SAME, axis=1) == place
    ranks.append(np.where(hit.any(axis=1), hit.argmax(axis=1) + 1.0, np.inf))
  return np.stack(ranks, axis=1)
