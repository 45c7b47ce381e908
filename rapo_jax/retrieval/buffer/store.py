"""Step-Trace Buffers on disk: built in a stream, checked, read and merged.

A buffer is a folder, whose layout `docs/buffer.md` gives:

    manifest.json    written last; names every other file
    traces.parquet   the traces, the truth of the buffer
    index/           the index over their keys, with vectors.npy

`BufferWriter` takes a stream of traces and keeps few of them in memory. It
writes them in parts to `<folder>.partial`. So an interrupted build resumes
where it stopped, embeddings included. Embedding takes by far the longest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from rapo_jax import files, text_files
from rapo_jax.errors import InputError, accessing
from rapo_jax.retrieval.buffer.checks import value_problems
from rapo_jax.retrieval.buffer.checks import verify as verify
from rapo_jax.retrieval.buffer.manifest import (
  INDEX_FOLDER,
  TRACES_FILE,
  EncoderInfo,
  Manifest,
  check_folder,
  describe_files,
  file_problems,
  partial_folder,
  read_manifest,
  write_manifest,
)
from rapo_jax.retrieval.buffer.step_trace import StepTrace, trace_keys
from rapo_jax.retrieval.buffer.trace_file import (
  ROWS_PER_GROUP,
  SCHEMA,
  StoredTraces,
  as_traces,
  open_writer,
  trace_table,
  write_tables,
)
from rapo_jax.retrieval.encoder.sentence import SentenceEncoder
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.index import kinds

BATCH_TRACES = 4096
"""Traces put into columns at a time."""
PART_TRACES = 16_384
"""Traces after which a part is closed: what an interruption can cost."""
CHUNK_KEYS = 1024
"""Keys embedded between two files of vectors."""

_STATE_FILE = "build.json"
_OPEN_PART = "part.partial"
_log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]


class BufferWriter:
  """Builds a buffer from a stream of traces. One thread uses it.

  Args:
    directory: folder to create or replace. Until `finish` has ended what is
      done lies in `<directory>.partial`, and a buffer that is there stays.
    encoder: embeds the keys.
    index_cls: class of the index; None for ScaNN where it is installed.
    resume: go on with what an interrupted build left; begin if nothing is left.

  Attributes:
    num_traces: taken so far. After an interruption those that are not in a
      closed part are gone: give the same stream again from this one on.
    num_keys: their distinct keys.
    next_trace_id: one more than the largest id so far.
    trajectory_ids: those seen so far.

  Raises:
    InputError: an interrupted build is there and `resume` is not set, or it was
      begun with another encoder.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    encoder: SentenceEncoder,
    *,
    index_cls: index_lib.IndexClass | None = None,
    resume: bool = False,
  ):
    self._directory = pathlib.Path(directory)
    self._encoder = encoder
    self._index_cls = index_cls
    self._partial = partial_folder(self._directory)
    self._keys = KeyIds()
    self._trace_ids: set[int] = set()
    self.trajectory_ids: set[str] = set()
    self.next_trace_id = 0
    self._pending: list[StepTrace] = []
    self._writer: pq.ParquetWriter | None = None
    self._rows_in_part = 0
    # One that was killed as it began has left an empty folder.
    if self._partial.exists() and _begun(self._partial):
      self._open_partial(resume)
    else:
      with accessing(self._partial):
        self._partial.mkdir(parents=True, exist_ok=True)
      state = {"encoder_sha256": encoder.sha256}
      with files.replaced_file(
        self._partial / _STATE_FILE, private=False
      ) as new:
        new.write_text(json.dumps(state), encoding="utf-8")

  @property
  def num_traces(self) -> int:
    return len(self._trace_ids)

  @property
  def num_keys(self) -> int:
    """Distinct keys of the traces that have been put into columns."""
    return len(self._keys)

  def add(self, traces: Iterable[StepTrace]) -> None:
    """Takes traces; holds no more than a batch of them.

    Raises:
      InputError: two traces have one id, a reward is not finite, or extras are
        no JSON.
    """
    for trace in traces:
      check_trace(trace, self._trace_ids)
      self._trace_ids.add(trace.trace_id)
      self.trajectory_ids.add(trace.trajectory_id)
      self.next_trace_id = max(self.next_trace_id, trace.trace_id + 1)
      self._pending.append(trace)
      if len(self._pending) == BATCH_TRACES:
        self._write_pending()

  def flush(self) -> None:
    """Puts all that was taken on disk, where no interruption can lose it."""
    self._write_pending()
    self._close_part()

  def finish(self, progress: Progress | None = None) -> Manifest:
    """Embeds the keys, builds the index and puts the buffer in its place.

    Args:
      progress: called with the share done, 0 to 1, and a word on it.

    Returns:
      The manifest.
    """
    report = progress or (lambda share, text: None)
    self.flush()
    vectors = self._embed(report)
    report(0.9, f"indexing {self.num_keys} keys")
    index = build_index(vectors, self._encoder, self._index_cls)
    report(0.95, "writing the buffer")
    with files.replaced_folder(self._directory) as new:
      manifest = write_contents(new, self._tables(), index, self._encoder)
    shutil.rmtree(self._partial)
    report(1.0, f"{manifest.num_traces} step traces")
    return manifest

  def _open_partial(self, resume: bool) -> None:
    if not resume:
      raise InputError(
        f"{self._partial} is what an interrupted build left. Go on with it"
        " (--resume), or delete it to begin again."
      )
    state_file = self._partial / _STATE_FILE
    begun = text_files.read_json(state_file) if state_file.is_file() else {}
    if not isinstance(begun, dict):
      begun = {}
    if begun.get("encoder_sha256") != self._encoder.sha256:
      raise InputError(
        f"{self._partial} must have been begun with the encoder"
        f" {self._encoder.encoder_id} ({self._encoder.sha256[:12]}), it says"
        f" {begun.get('encoder_sha256', 'nothing')}: go on with that encoder,"
        " or delete the folder."
      )
    for part in self._parts():
      with as_traces(part):
        table = pq.read_table(
          part, columns=["trace_id", "key_id", "key", "trajectory_id"]
        )
      self._trace_ids.update(table["trace_id"].to_pylist())
      self.trajectory_ids.update(table["trajectory_id"].unique().to_pylist())
      self._keys.assign(table["key"].to_pylist())
    self.next_trace_id = max(self._trace_ids, default=-1) + 1

  def _parts(self) -> list[pathlib.Path]:
    return sorted(self._partial.glob("part-*.parquet"))

  def _write_pending(self) -> None:
    if not self._pending:
      return
    traces, self._pending = self._pending, []
    keys, num_tokens = trace_keys(traces, self._encoder)
    table = trace_table(
      traces,
      keys=keys,
      key_ids=self._keys.assign(keys),
      num_tokens=num_tokens,
    )
    if self._writer is None:
      self._writer = open_writer(self._partial / _OPEN_PART)
      self._rows_in_part = 0
    self._writer.write_table(table)
    self._rows_in_part += len(table)
    if self._rows_in_part >= PART_TRACES:
      self._close_part()

  def _close_part(self) -> None:
    if self._writer is None:
      return
    self._writer.close()
    self._writer = None
    number = len(self._parts())
    writing = self._partial / _OPEN_PART
    files.sync(writing)
    files.rename(writing, self._partial / f"part-{number:05d}.parquet")

  def _tables(self) -> Iterator[pa.Table]:
    for part in self._parts():
      with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(16 * ROWS_PER_GROUP):
          yield pa.Table.from_batches([batch])

  def _distinct_keys(self) -> Iterator[str]:
    """The text of each key, in the order of the key ids."""
    known = 0
    for part in self._parts():
      with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(columns=["key_id", "key"]):
          key_ids, rows = np.unique(
            batch["key_id"].to_numpy(), return_index=True
          )
          yield from pc.take(
            batch["key"], pa.array(rows[key_ids >= known])
          ).to_pylist()
          known = max(known, int(key_ids[-1]) + 1)

  def _embed(self, report: Progress) -> Float32[np.ndarray, "K D"]:
    """Vectors of the distinct keys, those of earlier runs read again."""
    vectors = np.empty((self.num_keys, self._encoder.dimension), np.float32)
    texts = self._distinct_keys()

    def embedded_keys(done: int) -> None:
      text = f"embedded {done} of {self.num_keys} keys"
      report(0.9 * done / self.num_keys, text)

    begun = False
    for first in range(0, self.num_keys, CHUNK_KEYS):
      chunk = list(itertools.islice(texts, CHUNK_KEYS))
      path = self._partial / f"vectors-{first // CHUNK_KEYS:05d}.npy"
      embedded = _embedded(path)
      # The last chunk of a run that was interrupted may have been shorter.
      if embedded.shape != (len(chunk), self._encoder.dimension):
        # What an earlier run has embedded would pass for a speed.
        if not begun:
          embedded_keys(first)
        begun = True
        embedded = self._encoder.encode(chunk)
        with (
          files.replaced_file(path, private=False) as new,
          new.open("wb") as file,
        ):
          np.save(file, embedded)
      vectors[first : first + len(chunk)] = embedded
      if begun:
        embedded_keys(first + len(chunk))
    return vectors


def _embedded(path: pathlib.Path) -> np.ndarray:
  """Vectors of an earlier run; empty where they have to be computed again."""
  try:
    if path.exists():
      return index_lib.open_vectors(path)
  except ValueError as error:
    _log.warning("%s is computed again: %s", path, error)
  return np.empty((0, 0), np.float32)


class KeyIds:
  """Numbers distinct key texts in the order in which they come."""

  def __init__(self) -> None:
    # Digests, since the texts are long and there may be millions.
    self._ids: dict[bytes, int] = {}

  def __len__(self) -> int:
    return len(self._ids)

  def assign(self, keys: Iterable[str]) -> Int64[np.ndarray, " N"]:
    """The number of each key, a new one for a key not seen before."""
    return np.array(
      [
        self._ids.setdefault(
          hashlib.blake2b(key.encode(), digest_size=16).digest(),
          len(self._ids),
        )
        for key in keys
      ],
      np.int64,
    )


def check_trace(trace: StepTrace, trace_ids: set[int]) -> None:
  """Refuses a trace that a buffer cannot hold.

  Args:
    trace: one that is to be added.
    trace_ids: ids that are taken.

  Raises:
    InputError: its id is taken or its reward not finite. Or its question or
      step is blank, or one of its texts cannot be written.
  """
  if trace.trace_id in trace_ids:
    raise InputError(
      f"Two traces have the id {trace.trace_id}. Number them through all"
      " trajectories with step_traces' first_trace_id."
    )
  if not math.isfinite(trace.reward):
    raise InputError(
      f"The reward of trace {trace.trace_id} is {trace.reward}; it must be"
      " finite. Drop the trajectory or fix its score."
    )
  for name, texts in (
    ("question", (trace.question,)),
    ("step", (trace.step,)),
    ("history", trace.history),
    ("source", (trace.source,)),
    ("query_id", (trace.query_id,)),
    ("trajectory_id", (trace.trajectory_id,)),
  ):
    for text in texts:
      _check_text(trace.trace_id, name, text)


def _check_text(trace_id: int, name: str, text: str) -> None:
  where = f"The {name} of trace {trace_id}"
  if not isinstance(text, str) or (
    name in ("question", "step") and not text.strip()
  ):
    raise InputError(
      f"{where} must be a text that is not blank, got {text!a:.60}. Drop the"
      " trace."
    )
  try:
    text_files.check_unicode(text)
  except text_files.TextError as error:
    raise InputError(
      f"{where} cannot be written: {error}. Drop or fix the trajectory."
    ) from error


def build_index(
  vectors: Float32[np.ndarray, "K D"],
  encoder: SentenceEncoder,
  index_cls: index_lib.IndexClass | None,
) -> index_lib.Index:
  """Builds the index over key vectors; the class None is the default one."""
  index_cls = index_cls or kinds.index_class()
  return index_cls.build(vectors, encoder_sha256=encoder.sha256)


def write_contents(
  new: pathlib.Path,
  tables: Iterable[pa.Table],
  index: index_lib.Index,
  encoder: SentenceEncoder,
  *,
  version: int = 1,
) -> Manifest:
  """Writes the files of a buffer into an empty folder, the manifest last.

  Args:
    new: the folder.
    tables: the traces, as `trace_table` makes them.
    index: over their keys.
    encoder: embedded the keys.
    version: of the content.
  """
  agents = write_tables(new / TRACES_FILE, tables)
  index.save(new / INDEX_FOLDER)
  manifest = Manifest(
    version=version,
    agents=agents,
    num_traces=sum(counts.num_traces for counts in agents.values()),
    num_keys=len(index),
    num_tokens=sum(counts.num_tokens for counts in agents.values()),
    encoder=EncoderInfo(encoder.encoder_id, encoder.sha256, encoder.max_tokens),
    index=dict(index.parameters),
    files=describe_files(new),
  )
  write_manifest(new, manifest)
  return manifest


def iter_traces(directory: str | pathlib.Path) -> Iterator[StepTrace]:
  """Goes over the traces of a buffer and holds few of them.

  Raises:
    InputError: the folder holds no buffer, or a broken one.
  """
  directory = pathlib.Path(directory)
  read_manifest(directory)
  yield from StoredTraces(directory / TRACES_FILE)


def key_vectors(
  directory: str | pathlib.Path,
) -> Float32[np.ndarray, "K D"]:
  """The vectors of a buffer's keys, mapped and not read.

  Raises:
    InputError: they are not float32 of rank 2.
  """
  return index_lib.read_vectors(pathlib.Path(directory) / INDEX_FOLDER)


def merge(
  directories: Sequence[str | pathlib.Path],
  out: str | pathlib.Path,
  encoder: SentenceEncoder,
  *,
  index_cls: index_lib.IndexClass | None = None,
) -> Manifest:
  """Joins buffers into one; nothing is embedded again.

  Traces are numbered anew from 0, in the order of the buffers. Trajectories
  stay apart: an id that an earlier buffer has too gets its own buffer's
  position before it, from 0, as in "2:id".

  Args:
    directories: buffers that `encoder` embedded.
    out: folder to create or replace.
    encoder: the encoder.
    index_cls: class of the index; None for ScaNN where it is installed.

  Returns:
    The manifest of the new buffer.

  Raises:
    InputError: a folder holds no buffer, a broken one, or one of another
      encoder.
  """
  paths = [pathlib.Path(directory) for directory in directories]
  manifests = [read_manifest(path) for path in paths]
  for path, manifest in zip(paths, manifests, strict=True):
    check_encoder(path, manifest, encoder)
    check_folder(path, file_problems(path, manifest.files, checksums=True))
    check_folder(path, value_problems(path, manifest))
  sources = [StoredTraces(path / TRACES_FILE) for path in paths]
  keys = KeyIds()
  vectors = [np.empty((0, encoder.dimension), np.float32)]
  for path, source in zip(paths, sources, strict=True):
    stored = key_vectors(path)
    for table in source.tables(["key_id", "key"]):
      known = len(keys)
      key_ids = keys.assign(table["key"].to_pylist())
      ids, rows = np.unique(key_ids, return_index=True)
      new_rows = rows[ids >= known]
      vectors.append(stored[table["key_id"].to_numpy()[new_rows]])
  index = build_index(np.concatenate(vectors), encoder, index_cls)
  with files.replaced_folder(out) as new:
    return write_contents(
      new,
      _joined(sources, keys),
      index,
      encoder,
      version=max((m.version for m in manifests), default=0) + 1,
    )


def _joined(
  sources: Sequence[StoredTraces], keys: KeyIds
) -> Iterator[pa.Table]:
  """The tables of several files with ids that are distinct in all of them."""
  num_traces = 0
  taken: set[str] = set()
  for number, source in enumerate(sources):
    seen: set[str] = set()
    for table in source.tables():
      names = table["trajectory_id"].to_pylist()
      seen.update(names)
      columns = {
        "trace_id": np.arange(num_traces, num_traces + len(table)),
        "key_id": keys.assign(table["key"].to_pylist()),
        "trajectory_id": [
          f"{number}:{name}" if name and name in taken else name
          for name in names
        ],
      }
      num_traces += len(table)
      for name, column in columns.items():
        at = SCHEMA.get_field_index(name)
        field = SCHEMA.field(at)
        table = table.set_column(at, field, pa.array(column, field.type))
      yield table
    taken.update(seen)


def check_encoder(
  directory: pathlib.Path, manifest: Manifest, encoder: SentenceEncoder
) -> None:
  """Refuses a buffer whose keys another encoder embedded.

  Raises:
    InputError: names both encoders.
  """
  saved = manifest.encoder
  if saved.sha256 != encoder.sha256:
    raise InputError(
      f"{directory} was embedded with {saved.id} ({saved.sha256[:12]}), but the"
      f" encoder given is {encoder.encoder_id} ({encoder.sha256[:12]}). Their"
      " vectors do not compare: load the same encoder, or build the buffer"
      " again with this one."
    )


def _begun(partial: pathlib.Path) -> bool:
  """Whether a build has put anything down, and is not just an empty folder."""
  return any(path.suffix != ".partial" for path in partial.iterdir())
