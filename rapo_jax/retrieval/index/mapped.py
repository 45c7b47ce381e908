"""Exact nearest-neighbour search over a mapped file, block by block."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from rapo_jax import files
from rapo_jax.retrieval.index import base as index_lib

_QUERY_ROWS = 32
_BLOCK_FLOATS = 2**22
"""Of a block of vectors, 16 MB: it is read once for all queries of a chunk."""


class MappedIndex:
  """Compares each query with every vector, which stay in their file.

  Neither the host nor a device holds a copy of the vectors: the operating
  system keeps what it has room for. Opening reads a header. Searching takes
  the time of a matrix product, and of reading the file where it is not cached.

  Attributes:
    encoder_sha256: digest of the encoder of its vectors; None if nobody said.
    parameters: its kind, and a recall of 1.
  """

  kind: ClassVar[str] = "mapped"
  parameters: Mapping[str, Any] = {"kind": kind, "recall": 1.0}

  def __init__(
    self,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
  ):
    """Keeps the vectors as they are.

    Args:
      vectors: finite vectors, as a rule the map of a file.
      encoder_sha256: see `IndexClass.build`.
    """
    self._vectors = vectors
    self.encoder_sha256 = encoder_sha256

  @classmethod
  def build(
    cls,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
  ) -> MappedIndex:
    """Writes the vectors to a temporary file; see `IndexClass.build`.

    The file has no name, and goes with the index.
    """
    checked = index_lib.checked_vectors("vectors", vectors)
    if not checked.size:
      return cls(checked, encoder_sha256=encoder_sha256)
    with tempfile.TemporaryFile("w+b") as file:
      checked.tofile(file)
      file.flush()
      mapped = np.memmap(file, np.float32, mode="r", shape=checked.shape)
    return cls(mapped, encoder_sha256=encoder_sha256)

  def __len__(self) -> int:
    return len(self._vectors)

  def search(
    self, queries: Float[np.ndarray, "Q D"], num_neighbors: int
  ) -> index_lib.Neighbors:
    """Finds the vectors with the largest inner products; see `Index.search`."""
    dimension = self._vectors.shape[1]
    queries = index_lib.checked_queries(
      queries, dimension=dimension, num_neighbors=num_neighbors
    )
    count = min(num_neighbors + index_lib.EXTRA_CANDIDATES, len(self))
    found = np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries) if count else 0, _QUERY_ROWS):
      chunk = queries[start : start + _QUERY_ROWS]
      # One shape of product, so that a query does not depend on its batch.
      padded = np.zeros((_QUERY_ROWS, dimension), np.float32)
      padded[: len(chunk)] = chunk
      found[start : start + len(chunk)] = self._best(padded, count)[
        : len(chunk)
      ]
    return index_lib.rank(self._vectors, queries, found, num_neighbors)

  def _best(self, queries: np.ndarray, count: int) -> np.ndarray:
    """Rows of the best vectors of each query: [Q, count], in any order."""
    ids = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    rows = max(1, _BLOCK_FLOATS // self._vectors.shape[1])
    for start in range(0, len(self), rows):
      own_vectors = self._vectors[start : start + rows]
      block = queries @ own_vectors.astype(np.float32, copy=False).T
      own = np.arange(start, start + block.shape[1])
      ids = np.hstack([ids, np.broadcast_to(own, block.shape)])
      scores = np.hstack([scores, block])
      if scores.shape[1] > count:
        at = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        at.sort(axis=1)
        ids = np.take_along_axis(ids, at, axis=1)
        scores = np.take_along_axis(scores, at, axis=1)
    return ids

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the index to a folder, whole or not at all."""
    with files.replaced_folder(path) as new:
      np.save(new / index_lib.VECTORS_FILE, self._vectors)
      index_lib.write_meta(new, self)

  @classmethod
  def load(cls, path: str | pathlib.Path) -> MappedIndex:
    """Maps the vectors of any index's folder."""
    path = pathlib.Path(path)
    meta = index_lib.read_meta(path)
    return cls(
      index_lib.read_vectors(path, half=True),
      encoder_sha256=meta["encoder_sha256"],
    )
