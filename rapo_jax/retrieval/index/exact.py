"""Exact nearest-neighbour search in JAX, on one device or over several."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from rapo_jax import files
from rapo_jax.errors import InputError
from rapo_jax.retrieval.index import base as index_lib

_QUERY_ROWS = 32
"""Queries are searched by so many at a time: one shape, so one program."""


class ExactIndex:
  """Compares each query with every vector. The oracle, and the fallback.

  With a mesh, the vectors are cut by rows over one of its axes. Each device
  finds the best of its own rows, and the best of these are the neighbours. Only
  a few scores a query move between devices, whatever the number of vectors. The
  host keeps the vectors too, and ranks what was found.

  Attributes:
    encoder_sha256: digest of the encoder of its vectors; None if nobody said.
    parameters: its kind, a recall of 1, and the number of shards.
  """

  kind: ClassVar[str] = "exact"

  def __init__(
    self,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
    mesh: Mesh | None = None,
    axis: str = "data",
  ):
    """Puts the vectors on their devices.

    Args:
      vectors: see `IndexClass.build`.
      encoder_sha256: see `IndexClass.build`.
      mesh: devices to cut the vectors over; None for JAX's default device.
      axis: the axis of the mesh to cut them over; every other one holds
        copies.

    Raises:
      InputError: if the vectors are not a finite float array of rank 2, or the
        mesh has no such axis.
    """
    self._vectors = index_lib.checked_vectors("vectors", vectors)
    self._find, self._on_device, shards = _placed(self._vectors, mesh, axis)
    self.encoder_sha256 = encoder_sha256
    self.parameters: Mapping[str, Any] = {
      "kind": self.kind,
      "recall": 1.0,
      "shards": shards,
    }

  @classmethod
  def build(
    cls,
    vectors: Float[np.ndarray, "N D"],
    *,
    encoder_sha256: str | None = None,
  ) -> ExactIndex:
    """Builds an index on one device; see `IndexClass.build`."""
    return cls(vectors, encoder_sha256=encoder_sha256)

  def __len__(self) -> int:
    return len(self._vectors)

  def search(
    self, queries: Float[np.ndarray, "Q D"], num_neighbors: int
  ) -> index_lib.Neighbors:
    """Finds the vectors with the largest inner products; see `Index.search`."""
    queries = index_lib.checked_queries(
      queries,
      dimension=self._vectors.shape[1],
      num_neighbors=num_neighbors,
    )
    count = min(num_neighbors + index_lib.EXTRA_CANDIDATES, len(self))
    found = np.empty((len(queries), count), np.int64)
    if count:
      for start in range(0, len(queries), _QUERY_ROWS):
        chunk = queries[start : start + _QUERY_ROWS]
        padded = np.zeros((_QUERY_ROWS, queries.shape[1]), np.float32)
        padded[: len(chunk)] = chunk
        ids = self._find(self._on_device, padded, count)
        found[start : start + len(chunk)] = np.asarray(ids)[: len(chunk)]
    return index_lib.rank(self._vectors, queries, found, num_neighbors)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the index to a folder, whole or not at all."""
    with files.replaced_folder(path) as new:
      np.save(new / index_lib.VECTORS_FILE, self._vectors)
      index_lib.write_meta(new, self)

  @classmethod
  def load(
    cls,
    path: str | pathlib.Path,
    *,
    mesh: Mesh | None = None,
    axis: str = "data",
  ) -> ExactIndex:
    """Reads the folder of any index, since all of them keep their vectors.

    Args:
      path: the folder.
      mesh: see `__init__`; need not be what the index was saved from.
      axis: see `__init__`.
    """
    path = pathlib.Path(path)
    meta = index_lib.read_meta(path)
    return cls(
      index_lib.read_vectors(path, half=True),
      encoder_sha256=meta["encoder_sha256"],
      mesh=mesh,
      axis=axis,
    )


Find = Callable[[Array, np.ndarray, int], Array]
"""Row numbers of the best, of vectors, queries and how many: [Q, C]."""


def _placed(
  vectors: np.ndarray, mesh: Mesh | None, axis: str
) -> tuple[Find, Array, int]:
  """The search program, the vectors on their devices, and how many shards."""
  if mesh is None:
    return _find, jnp.asarray(vectors), 1
  if axis not in mesh.axis_names:
    raise InputError(
      f"The axis to cut the vectors over must be one of the mesh's,"
      f" {mesh.axis_names}, got {axis!r}."
    )
  shards = mesh.shape[axis]
  rows = -(-len(vectors) // shards)
  sharding = NamedSharding(mesh, PartitionSpec(axis))

  def shard(where: tuple[slice, ...] | None) -> np.ndarray:
    own = vectors[where or ...]
    return np.pad(own, ((0, rows - len(own)), (0, 0)))

  placed = jax.make_array_from_callback(
    (rows * shards, vectors.shape[1]), sharding, shard
  )
  find = functools.partial(
    _find_sharded, mesh=mesh, axis=axis, num_vectors=len(vectors)
  )
  return find, placed, shards


@functools.partial(jax.jit, static_argnames="count")
def _find(
  vectors: Float[Array, "N D"], queries: Float[Array, "Q D"], count: int
) -> Int[Array, "Q C"]:
  return jax.lax.top_k(_inner_products(vectors, queries), count)[1]


@functools.partial(
  jax.jit, static_argnames=("count", "mesh", "axis", "num_vectors")
)
def _find_sharded(
  vectors: Float[Array, "N D"],
  queries: Float[Array, "Q D"],
  count: int,
  *,
  mesh: Mesh,
  axis: str,
  num_vectors: int,
) -> Int[Array, "Q C"]:
  """`_find` with rows cut over an axis, padded behind `num_vectors` rows."""

  def of_one_shard(
    own: Float[Array, "R D"], queries: Float[Array, "Q D"]
  ) -> tuple[Float[Array, "Q c"], Int[Array, "Q c"]]:
    rows = len(own)
    ids = jax.lax.axis_index(axis) * rows + jnp.arange(rows)
    scores = _inner_products(own, queries)
    scores = jnp.where(ids < num_vectors, scores, -jnp.inf)
    best, at = jax.lax.top_k(scores, min(count, rows))
    return best, ids[at]

  scores, ids = jax.shard_map(
    of_one_shard,
    mesh=mesh,
    in_specs=(PartitionSpec(axis), PartitionSpec()),
    out_specs=PartitionSpec(None, axis),
  )(vectors, queries)
  # Of equal scores the first is taken, which is the lower id here as well.
  _, at = jax.lax.top_k(scores, count)
  return jnp.take_along_axis(ids, at, axis=1)


def _inner_products(
  vectors: Float[Array, "N D"], queries: Float[Array, "Q D"]
) -> Float[Array, "Q N"]:
  return jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST)
