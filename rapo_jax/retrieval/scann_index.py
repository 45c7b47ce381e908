"""Approximate nearest-neighbour search with ScaNN.

The only file that imports `scann`, and only when an index is built or loaded:
ScaNN has wheels for Linux alone. Elsewhere `default_index_class` gives exact
search.

Guo et al., "Accelerating Large-Scale Inference with Anisotropic Vector
Quantization", ICML 2020.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from rapo_jax.models import folder
from rapo_jax.retrieval import index as index_lib

BRUTE_FORCE_BELOW = 20_000
"""Fewer vectors than this are all scored: exact, built at once, and as fast."""
LEAVES_TO_SEARCH_FRACTION = 1 / 8
REORDER = 100
MAX_TRAINING_SAMPLE_SIZE = 100_000

_SCANN_FOLDER = "scann"
_UNSAFE_FILE = "scann_docids.pkl"


def is_scann_installed() -> bool:
  """Whether the package `scann` is there; does not import it."""
  return importlib.util.find_spec("scann") is not None


def default_index_class() -> index_lib.IndexClass:
  """Returns `ScannIndex`, or `ExactIndex` with a warning without ScaNN."""
  if is_scann_installed():
    return ScannIndex
  logging.getLogger(__name__).warning(
    "ScaNN is not installed (it has wheels for Linux only: `pip install"
    " scann`); searching exactly instead. Results are the same or better; it"
    " is slower from about 100,000 vectors on."
  )
  return index_lib.ExactIndex


def _scann() -> Any:
  if not is_scann_installed():
    raise ModuleNotFoundError(
      "ScannIndex needs ScaNN, which is not installed. On Linux: `pip install"
      " scann`. Elsewhere use ExactIndex, as default_index_class() does."
    )
  from scann.scann_ops.py import scann_ops_pybind

  return scann_ops_pybind


def load_index(
  path: str | pathlib.Path, *, encoder_sha256: str | None = None
) -> index_lib.Index:
  """Loads a saved index with the class that saved it.

  Without ScaNN, a ScaNN index is searched exactly, with a warning.

  Args:
    path: folder written by an index's `save`.
    encoder_sha256: digest of the encoder that queries will come from; None to
      load whatever is there.

  Returns:
    The index.

  Raises:
    ValueError: if the folder holds no index, one of an unknown kind, or one
      of another encoder's vectors.
  """
  meta = index_lib.read_meta(pathlib.Path(path))
  kind = meta["kind"]
  classes: dict[str, index_lib.IndexClass] = {
    index_lib.ExactIndex.kind: index_lib.ExactIndex,
    ScannIndex.kind: ScannIndex,
  }
  if kind not in classes:
    raise ValueError(
      f"{path} holds an index of kind {kind!r}; known are {sorted(classes)}."
      " Load it with the version of rapo_jax that wrote it."
    )
  built_with = meta["encoder_sha256"]
  if encoder_sha256 is not None and built_with != encoder_sha256:
    raise ValueError(
      f"{path} holds vectors of encoder {_shortened(built_with)}, but the"
      f" encoder given is {_shortened(encoder_sha256)}. Their vectors do not"
      " compare: load the same encoder, or build the index again with this"
      " one."
    )
  if classes[kind] is ScannIndex:
    return default_index_class().load(path)
  return classes[kind].load(path)


def _shortened(sha256: str | None) -> str:
  return "unknown" if sha256 is None else sha256[:12]


def _num_leaves(num_vectors: int) -> int:
  return max(1, math.isqrt(num_vectors))


class ScannIndex:
  """ScaNN over all vectors, its parameters chosen from their number.

  Below `BRUTE_FORCE_BELOW` vectors it scores all of them. From there on it is
  a tree of sqrt(N) leaves, an eighth of them searched, scored by asymmetric
  hashing, and the best `REORDER` scored again exactly. Two builds of such a
  tree from the same vectors differ, so save an index rather than rebuild it.
  """

  kind: ClassVar[str] = "scann"

  def __init__(
    self,
    vectors: Float[np.ndarray, "N D"],
    searcher: Any,
    *,
    encoder_sha256: str | None = None,
  ):
    self._vectors = vectors
    self._searcher = searcher
    self.encoder_sha256 = encoder_sha256
    self.parameters: Mapping[str, Any] = {"kind": self.kind}

  @classmethod
  def build(
    cls,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
  ) -> ScannIndex:
    """Builds an index; see `IndexClass.build`.

    Raises:
      ModuleNotFoundError: if ScaNN is not installed.
    """
    scann = _scann()
    vectors = index_lib.checked_vectors("vectors", vectors)
    num_vectors = len(vectors)
    if num_vectors == 0:
      return cls(vectors, None, encoder_sha256=encoder_sha256)
    builder = scann.builder(vectors, 1, "dot_product")
    if num_vectors < BRUTE_FORCE_BELOW:
      builder = builder.score_brute_force()
    else:
      num_leaves = _num_leaves(num_vectors)
      builder = (
        builder.tree(
          num_leaves=num_leaves,
          num_leaves_to_search=math.ceil(
            num_leaves * LEAVES_TO_SEARCH_FRACTION
          ),
          training_sample_size=min(num_vectors, MAX_TRAINING_SAMPLE_SIZE),
        )
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(REORDER)
      )
    return cls(vectors, builder.build(), encoder_sha256=encoder_sha256)

  def __len__(self) -> int:
    return len(self._vectors)

  def search(
    self, queries: Float[np.ndarray, "Q D"], num_neighbors: int
  ) -> index_lib.Neighbors:
    """Finds vectors with large inner products; see `Index.search`."""
    queries = index_lib.checked_queries(
      queries,
      dimension=self._vectors.shape[1],
      num_neighbors=num_neighbors,
    )
    count = min(num_neighbors + index_lib.EXTRA_CANDIDATES, len(self))
    if count and len(queries):
      found = self._candidates(queries, count)
    else:
      found = np.empty((len(queries), 0), np.int64)
    return index_lib.rank(self._vectors, queries, found, num_neighbors)

  def _candidates(self, queries: np.ndarray, count: int) -> np.ndarray:
    """ScaNN's row numbers, [Q, count] or fewer columns, -1 where none."""
    wide: dict[str, int] = {}
    if len(self) >= BRUTE_FORCE_BELOW and count > REORDER:
      # More than the searched leaves are sure to hold, so search them all.
      wide = {
        "leaves_to_search": _num_leaves(len(self)),
        "pre_reorder_num_neighbors": len(self),
      }
    ids, scores = self._searcher.search_batched(
      queries, final_num_neighbors=count, **wide
    )
    # Where ScaNN found fewer, it gives id 0 with a score of NaN.
    return np.where(np.isnan(scores), -1, ids.astype(np.int64))

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the index to a folder, whole or not at all."""
    with folder.replaced_folder(path) as new:
      np.save(new / index_lib.VECTORS_FILE, self._vectors)
      index_lib.write_meta(new, self)
      if self._searcher is not None:
        (new / _SCANN_FOLDER).mkdir()
        self._searcher.serialize(str(new / _SCANN_FOLDER), relative_path=True)

  @classmethod
  def load(cls, path: str | pathlib.Path) -> ScannIndex:
    """Reads a folder written by `save`, also after it was moved.

    Raises:
      ModuleNotFoundError: if ScaNN is not installed; `ExactIndex.load` reads
        the same folder.
      ValueError: if the folder holds an index of another kind, or a pickle,
        which ScaNN would run.
    """
    scann = _scann()
    path = pathlib.Path(path)
    meta = index_lib.read_meta(path)
    kind = meta["kind"]
    if kind != cls.kind:
      raise ValueError(
        f"{path} holds an index of kind {kind!r}, not {cls.kind!r}. Load it"
        " with the class that saved it."
      )
    if (path / _SCANN_FOLDER / _UNSAFE_FILE).exists():
      raise ValueError(
        f"{path / _SCANN_FOLDER} holds {_UNSAFE_FILE}, a pickle that ScaNN"
        " would run and that save() never writes. Do not trust this index."
      )
    vectors = np.load(
      path / index_lib.VECTORS_FILE, mmap_mode="r", allow_pickle=False
    )
    searcher = None
    if len(vectors):
      searcher = scann.load_searcher(str(path / _SCANN_FOLDER))
    return cls(vectors, searcher, encoder_sha256=meta["encoder_sha256"])
