"""What can be wrong with a buffer's folder, value by value.

`docs/buffer.md` says what the columns, the manifest and the vectors are. This
says where a folder is not so: by the trace and by the value.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rapo_jax.retrieval.buffer.manifest import (
  INDEX_FOLDER,
  TRACES_FILE,
  Manifest,
  file_problems,
  partial_folder,
  read_manifest,
)
from rapo_jax.retrieval.buffer.trace_file import (
  SCHEMA,
  AgentTally,
  StoredTraces,
  row_problem,
)
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.index import kinds

NORM_TOLERANCE = 1e-3
"""Of a vector's norm from 1: float32 rounds by 1e-7, bfloat16 by 4e-3 a value,
which is far less of the sum."""

_ROWS = 2**14
_SHOWN = 3
_NEVER_BLANK = ("question", "step", "source", "query_id")
_NEVER_NEGATIVE = ("trace_id", "key_id", "step_index", "num_tokens")
# The same for all steps of a trajectory.
_OF_TRAJECTORY = ("question", "query_id", "reward")
_TRAJECTORY_COLUMNS = (
  "source",
  "trajectory_id",
  "step_index",
  *_OF_TRAJECTORY,
)
# A trace that is read is checked then.
_LONG = ("history", "key")


def verify(directory: str | pathlib.Path) -> list[str]:
  """Reads all of a buffer and says what is wrong with it, a line each.

  Looks at sizes, checksums, every row and every vector; builds nothing and
  needs no encoder.

  Returns:
    The problems; empty if the buffer is as it was written.
  """
  directory = pathlib.Path(directory)
  try:
    manifest = read_manifest(directory)
  except ValueError as error:
    return [str(error)]
  problems = file_problems(directory, manifest.files, checksums=True)
  if partial_folder(directory).exists():
    problems.append(
      f"{partial_folder(directory)} is what an interrupted build left: go on"
      " with it (--resume), or delete it"
    )
  files_as_written = not problems
  problems += _total_problems(manifest)
  try:
    problems += row_problems(directory / TRACES_FILE, manifest)
  except ValueError as error:
    problems.append(str(error))
  try:
    problems += vector_problems(directory, manifest)
  except ValueError as error:
    problems.append(f"the vectors cannot be read ({error})")
  problems += _index_problems(directory, manifest, load=files_as_written)
  return problems


def _total_problems(manifest: Manifest) -> Iterator[str]:
  for name in ("num_traces", "num_tokens"):
    total = sum(getattr(agent, name) for agent in manifest.agents.values())
    if total != getattr(manifest, name):
      yield (
        f"the manifest's {name} must be the sum of its agents', {total}, it is"
        f" {getattr(manifest, name)}"
      )


def row_problems(path: pathlib.Path, manifest: Manifest) -> list[str]:
  """Problems of the rows of a file of traces.

  Args:
    path: the file.
    manifest: of its buffer; counts and agents are compared with it.

  Returns:
    The problems, a line each.

  Raises:
    ValueError: it is no file of traces.
  """
  traces = StoredTraces(path)
  problems = []
  if len(traces) != manifest.num_traces:
    problems.append(
      f"{TRACES_FILE} has {len(traces)} traces instead of {manifest.num_traces}"
    )
  used = np.unique(traces.key_ids)
  if len(used) != manifest.num_keys or not np.array_equal(
    used, np.arange(len(used))
  ):
    problems.append(
      f"the key ids of the traces are not 0 to {manifest.num_keys - 1}"
    )
  rows = _Rows()
  try:
    for table in traces.tables():
      rows.check(table)
  # Text that is not UTF-8 is an ArrowException.
  except (pa.ArrowException, ValueError) as error:
    return [*problems, f"{TRACES_FILE} cannot be read to its end ({error})"]
  problems += rows.problems()
  if rows.has_nulls:
    return problems
  counted = rows.tally.counts()
  if counted != manifest.agents:
    problems.append(
      f"the agents have {_listed(counted)} instead of"
      f" {_listed(manifest.agents)}"
    )
  columns = {name: traces.column(name) for name in _TRAJECTORY_COLUMNS}
  return [*problems, *_trajectory_problems(pa.table(columns))]


def value_problems(directory: pathlib.Path, manifest: Manifest) -> list[str]:
  """Nulls and vectors with which a search would go wrong.

  This part of `verify` is cheap enough to run whenever a buffer is opened.

  Args:
    directory: of the buffer.
    manifest: of the buffer.

  Returns:
    The problems, a line each.

  Raises:
    ValueError: a file cannot be read.
  """
  return [
    *_null_problems(directory / TRACES_FILE),
    *vector_problems(directory, manifest),
  ]


def _null_problems(path: pathlib.Path) -> list[str]:
  """Columns of a file of traces that have nulls; the longest are not read.

  Raises:
    ValueError: a column cannot be read.
  """
  names = [name for name in SCHEMA.names if name not in _LONG]
  found = StoredTraces(path).first_nulls(names)
  return [f"the {name} of row {row} is null" for name, row in found.items()]


def _listed(agents: Mapping[str, Any]) -> str:
  return ", ".join(
    f"{name}: {c.num_trajectories} trajectories, {c.num_traces} traces,"
    f" {c.num_tokens} tokens"
    for name, c in agents.items()
  )


class _Rows:
  """Checks rows table by table.

  Attributes:
    has_nulls: whether a value was null, so that counts mean nothing.
    tally: what each agent contributed.
  """

  def __init__(self) -> None:
    self.has_nulls = False
    self.tally = AgentTally()
    self._found: dict[str, list[str]] = {}
    self._trace_ids: set[int] = set()
    self._key_of_id: dict[int, bytes] = {}
    self._id_of_key: dict[bytes, int] = {}

  def problems(self) -> list[str]:
    """A line for each kind, with the first traces that have it."""
    lines = []
    for rule, places in self._found.items():
      more = len(places) - _SHOWN
      shown = ", ".join(places[:_SHOWN])
      lines.append(f"{rule}: {shown}{f' and {more} more' if more > 0 else ''}")
    return lines

  def check(self, table: pa.Table) -> None:
    """Notes what is wrong with some rows.

    Raises:
      pa.ArrowException: a text is not UTF-8.
    """
    table.validate(full=True)
    ids = table["trace_id"].to_pylist()
    nulls = False
    for name in SCHEMA.names:
      if table[name].null_count:
        nulls = True
        found = np.asarray(pc.is_null(table[name]))
        self._note(f"{name} must not be null", ids, found)
    if nulls:
      self.has_nulls = True
      return
    self._check_numbers(table, ids)
    self._check_texts(table, ids)
    self._check_ids(ids)
    self._check_keys(table, ids)
    self.tally.add(table)

  def _note(
    self,
    rule: str,
    ids: list[int | None],
    found: np.ndarray,
    values: Any = None,
  ) -> None:
    for row in np.flatnonzero(found):
      value = "" if values is None else f" has {values[row]!a:.60}"
      self._found.setdefault(rule, []).append(f"trace {ids[row]}{value}")

  def _check_numbers(self, table: pa.Table, ids: list[int | None]) -> None:
    rewards = table["reward"].to_numpy()
    rule = "reward must be finite"
    self._note(rule, ids, ~np.isfinite(rewards), rewards.tolist())
    for name in _NEVER_NEGATIVE:
      values = table[name].to_numpy()
      self._note(f"{name} must be at least 0", ids, values < 0, values.tolist())
    steps = table["step_index"].to_numpy()
    lengths = np.asarray(pc.list_value_length(table["history"]))
    self._note(
      "step_index must be the number of steps in the history",
      ids,
      steps != lengths,
      steps.tolist(),
    )

  def _check_texts(self, table: pa.Table, ids: list[int | None]) -> None:
    for name in _NEVER_BLANK:
      blank = pc.equal(pc.utf8_trim_whitespace(table[name]), "")
      self._note(f"{name} must not be blank", ids, np.asarray(blank))
    for row in table.select(["trace_id", "history", "extras"]).to_pylist():
      problem = row_problem(row)
      if problem is not None:
        self._found.setdefault(problem, []).append(f"trace {row['trace_id']}")

  def _check_ids(self, ids: list[int | None]) -> None:
    for trace_id in ids:
      assert trace_id is not None
      if trace_id in self._trace_ids:
        rule = f"two traces have the id {trace_id}"
        self._found.setdefault(rule, []).append(f"trace {trace_id}")
      self._trace_ids.add(trace_id)

  def _check_keys(self, table: pa.Table, ids: list[int | None]) -> None:
    """Traces share a key's id if and only if they share its text."""
    keys = table["key"].to_pylist()
    for trace_id, key_id, key in zip(
      ids, table["key_id"].to_pylist(), keys, strict=True
    ):
      digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
      if (
        self._key_of_id.setdefault(key_id, digest) != digest
        or self._id_of_key.setdefault(digest, key_id) != key_id
      ):
        rule = "key_id must be the same for the same key and for no other"
        self._found.setdefault(rule, []).append(f"trace {trace_id}")


def _trajectory_problems(table: pa.Table) -> Iterator[str]:
  """Steps of one trajectory with two questions, rewards or the same number."""
  table = table.filter(pc.not_equal(table["trajectory_id"], ""))
  grouped = table.group_by(["source", "trajectory_id"]).aggregate(
    [(name, "count_distinct") for name in (*_OF_TRAJECTORY, "step_index")]
    + [("step_index", "count")]
  )
  for name in _OF_TRAJECTORY:
    wrong = pc.not_equal(grouped[f"{name}_count_distinct"], 1)
    yield from _trajectories(
      grouped.filter(wrong), f"the steps of a trajectory must have one {name}"
    )
  wrong = pc.not_equal(
    grouped["step_index_count_distinct"], grouped["step_index_count"]
  )
  yield from _trajectories(
    grouped.filter(wrong), "two steps of a trajectory must not have one number"
  )


def _trajectories(wrong: pa.Table, rule: str) -> Iterator[str]:
  if len(wrong):
    shown = ", ".join(wrong["trajectory_id"].slice(0, _SHOWN).to_pylist())
    yield f"{rule}: {len(wrong)} have not, such as {shown}"


def vector_problems(directory: pathlib.Path, manifest: Manifest) -> list[str]:
  """Problems of the vectors of a buffer: their number and each norm.

  Args:
    directory: of the buffer.
    manifest: of the buffer.

  Returns:
    The problems, a line each.

  Raises:
    ValueError: they cannot be read.
  """
  vectors = index_lib.read_vectors(directory / INDEX_FOLDER)
  problems = []
  if len(vectors) != manifest.num_keys:
    problems.append(
      f"there are {len(vectors)} vectors instead of {manifest.num_keys}"
    )
  norms = np.concatenate(
    [
      np.linalg.norm(vectors[first : first + _ROWS], axis=1)
      for first in range(0, len(vectors), _ROWS)
    ]
    or [np.empty(0, np.float32)]
  )
  finite = np.isfinite(norms)
  for rule, wrong in (
    ("a vector must be finite", ~finite),
    (
      "a vector must have norm 1",
      finite & (np.abs(norms - 1) > NORM_TOLERANCE),
    ),
  ):
    rows = np.flatnonzero(wrong)
    if len(rows):
      shown = ", ".join(f"{r} has norm {norms[r]:g}" for r in rows[:_SHOWN])
      problems.append(f"{rule}: {len(rows)} have not; row {shown}")
  return problems


def _index_problems(
  directory: pathlib.Path, manifest: Manifest, *, load: bool
) -> Iterable[str]:
  """What is wrong with an index, apart from its vectors.

  Args:
    directory: of the buffer.
    manifest: of the buffer.
    load: open the index as well. Only where its files are as they were
      written, since ScaNN does not survive files that are not.
  """
  path = directory / INDEX_FOLDER
  try:
    meta = index_lib.read_meta(path)
    encoder_sha256 = meta.pop("encoder_sha256")
    # As text, since true is not 1 and 1 is not 1.0.
    if _canonical(meta) != _canonical(manifest.index):
      yield (
        f"{INDEX_FOLDER}/{index_lib.META_FILE} says {meta!a:.200}, the manifest"
        f" {dict(manifest.index)!a:.200}"
      )
    elif load:
      kinds.load_index(path, encoder_sha256=manifest.encoder.sha256)
    if encoder_sha256 != manifest.encoder.sha256:
      yield (
        f"the index is of the encoder {encoder_sha256}, the manifest of"
        f" {manifest.encoder.sha256}"
      )
  except (ValueError, OSError, RuntimeError) as error:
    yield f"the index cannot be read ({error})"


def _canonical(content: Mapping[str, Any]) -> str:
  return json.dumps(dict(content), sort_keys=True)
