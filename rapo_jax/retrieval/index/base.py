"""Nearest-neighbour search by inner product: the protocol, and what is shared.

An index is built once from all vectors and maps a query to row numbers of them;
only the caller knows what each row stands for. Every index ends with the same
step, `rank`: the candidates' scores are computed again, each pair on its own,
and ties go to the lower id. So a score does not depend on the index that found
it, nor on the other queries of its batch.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tokenize
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int64

from rapo_jax import text_files
from rapo_jax.errors import InputError

EXTRA_CANDIDATES = 8
"""Candidates fetched beyond the neighbours asked for. The search itself rounds
in another order than `rank`, and may swap near ties."""

VECTORS_FILE = "vectors.npy"
META_FILE = "index.json"

_RANKED_FLOATS = 2**20
"""Of candidates' vectors that `rank` gathers at a time, 4 MB of them: they stay
in the processor's cache until they are used."""
_CHECKED_ROWS = 2**14
_KEPT_DTYPES = (np.float32, np.float16)


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
  """What every index does; `tests/retrieval/index` holds the contract's tests.

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
      InputError: if a query has another dimension or is not finite, or k < 1.
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
      InputError: if they are not a finite float array of rank 2.
    """
    ...

  def load(self, path: str | pathlib.Path) -> Index:
    """Reads a folder written by `save`, also after it was moved.

    Raises:
      InputError: if the folder holds an index of another kind.
    """
    ...


def checked_vectors(name: str, vectors: Any) -> np.ndarray:
  """Returns finite C-contiguous float32 vectors of rank 2, or says why not."""
  return _checked(name, vectors, (np.float32,))


def kept_vectors(name: str, vectors: Any) -> np.ndarray:
  """Like `checked_vectors`, but vectors of float16 stay as they are.

  So a mapped file of them is not read into memory.
  """
  return _checked(name, vectors, _KEPT_DTYPES)


def _checked(name: str, vectors: Any, dtypes: tuple[Any, ...]) -> np.ndarray:
  vectors = np.asarray(vectors)
  if vectors.ndim != 2 or vectors.shape[1] == 0:
    raise InputError(
      f"{name} must have shape [number, dimension], got {vectors.shape}."
    )
  if not np.issubdtype(vectors.dtype, np.floating):
    raise InputError(f"{name} must be floating point, got {vectors.dtype}.")
  dtype = vectors.dtype if vectors.dtype in dtypes else np.float32
  vectors = np.ascontiguousarray(vectors, dtype)
  for start in range(0, len(vectors), _CHECKED_ROWS):
    finite = np.isfinite(vectors[start : start + _CHECKED_ROWS]).all(axis=1)
    if not finite.all():
      raise InputError(
        f"{name} must be finite; row {start + int(np.argmin(finite))} holds NaN"
        " or inf. Drop the row, or fix what computed it."
      )
  return vectors


def checked_queries(
  queries: Any, *, dimension: int, num_neighbors: int
) -> np.ndarray:
  """Returns the queries as `checked_vectors` does; they must fit the index."""
  if num_neighbors < 1:
    raise InputError(f"num_neighbors must be at least 1, got {num_neighbors}.")
  queries = checked_vectors("queries", queries)
  if queries.shape[1] != dimension:
    raise InputError(
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
    vectors: the vectors of the index, which may be a map of a file.
    queries: the queries.
    candidates: distinct row numbers found for each query, -1 for none.
    num_neighbors: k.

  Returns:
    The best k candidates of each query.
  """
  short = num_neighbors - candidates.shape[1]
  if short > 0:
    candidates = np.pad(candidates, ((0, 0), (0, short)), constant_values=-1)
  candidates = candidates.astype(np.int64)
  scores = inner_products(vectors, queries, candidates)
  last = np.where(candidates < 0, np.iinfo(np.int64).max, candidates)
  order = np.lexsort((last, -scores), axis=-1)[:, :num_neighbors]
  return Neighbors(
    ids=np.take_along_axis(candidates, order, axis=1),
    scores=np.take_along_axis(scores, order, axis=1),
  )


def inner_products(
  vectors: Float[np.ndarray, "N D"],
  queries: Float[np.ndarray, "Q D"],
  candidates: Int[np.ndarray, "Q C"],
) -> Float[np.ndarray, "Q C"]:
  """Each query's inner products with its candidates; -inf where id is -1."""
  scores = np.full(candidates.shape, -np.inf, np.float32)
  if not len(vectors):
    return scores
  _, dimension = vectors.shape
  rows = max(1, _RANKED_FLOATS // max(1, candidates.shape[1] * dimension))
  for start in range(0, len(queries), rows):
    ids = candidates[start : start + rows]
    # A sum over the last axis rounds the same way for any number of rows; a
    # matrix product does not.
    found = np.einsum(
      "qcd,qd->qc",
      vectors.take(np.maximum(ids, 0), axis=0).astype(np.float32, copy=False),
      queries[start : start + rows],
    )
    np.copyto(scores[start : start + rows], found, where=ids >= 0)
  return scores


def write_meta(path: pathlib.Path, index: Index) -> None:
  """Writes the small file that says what index a folder holds.

  It has the index's `parameters`, its kind among them, and the digest of its
  encoder.
  """
  meta = {**index.parameters, "encoder_sha256": index.encoder_sha256}
  (path / META_FILE).write_text(
    json.dumps(meta, indent=2) + "\n", encoding="utf-8"
  )


def read_meta(path: pathlib.Path) -> dict[str, Any]:
  """Reads what `write_meta` wrote.

  Raises:
    InputError: if the folder holds no index, or the file is no object with a
      `kind` and an `encoder_sha256`.
  """
  if not (path / META_FILE).is_file():
    raise InputError(f"{path} holds no index: it has no {META_FILE}.")
  meta = text_files.read_json(path / META_FILE)
  if (
    not isinstance(meta, dict)
    or not isinstance(meta.get("kind"), str)
    or not isinstance(meta.get("encoder_sha256", 0), str | None)
  ):
    raise InputError(
      f"{path / META_FILE} must be an object with a text `kind` and"
      f" `encoder_sha256`, a text or null, got {meta!a:.80}. Copy the folder"
      " again, or build the index again."
    )
  return meta


def read_vectors(
  path: pathlib.Path, *, half: bool = False
) -> Float[np.ndarray, "N D"]:
  """Maps the vectors of an index's folder; see `open_vectors`."""
  return open_vectors(path / VECTORS_FILE, half=half)


def open_vectors(
  file: pathlib.Path, *, half: bool = False
) -> Float[np.ndarray, "N D"]:
  """Maps a file of vectors.

  Args:
    file: as `np.save` writes it.
    half: whether they may be float16.

  Raises:
    InputError: it is missing or broken, or not float32 of rank 2.
  """
  try:
    # Not load, which opens archives and pickles too.
    vectors = np.lib.format.open_memmap(file, mode="r")
  # A broken header can be no Python, or ask for an array of any size.
  except (
    OSError,
    EOFError,
    OverflowError,
    TypeError,
    ValueError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
  ) as error:
    raise InputError(
      f"{file} cannot be read ({error}). Copy the folder again, or build the"
      " index again."
    ) from error
  if (
    vectors.ndim != 2
    or vectors.dtype not in (_KEPT_DTYPES if half else (np.float32,))
    or not vectors.shape[1]
    or not vectors.flags.c_contiguous
  ):
    raise InputError(
      f"{file} must hold float32 of shape [number, dimension], row by row, got"
      f" {vectors.dtype} of shape {vectors.shape}. Build the index again."
    )
  return vectors


def whole_number(meta: Mapping[str, Any], name: str, *, least: int) -> int:
  """A count that `META_FILE` has to have.

  Args:
    meta: content of the file.
    name: of the count.
    least: its smallest value.

  Raises:
    InputError: it is absent, no whole number or too small.
  """
  value = meta.get(name)
  if type(value) is not int or value < least:
    raise InputError(
      f"{META_FILE} must have {name}, a whole number of at least {least}, got"
      f" {value!a:.60}. Copy the folder again, or build the index again."
    )
  return value
