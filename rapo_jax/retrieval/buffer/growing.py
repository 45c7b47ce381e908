"""A Step-Trace Buffer that grows while it is searched.

An approximate index is built once and accepts no more vectors. So additions go
into a tail, which is compared vector by vector. From time to time a new index
is built over both. Each addition gives the buffer a new version, and later
searches use it.

A killed run that resumes must find the same traces as an uninterrupted run. So
every addition is a file of its own, named by the update before it. A merged
buffer is a folder, named in the same way. `restore` goes back to an update: it
drops later additions and takes the newest merged buffer of that time. A later
merged buffer stays, and the run reuses it instead of building it again. The
reason: two ScaNN trees of the same vectors give different neighbours.

Of several hosts the one that leads writes these files, and all read them.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Float32

from rapo_jax import files, hosts
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer import store
from rapo_jax.retrieval.buffer.manifest import MANIFEST_FILE
from rapo_jax.retrieval.buffer.policy import Failed, Hit, Miss, RetrievalConfig
from rapo_jax.retrieval.buffer.step_trace import StepTrace, trace_keys
from rapo_jax.retrieval.buffer.step_trace_buffer import StepTraceBuffer
from rapo_jax.retrieval.buffer.trace_file import (
  SCHEMA,
  ColumnarTraces,
  JoinedTraces,
  as_traces,
  trace_table,
  traces_of,
)
from rapo_jax.retrieval.index import base as index_lib

_VECTOR_COLUMN = "vector"
_ADDED = re.compile(r"added-(\d+)\.parquet")
_MERGED = re.compile(r"merged-(\d+)")


class TailedIndex:
  """An index with further vectors behind it, each of which is compared.

  Not with JAX: every length of the tail would compile a program.

  Args:
    main: an index.
    tail: vectors whose ids follow those of the index.
  """

  def __init__(self, main: index_lib.Index, tail: Float32[np.ndarray, "T D"]):
    self._main = main
    self._tail = index_lib.checked_vectors("tail", tail)
    self.encoder_sha256 = main.encoder_sha256
    self.parameters: Mapping[str, Any] = {
      **main.parameters,
      "tail": len(tail),
    }

  def __len__(self) -> int:
    return len(self._main) + len(self._tail)

  def search(
    self, queries: Float[np.ndarray, "Q D"], num_neighbors: int
  ) -> index_lib.Neighbors:
    """Finds the vectors with large inner products; see `Index.search`."""
    found = self._main.search(queries, num_neighbors)
    queries = index_lib.checked_queries(
      queries, dimension=self._tail.shape[1], num_neighbors=num_neighbors
    )
    count = min(num_neighbors + index_lib.EXTRA_CANDIDATES, len(self._tail))
    nearest = np.argpartition(-(queries @ self._tail.T), count - 1, axis=1)
    behind = index_lib.rank(
      self._tail, queries, nearest[:, :count], num_neighbors
    )
    shifted = np.where(behind.ids < 0, -1, behind.ids + len(self._main))
    ids = np.concatenate([found.ids, shifted], axis=1)
    scores = np.concatenate([found.scores, behind.scores], axis=1)
    last = np.where(ids < 0, np.iinfo(np.int64).max, ids)
    order = np.lexsort((last, -scores), axis=-1)[:, :num_neighbors]
    return index_lib.Neighbors(
      ids=np.take_along_axis(ids, order, axis=1),
      scores=np.take_along_axis(scores, order, axis=1),
    )

  def save(self, path: str | pathlib.Path) -> None:
    """Refuses; an index with a tail is never written.

    Raises:
      InputError: always.
    """
    raise InputError(
      f"An index with a tail cannot be saved to {path}: merge the buffer"
      " first, which builds one index of all vectors."
    )


@hosts.held()
class GrowingBuffer:
  """A buffer to which traces are added; retrieves as a `StepTraceBuffer` does.

  The buffer that it began with is left as it is. One thread adds, merges and
  restores, while nothing retrieves.

  Args:
    base: a buffer that was loaded from a folder.
    folder: where additions and merged buffers are kept; created.
    index_cls: class of merged indexes; None for ScaNN where it is installed.

  Raises:
    InputError: the buffer is not from a folder.
  """

  def __init__(
    self,
    base: StepTraceBuffer,
    folder: pathlib.Path,
    *,
    index_cls: index_lib.IndexClass | None = None,
  ):
    if base.directory is None:
      raise InputError(
        "A buffer that grows must have been loaded from a folder, got one in"
        " memory: save it and load it again."
      )
    self._base = base
    self._folder = folder
    self._encoder = base.encoder
    self._index_cls = index_cls
    folder.mkdir(parents=True, exist_ok=True)
    self._set_main(base)

  @property
  def version(self) -> int:
    """Version of the content; grows by 1 with each addition."""
    return self._buffer.version

  @property
  def next_trace_id(self) -> int:
    """The least id that no trace has, nor any with a larger one."""
    return self._next_trace_id

  @property
  def tail_traces(self) -> int:
    """Traces added since the last merge."""
    return len(self._added)

  def __len__(self) -> int:
    return len(self._buffer)

  def digest(self) -> str:
    """SHA-256 of the files that restore the buffer, apart from its base.

    They are the manifest of the newest merged buffer and the additions since.
    The manifest has a digest of each of that buffer's files.
    """
    digest = hashlib.sha256()
    for path in self._parts:
      content = path.read_bytes()
      digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()

  def retrieve(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    *,
    config: RetrievalConfig,
    keys: Sequence[Sequence[int]] | None = None,
  ) -> list[Hit | Miss | Failed]:
    """See `StepTraceBuffer.retrieve`."""
    return self._buffer.retrieve(questions, histories, config=config, keys=keys)

  def add(self, traces: Sequence[StepTrace], *, update: int) -> None:
    """Adds traces, which can be retrieved at once, and keeps them on disk.

    Args:
      traces: with ids from `next_trace_id` on; for none nothing happens.
      update: number of the update that they came from; later than any before.

    Raises:
      InputError: an id is taken or a reward is not finite.
    """
    if not traces:
      return
    taken: set[int] = set()
    for trace in traces:
      if trace.trace_id < self._next_trace_id:
        raise InputError(
          f"Traces must be added with ids from {self._next_trace_id} on"
          f" (next_trace_id), got {trace.trace_id}."
        )
      store.check_trace(trace, taken)
      taken.add(trace.trace_id)
    keys, num_tokens = trace_keys(traces, self._encoder)
    vectors = self._encoder.encode(keys)
    table = trace_table(
      traces,
      keys=keys,
      key_ids=self._key_ids.assign(keys),
      num_tokens=num_tokens,
    )
    path = self._folder / f"added-{update:06d}.parquet"
    column = pa.FixedSizeListArray.from_arrays(
      vectors.ravel(), self._encoder.dimension
    )
    with files.replaced_file(path, private=False) as new:
      pq.write_table(
        table.append_column(_VECTOR_COLUMN, column),
        new,
        write_page_checksum=True,
      )
    self._take(None, [path])

  def merge(self, *, update: int) -> None:
    """Builds one index over everything, and empties the tail.

    Args:
      update: number of the update after which that is.
    """
    if not len(self._added):
      return
    path = self._folder / f"merged-{update:06d}"
    if not self._is_this(path):
      traces = self._buffer.traces
      assert isinstance(traces, ColumnarTraces)
      vectors = np.concatenate([self._main_vectors(), self._tail])
      index = store.build_index(vectors, self._encoder, self._index_cls)
      with files.replaced_folder(path) as new:
        store.write_contents(
          new, traces.tables(), index, self._encoder, version=self.version
        )
    self._take(path, [])

  def restore(self, update: int) -> None:
    """Goes back to what there was after an update.

    Later additions are dropped: they will come again.

    Args:
      update: its number; 0 for the buffer that it all began with.

    Raises:
      InputError: an addition or a merged buffer is broken.
    """
    merged = [n for n in self._numbers(_MERGED) if n <= update]
    newest = max(merged, default=0)
    added: list[pathlib.Path] = []
    for number in self._numbers(_ADDED):
      path = self._folder / f"added-{number:06d}.parquet"
      if number > update:
        path.unlink()
      elif number > newest:
        added.append(path)
    self._reset()
    main = self._folder / f"merged-{newest:06d}" if merged else None
    self._take(main, added)

  @hosts.led
  def _reset(self) -> None:
    self._set_main(self._base)

  @hosts.led
  def _take(self, main: pathlib.Path | None, added: list[pathlib.Path]) -> None:
    """Reads a merged buffer in place of what is there, and additions."""
    if main is not None:
      hosts.await_file(main / MANIFEST_FILE)
      self._set_main(StepTraceBuffer.load(main, self._encoder))
    for path in added:
      hosts.await_file(path)
      table, vectors = self._read_added(path)
      self._key_ids.assign(table["key"].to_pylist())
      self._append(table, vectors)
      self._parts.append(path)
    # The leader may delete these files next.
    hosts.gather(None)

  def _read_added(
    self, path: pathlib.Path
  ) -> tuple[pa.Table, Float32[np.ndarray, "N D"]]:
    """The traces of an addition and the vectors of their keys.

    Raises:
      InputError: the file is broken, or none of an addition.
    """
    dimension = self._encoder.dimension
    with as_traces(path):
      table = pq.read_table(path, page_checksum_verification=True)
    *names, last = table.column_names or [""]
    kind = table.schema.field(last).type if last else pa.null()
    if (
      [*names, last] != [*SCHEMA.names, _VECTOR_COLUMN]
      or not pa.types.is_fixed_size_list(kind)
      or (kind.value_type, kind.list_size) != (pa.float32(), dimension)
      or not len(table)
    ):
      raise InputError(
        f"{path} must be an addition to a buffer, with the columns of its"
        f" traces and {_VECTOR_COLUMN}, {dimension} float32. Copy the folder"
        " again, or delete it to begin without additions."
      )
    vectors = table[_VECTOR_COLUMN].combine_chunks().flatten().to_numpy()
    return (
      table.drop_columns([_VECTOR_COLUMN]),
      vectors.reshape(len(table), dimension),
    )

  def forget_before(self, update: int) -> None:
    """Deletes what going back to an update, or a later one, does not need."""
    needed = max((n for n in self._numbers(_MERGED) if n <= update), default=0)
    for number in self._numbers(_MERGED):
      if number < needed:
        shutil.rmtree(self._folder / f"merged-{number:06d}")
    for number in self._numbers(_ADDED):
      if number <= needed:
        (self._folder / f"added-{number:06d}.parquet").unlink()

  def _set_main(self, main: StepTraceBuffer) -> None:
    """Takes a loaded buffer as it is, without a tail."""
    assert isinstance(main.traces, ColumnarTraces)
    self._main = main
    self._parts: list[pathlib.Path] = []
    if main is not self._base:
      assert main.directory is not None
      self._parts.append(main.directory / MANIFEST_FILE)
    self._main_traces = main.traces
    self._buffer = main
    self._added = SCHEMA.empty_table()
    self._tail = np.empty((0, self._encoder.dimension), np.float32)
    self._key_ids = store.KeyIds()
    for table in main.traces.tables(["key"]):
      self._key_ids.assign(table["key"].to_pylist())
    largest = pc.max(main.traces.column("trace_id")).as_py()
    self._next_trace_id = 0 if largest is None else largest + 1

  def _append(
    self, table: pa.Table, vectors: Float32[np.ndarray, "N D"]
  ) -> None:
    """Puts rows behind all others; `vectors` are those of their keys."""
    known = len(self._main.index) + len(self._tail)
    key_ids, rows = np.unique(table["key_id"].to_numpy(), return_index=True)
    self._tail = np.concatenate([self._tail, vectors[rows[key_ids >= known]]])
    self._added = pa.concat_tables([self._added, table])
    self._next_trace_id = pc.max(table["trace_id"]).as_py() + 1
    traces = JoinedTraces(self._main_traces, self._added)
    index: index_lib.Index = self._main.index
    if len(self._tail):
      index = TailedIndex(index, self._tail)
    self._buffer = StepTraceBuffer(
      traces,
      traces.key_ids,
      index,
      self._encoder,
      version=self._buffer.version + 1,
    )

  def _main_vectors(self) -> Float32[np.ndarray, "K D"]:
    assert self._main.directory is not None
    return store.key_vectors(self._main.directory)

  def _is_this(self, path: pathlib.Path) -> bool:
    """Whether a folder holds this buffer, merged before the run was killed."""
    if not path.exists():
      return False
    there = StepTraceBuffer.load(path, self._encoder)
    return (
      there.version == self.version
      and len(there) == len(self)
      and there.traces[len(self._main) :] == traces_of(self._added)
    )

  def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
    """Updates that files or folders of a kind are named by, ascending."""
    matches = (pattern.fullmatch(path.name) for path in self._folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)
