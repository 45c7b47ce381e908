"""The file of step traces: its columns, and how it is written and read.

One row a trace, in Parquet, compressed and in small row groups. Opening it
reads a few narrow columns; the text of a step is read when it is asked for, a
row group at a time.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import json
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int, Int64

from rapo_jax import text_files
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.manifest import AgentCounts
from rapo_jax.retrieval.buffer.step_trace import StepTrace

ROWS_PER_GROUP = 256
"""Rows that are read to get at one; of the paper's steps, about a MB.

Half as many take 40 % of the time to read. But the footer's entry for each
group stays in memory: 50 MB more at the paper's size.
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

# Columns that make a trace; the key is long, and not needed for it.
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
    InputError: the extras of a trace are no JSON.
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
    raise InputError(
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
  tally = AgentTally()
  with open_writer(path) as writer:
    for table in tables:
      writer.write_table(table, row_group_size=ROWS_PER_GROUP)
      tally.add(table)
  return tally.counts()


class AgentTally:
  """Counts what each agent contributed."""

  def __init__(self) -> None:
    self._counts: dict[str, collections.Counter[str]] = collections.defaultdict(
      collections.Counter
    )
    self._trajectories: dict[str, set[str]] = collections.defaultdict(set)

  def add(self, table: pa.Table) -> None:
    """Counts the rows of a table, none of whose values is null."""
    by_agent = table.group_by("source").aggregate(
      [("num_tokens", "sum"), ("trace_id", "count")]
    )
    for row in by_agent.to_pylist():
      self._counts[row["source"]]["tokens"] += row["num_tokens_sum"]
      self._counts[row["source"]]["traces"] += row["trace_id_count"]
    pairs = table.group_by(["source", "trajectory_id"]).aggregate([])
    for row in pairs.to_pylist():
      if row["trajectory_id"]:
        self._trajectories[row["source"]].add(row["trajectory_id"])

  def counts(self) -> dict[str, AgentCounts]:
    """By the name of the agent."""
    return {
      name: AgentCounts(
        len(self._trajectories[name]), count["traces"], count["tokens"]
      )
      for name, count in sorted(self._counts.items())
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


@contextlib.contextmanager
def as_traces(path: pathlib.Path) -> Iterator[None]:
  """Says which file of traces cannot be read, where Parquet fails.

  Raises:
    InputError: a part of the file is broken.
  """
  try:
    yield
  except (pa.ArrowException, OSError) as error:
    raise InputError(
      f"{path} must be a Parquet file of step traces, but cannot be read as"
      f" one ({error}). Copy the folder again, or build the buffer again."
    ) from error


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
    InputError: the file is no file of traces, or broken.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    with as_traces(path):
      self._file = pq.ParquetFile(path, memory_map=True)
      _check_schema(path, self._file.schema_arrow)
      narrow = self._file.read(columns=["key_id", "reward"])
    _check_narrow(path, narrow)
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
    with as_traces(self._path):
      batches = self._file.iter_batches(16 * ROWS_PER_GROUP, columns=columns)
      for batch in batches:
        yield pa.Table.from_batches([batch])

  def column(self, name: str) -> pa.ChunkedArray:
    with self._lock, as_traces(self._path):
      return self._file.read(columns=[name])[name]

  def first_nulls(self, names: Sequence[str]) -> dict[str, int]:
    """Columns of plain values that hold a null, and its first row.

    The file counts the nulls of a row group, so that next to nothing is read.
    """
    metadata = self._file.metadata
    schema = metadata.schema
    places = {schema.column(i).path: i for i in range(len(schema))}
    found: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
      row_group = metadata.row_group(group)
      for name in names:
        counts = row_group.column(places[name]).statistics
        if name in found or (
          counts is not None and counts.has_null_count and not counts.null_count
        ):
          continue
        with self._lock, as_traces(self._path):
          values = self._file.read_row_group(group, columns=[name])[name]
        if values.null_count:
          row = pc.index(pc.is_null(values), True).as_py()
          found[name] = int(self._starts[group]) + row
    return found

  def _row(self, row: int) -> pa.Table:
    group = int(np.searchsorted(self._starts, row, side="right")) - 1
    return self._group(group).slice(row - int(self._starts[group]), 1)

  def _group(self, group: int) -> pa.Table:
    with self._lock:
      table = self._groups.pop(group, None)
      if table is None:
        with as_traces(self._path):
          table = self._file.read_row_group(
            group, columns=_TRACE_COLUMNS, use_threads=False
          )
      self._groups[group] = table
      if len(self._groups) > CACHED_GROUPS:
        self._groups.popitem(last=False)
      return table


def _check_schema(path: pathlib.Path, schema: pa.Schema) -> None:
  """Refuses columns of other names or types, whatever lists call an item."""
  wanted = [f"{field.name} {field.type}" for field in SCHEMA]
  found = [
    f"{field.name} {pa.list_(field.type.value_type)}"
    if pa.types.is_list(field.type)
    else f"{field.name} {field.type}"
    for field in schema
  ]
  if found != wanted:
    raise InputError(
      f"{path} must have the columns {', '.join(wanted)}, it has"
      f" {', '.join(found)}. Build the buffer again."
    )


def _check_narrow(path: pathlib.Path, narrow: pa.Table) -> None:
  """Refuses rows that cannot be ordered by key and reward."""
  for name in narrow.column_names:
    if narrow[name].null_count:
      row = pc.index(pc.is_null(narrow[name]), True).as_py()
      raise InputError(
        f"{path}: the {name} of row {row} is null, and must be a number."
        " Build the buffer again."
      )
  rewards = narrow["reward"].to_numpy()
  if not np.isfinite(rewards).all():
    row = int(np.argmin(np.isfinite(rewards)))
    raise InputError(
      f"{path}: the reward of row {row} is {rewards[row]}, and must be finite."
      " Build the buffer again."
    )


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
  """Undoes `trace_table`.

  Raises:
    InputError: a value is null, or the extras of a trace are no JSON object.
  """
  rows = table.to_pylist()
  for row in rows:
    problem = row_problem(row)
    if problem is not None:
      raise InputError(f"{problem}. Copy the buffer again, or build it again.")
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
    for row in rows
  ]


def row_problem(row: Mapping[str, Any]) -> str | None:
  """The first value of a trace that is null, or extras that are no object."""
  for name, value in row.items():
    if value is None or (name == "history" and None in value):
      return f"the {name} of trace {row['trace_id']} is null"
  try:
    extras = text_files.parse_json(row["extras"])
  except text_files.TextError as error:
    return f"the extras of trace {row['trace_id']} cannot be read ({error})"
  if not isinstance(extras, dict):
    return f"the extras of trace {row['trace_id']} must be a JSON object"
  return None


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
