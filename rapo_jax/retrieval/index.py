"""Nearest-neighbour search by inner product: the protocol and exact search.

An index is built once from all vectors and maps a query to row numbers of
them; what a row stands for is the caller's business. Every index ends with the
same step, `rank`: the candidates' scores are computed again, each pair on its
own, and ties go to the lower id. So a score does not depend on the index that
found it, nor on the other queries of its batch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64

from rapo_jax.models import folder

EXTRA_CANDIDATES = 8
"""Candidates fetched beyond the neighbours asked for, since the search itself
rounds in another order than `rank` and may swap near ties."""

VECTORS_FILE = "vectors.npy"
META_FILE = "index.json"
_QUERY_ROWS = 32


@dataclasses.dataclass(frozen=True)
class Neighbors:
  """The nearest vectors of Q queries, best first.

  Attributes:
    ids: row numbers, int64 [Q, k]; -1 where the index has no more vectors.
    scores: inner products, float32 [Q, k]; -inf where the id is -1.
  """

  ids: Int64[np.ndarray, "Q k"]
  scores: Float[np.ndarray, "Q k"]


@runtime_checkable
class Index(Protocol):
  """What every index does; `tests/retrieval/index_test.py` is its contract.

  How one comes to be is `IndexClass`'s business: an index of another machine
  is searched too, and is neither built nor loaded here.
  """

  @property
  def encoder_sha256(self) -> str | None:
    """Digest of the encoder of its vectors; None if nobody said."""
    ...

  @property
  def parameters(self) -> Mapping[str, Any]:
    """What was chosen and measured, as JSON holds it.

    At least `kind`, and `recall`: the share of queries whose nearest vector
    it finds, 1 where the search is exact.
    """
    ...

  def __len__(self) -> int:
    """Returns the number of vectors."""
    ...

  def search(
    self, queries: Float[np.ndarray, "Q D"], num_neighbors: int
  ) -> Neighbors:
    """Finds the vectors with the largest inner products.

    Args:
      queries: Q finite vectors.
      num_neighbors: k, at least 1; may exceed the number of vectors.

    Returns:
      Exactly k neighbours a query, best first, ties by lower id.

    Raises:
      ValueError: if a query has another dimension or is not finite, or k < 1.
      RuntimeError: if the search itself fails.
    """
    ...

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the index to a folder, whole or not at all."""
    ...


@runtime_checkable
class IndexClass(Protocol):
  """What makes indexes of one kind: their class."""

  def build(
    self,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
  ) -> Index:
    """Builds an index.

    Args:
      vectors: N finite vectors (N may be 0), of unit norm where scores are to
        be cosines. They are kept, not copied; leave them as they are.
      encoder_sha256: digest of the encoder that made them, to be kept with
        them.

    Raises:
      ValueError: if they are not a finite float array of rank 2.
    """
    ...

  def load(self, path: str | pathlib.Path) -> Index:
    """Reads a folder written by `save`, also after it was moved.

    Raises:
      ValueError: if the folder holds an index of another kind.
    """
    ...


def checked_vectors(name: str, vectors: Any) -> np.ndarray:
  """Returns finite C-contiguous float32 vectors of rank 2, or says why not."""
  vectors = np.asarray(vectors)
  if vectors.ndim != 2 or vectors.shape[1] == 0:
    raise ValueError(
      f"{name} must have shape [number, dimension], got {vectors.shape}."
    )
  if not np.issubdtype(vectors.dtype, np.floating):
    raise ValueError(f"{name} must be floating point, got {vectors.dtype}.")
  vectors = np.ascontiguousarray(vectors, np.float32)
  finite = np.isfinite(vectors).all(axis=1)
  if not finite.all():
    raise ValueError(
      f"{name} must be finite; row {int(np.argmin(finite))} holds NaN or inf."
      " Drop the row, or mend what computed it."
    )
  return vectors


def checked_queries(
  queries: Any, *, dimension: int, num_neighbors: int
) -> np.ndarray:
  """Returns the queries as `checked_vectors` does; they must fit the index."""
  if num_neighbors < 1:
    raise ValueError(f"num_neighbors must be at least 1, got {num_neighbors}.")
  queries = checked_vectors("queries", queries)
  if queries.shape[1] != dimension:
    raise ValueError(
      f"The index holds vectors of dimension {dimension}, but the queries have"
      f" dimension {queries.shape[1]}. Embed both with one encoder."
    )
  return queries


def rank(
  vectors: Float[np.ndarray, "N D"],
  queries: Float[np.ndarray, "Q D"],
  candidates: Int[np.ndarray, "Q C"],
  num_neighbors: int,
) -> Neighbors:
  """Orders candidates by score and then id, and pads to `num_neighbors`.

  Args:
    vectors: the vectors of the index.
    queries: the queries.
    candidates: row numbers found for each query, -1 for none.
    num_neighbors: k.

  Returns:
    The best k candidates of each query.
  """
  short = num_neighbors - candidates.shape[1]
  if short > 0:
    candidates = np.pad(candidates, ((0, 0), (0, short)), constant_values=-1)
  candidates = candidates.astype(np.int64)
  scores = np.full(candidates.shape, -np.inf, np.float32)
  for row, ids in enumerate(candidates):
    real = ids >= 0
    # A sum over the last axis rounds the same way for any number of rows; a
    # matrix product does not.
    scores[row, real] = (vectors[ids[real]] * queries[row]).sum(axis=-1)
  last = np.where(candidates < 0, np.iinfo(np.int64).max, candidates)
  order = np.lexsort((last, -scores), axis=-1)[:, :num_neighbors]
  return Neighbors(
    ids=np.take_along_axis(candidates, order, axis=1),
    scores=np.take_along_axis(scores, order, axis=1),
  )


def write_meta(path: pathlib.Path, index: Index) -> None:
  """Writes the small file that says what index a folder holds.

  It has the index's `parameters`, its kind among them, and the digest of its
  encoder.
  """
  meta = {**index.parameters, "encoder_sha256": index.encoder_sha256}
  (path / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")


def read_meta(path: pathlib.Path) -> dict[str, Any]:
  """Reads what `write_meta` wrote.

  Raises:
    ValueError: if the folder holds no index.
  """
  if not (path / META_FILE).is_file():
    raise ValueError(f"{path} holds no index: it has no {META_FILE}.")
  return json.loads((path / META_FILE).read_text())


@functools.partial(jax.jit, static_argnames="num_candidates")
def _candidates(
  vectors: Float[Array, "N D"],
  queries: Float[Array, "Q D"],
  num_candidates: int,
) -> Int[Array, "Q C"]:
  scores = jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST)
  return jax.lax.top_k(scores, num_candidates)[1]


class ExactIndex:
  """Compares each query with every vector. The oracle, and the fallback."""

  kind: ClassVar[str] = "exact"

  def __init__(
    self,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
  ):
    self._vectors = checked_vectors("vectors", vectors)
    self._on_device = jnp.asarray(self._vectors)
    self.encoder_sha256 = encoder_sha256
    self.parameters: Mapping[str, Any] = {"kind": self.kind, "recall": 1.0}

  @classmethod
  def build(
    cls,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
  ) -> ExactIndex:
    """Builds an index; see `IndexClass.build`."""
    return cls(vectors, encoder_sha256=encoder_sha256)

  def __len__(self) -> int:
    return len(self._vectors)

  def search(
    self, queries: Float[np.ndarray, "Q D"], num_neighbors: int
  ) -> Neighbors:
    """Finds the vectors with the largest inner products; see `Index.search`."""
    queries = checked_queries(
      queries,
      dimension=self._vectors.shape[1],
      num_neighbors=num_neighbors,
    )
    count = min(num_neighbors + EXTRA_CANDIDATES, len(self))
    found = np.empty((len(queries), count), np.int64)
    if count:
      for start in range(0, len(queries), _QUERY_ROWS):
        chunk = queries[start : start + _QUERY_ROWS]
        # One shape whatever the number of queries, so one program.
        padded = np.zeros((_QUERY_ROWS, queries.shape[1]), np.float32)
        padded[: len(chunk)] = chunk
        ids = _candidates(self._on_device, padded, count)
        found[start : start + len(chunk)] = np.asarray(ids)[: len(chunk)]
    return rank(self._vectors, queries, found, num_neighbors)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the index to a folder, whole or not at all."""
    with folder.replaced_folder(path) as new:
      np.save(new / VECTORS_FILE, self._vectors)
      write_meta(new, self)

  @classmethod
  def load(cls, path: str | pathlib.Path) -> ExactIndex:
    """Reads the folder of any index, since all of them keep their vectors."""
    path = pathlib.Path(path)
    meta = read_meta(path)
    vectors = np.load(path / VECTORS_FILE, allow_pickle=False)
    return cls(vectors, encoder_sha256=meta["encoder_sha256"])
