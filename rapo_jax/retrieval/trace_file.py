"""The file of step traces: its columns, and how it is written and read.

One row a trace, in Parquet, compressed and in small row groups. Opening it
reads a few narrow columns; the text of a step is read when it is asked for, a
row group at a time.
"""

from __future__ import annotations

import abc
import collections
import json
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int, Int64

from rapo_jax.retrieval.manifest import AgentCounts
from rapo_jax.retrieval.step_trace import StepTrace

ROWS_PER_GROUP = 256
"""Rows that are read to get at one; of the paper's steps, about a MB.

Half as many take 40 % of the time to read, but what the file's footer says of
each group stays in memory: 50 MB more at the paper's size.
"""
CACHED_GROUPS = 64
"""Row groups kept as read, least recently used go first."""

SCHEMA = pa.schema(
  [
    ("trace_id", pa.int64()),
    ("key_id", pa.int64()),
    ("query_id", pa.string()),
    ("question", pa.string()),
    ("history", pa.list_(pa.string())),
    ("key", pa.string()),
    ("step", pa.string()),
    ("reward", pa.float64()),
    ("source", pa.string()),
    ("trajectory_id", pa.string()),
    ("step_index", pa.int64()),
    ("num_tokens", pa.int64()),
    ("answers", pa.bool_()),
    ("extras", pa.string()),
  ]
)
"""`docs/buffer.md` says what the columns mean."""

# What a trace is made of; the key is long, and not needed for it.
_TRACE_COLUMNS = [
  name for name in SCHEMA.names if name not in ("key", "key_id", "num_tokens")
]
# Few values, or the same one in neighbouring rows.
_REPEATED = ["query_id", "question", "source", "trajectory_id", "extras"]
# Of long texts they would only swell the file's footer.
_WITH_STATISTICS = ["trace_id", "key_id", "reward", "step_index"]


def trace_table(
  traces: Sequence[StepTrace],
  *,
  keys: Sequence[str],
  key_ids: Int[np.ndarray, " N"],
  num_tokens: Sequence[int],
) -> pa.Table:
  """Puts N traces into columns.

  Args:
    traces: N traces.
    keys: the text that each one's key is embedded as.
    key_ids: row of each one's key in the index.
    num_tokens: length of each step in the encoder's wordpieces.

  Raises:
    ValueError: the extras of a trace are no JSON.
  """
  columns = {
    "trace_id": [t.trace_id for t in traces],
    "key_id": key_ids,
    "query_id": [t.query_id for t in traces],
    "question": [t.question for t in traces],
    "history": [t.history for t in traces],
    "key": keys,
    "step": [t.step for t in traces],
    "reward": [t.reward for t in traces],
    "source": [t.source for t in traces],
    "trajectory_id": [t.trajectory_id for t in traces],
    "step_index": [t.step_index for t in traces],
    "num_tokens": num_tokens,
    "answers": [t.answers for t in traces],
    "extras": [_extras_text(t) for t in traces],
  }
  return pa.table(columns, schema=SCHEMA)


def _extras_text(trace: StepTrace) -> str:
  if not trace.extras:
    return "{}"
  try:
    return json.dumps(dict(trace.extras), ensure_ascii=False, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"The extras of a trace must be values of JSON, those of trace"
      f" {trace.trace_id} are not ({error}). Drop or convert them."
    ) from error


def write_tables(
  path: pathlib.Path, tables: Iterable[pa.Table]
) -> dict[str, AgentCounts]:
  """Writes tables as `trace_table` makes them, one after another.

  Returns:
    What each agent contributed.
  """
  counts: dict[str, collections.Counter[str]] = collections.defaultdict(
    collections.Counter
  )
  trajectories: dict[str, set[str]] = collections.defaultdict(set)
  with open_writer(path) as writer:
    for table in tables:
      writer.write_table(table, row_group_size=ROWS_PER_GROUP)
      by_agent = table.group_by("source").aggregate(
        [("num_tokens", "sum"), ("trace_id", "count")]
      )
      for row in by_agent.to_pylist():
        counts[row["source"]]["tokens"] += row["num_tokens_sum"]
        counts[row["source"]]["traces"] += row["trace_id_count"]
      pairs = table.group_by(["source", "trajectory_id"]).aggregate([])
      for row in pairs.to_pylist():
        if row["trajectory_id"]:
          trajectories[row["source"]].add(row["trajectory_id"])
  return {
    name: AgentCounts(
      len(trajectories[name]), counts[name]["traces"], counts[name]["tokens"]
    )
    for name in sorted(counts)
  }


def open_writer(path: pathlib.Path) -> pq.ParquetWriter:
  """Opens a file of traces for writing."""
  return pq.ParquetWriter(
    path,
    SCHEMA,
    compression="zstd",
    use_dictionary=_REPEATED,
    write_statistics=_WITH_STATISTICS,
  )


class ColumnarTraces(Sequence[StepTrace]):
  """Traces that are kept in columns; each is made when it is asked for.

  Attributes:
    key_ids: row of each trace's key in the index, `[N]`.
    rewards: `[N]`.
  """

  key_ids: Int64[np.ndarray, " N"]
  rewards: Float64[np.ndarray, " N"]

  @abc.abstractmethod
  def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Some columns or all, a few thousand rows at a time."""

  @abc.abstractmethod
  def column(self, name: str) -> pa.ChunkedArray:
    """All values of one column."""

  @abc.abstractmethod
  def _row(self, row: int) -> pa.Table:
    """One row, at least 0, as a table."""

  def __len__(self) -> int:
    return len(self.rewards)

  @overload
  def __getitem__(self, row: int) -> StepTrace: ...

  @overload
  def __getitem__(self, row: slice) -> list[StepTrace]: ...

  def __getitem__(self, row: int | slice) -> StepTrace | list[StepTrace]:
    if isinstance(row, slice):
      return [self[i] for i in range(*row.indices(len(self)))]
    if not -len(self) <= row < len(self):
      raise IndexError(f"there are {len(self)} traces, got row {row}")
    return traces_of(self._row(row % len(self)))[0]

  def __iter__(self) -> Iterator[StepTrace]:
    for table in self.tables():
      yield from traces_of(table)


class StoredTraces(ColumnarTraces):
  """The traces of a file, in its order.

  The file is mapped, not read. Single traces and columns may be asked for by
  several threads.

  Raises:
    ValueError: the file is no file of traces, or broken.
  """

  def __init__(self, path: pathlib.Path):
    try:
      self._file = pq.ParquetFile(path, memory_map=True)
      narrow = self._file.read(columns=["key_id", "reward"])
    except (pa.ArrowException, OSError, KeyError) as error:
      raise ValueError(
        f"{path} must be a Parquet file of step traces, but cannot be read as"
        f" one ({error})."
      ) from error
    if self._file.schema_arrow.names != SCHEMA.names:
      raise ValueError(
        f"{path} must have the columns {', '.join(SCHEMA.names)}, it has"
        f" {', '.join(self._file.schema_arrow.names)}."
      )
    self.key_ids = narrow["key_id"].to_numpy()
    self.rewards = narrow["reward"].to_numpy()
    metadata = self._file.metadata
    self._starts = np.cumsum(
      [0]
      + [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    )
    self._groups: collections.OrderedDict[int, pa.Table] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
    for batch in self._file.iter_batches(16 * ROWS_PER_GROUP, columns=columns):
      yield pa.Table.from_batches([batch])

  def column(self, name: str) -> pa.ChunkedArray:
    with self._lock:
      return self._file.read(columns=[name])[name]

  def _row(self, row: int) -> pa.Table:
    group = int(np.searchsorted(self._starts, row, side="right")) - 1
    return self._group(group).slice(row - int(self._starts[group]), 1)

  def _group(self, group: int) -> pa.Table:
    with self._lock:
      table = self._groups.pop(group, None)
      if table is None:
        table = self._file.read_row_group(
          group, columns=_TRACE_COLUMNS, use_threads=False
        )
      self._groups[group] = table
      if len(self._groups) > CACHED_GROUPS:
        self._groups.popitem(last=False)
      return table


class JoinedTraces(ColumnarTraces):
  """Traces with others behind them that are held in memory.

  Args:
    main: the first ones.
    added: the others, as `trace_table` makes them.
  """

  def __init__(self, main: ColumnarTraces, added: pa.Table):
    self._main = main
    self._added = added
    self.key_ids, self.rewards = (
      np.concatenate([of_main, added[name].to_numpy()])
      for name, of_main in (("key_id", main.key_ids), ("reward", main.rewards))
    )

  def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
    yield from self._main.tables(columns)
    yield self._added.select(columns or SCHEMA.names)

  def column(self, name: str) -> pa.ChunkedArray:
    of_main = self._main.column(name)
    return pa.chunked_array([*of_main.chunks, *self._added[name].chunks])

  def _row(self, row: int) -> pa.Table:
    if row < len(self._main):
      return self._main._row(row)
    return self._added.slice(row - len(self._main), 1)


def traces_of(table: pa.Table) -> list[StepTrace]:
  """Undoes `trace_table`."""
  return [
    StepTrace(
      question=row["question"],
      history=tuple(row["history"]),
      step=row["step"],
      reward=row["reward"],
      source=row["source"],
      trace_id=row["trace_id"],
      query_id=row["query_id"],
      step_index=row["step_index"],
      answers=row["answers"],
      trajectory_id=row["trajectory_id"],
      extras=json.loads(row["extras"]),
    )
    for row in table.to_pylist()
  ]


def trajectory_columns(
  traces: Sequence[StepTrace],
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
  """A number for each trace's trajectory, -1 where it has none; step indices.

  Trajectories of two agents are two, whatever their ids.
  """
  if isinstance(traces, ColumnarTraces):
    names, sources, steps = map(
      traces.column, ("trajectory_id", "source", "step_index")
    )
  else:
    names = pa.array([t.trajectory_id for t in traces], pa.string())
    sources = pa.array([t.source for t in traces], pa.string())
    steps = pa.array([t.step_index for t in traces], pa.int64())
  pairs = pc.binary_join_element_wise(sources, names, "\x00")
  numbers = pc.dictionary_encode(pairs)
  if isinstance(numbers, pa.ChunkedArray):
    numbers = numbers.combine_chunks()
  known = np.asarray(pc.not_equal(names, ""))
  codes = np.asarray(numbers.indices, np.int64)
  return np.where(known, codes, -1), np.asarray(steps, np.int64)
