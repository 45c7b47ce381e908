"""Builds a corpus in stages, each of which an interruption leaves whole.

What is done lies in `<folder>.partial` until the last stage has ended:

    build.json      what the corpus is made from
    vectors/        vectors of 2,048 passages a file
    corpus/         texts/, index/ and bm25/, each there whole or not at all

The same command goes on where a killed one stopped. Several processes may embed
at a time, on machines that share the folder. The result is the same bit for
bit, the index apart: two ScaNN trees of the same vectors differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float16

from rapo_jax import files, text_files
from rapo_jax.corpora import bm25 as bm25_lib
from rapo_jax.corpora import manifest as manifest_lib
from rapo_jax.corpora.corpus import (
  BM25_FOLDER,
  CONTENTS,
  IDS,
  INDEX_FOLDER,
  TEXTS_FOLDER,
)
from rapo_jax.corpora.manifest import MARKS, Manifest, Source
from rapo_jax.corpora.packed import PackedTexts, PackedWriter
from rapo_jax.corpora.passages import (
  Chunking,
  Passage,
  no_passages,
  read_passages,
  repeated_id,
)
from rapo_jax.corpora.retrievers import Encoder, Mode, check_mode
from rapo_jax.errors import InputError, accessing
from rapo_jax.retrieval.buffer.manifest import (
  EncoderInfo,
  FileInfo,
  describe_files,
  partial_folder,
)
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.index import kinds, scann_index

CHUNK_PASSAGES = 2048
"""Passages of a file of vectors: what an interruption costs."""
INDEX_PARAMETERS = (
  ("neighbors", 3),
  ("query_cosine", 0.7),
  ("recall_target", 0.95),
)
"""Of ScaNN: a search tool looks for three passages. By MiniLM a question has a
cosine of about 0.7 to the passage that answers it."""
STAGES = ("read", "embed", "index", "words")

Report = Callable[[int, int, str], None]
"""Takes what is done of a stage, how much it is in all, and a word on it."""

_STATE_FILE = "build.json"
_LOCK_FILE = "lock"
_CORPUS_FOLDER = "corpus"
_VECTORS_FOLDER = "vectors"
_ROWS = 2**16
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shard:
  """A part of the passages to embed, the `number`th of `count`, from 1."""

  number: int
  count: int

  def __post_init__(self) -> None:
    if not 1 <= self.number <= self.count:
      raise InputError(
        f"a shard must be 1/N to N/N, got {self.number}/{self.count}: correct "
        "it."
      )


class CorpusBuilder:
  """Builds one corpus. One thread uses it; the methods in this order.

  Another process that builds the same folder waits, or embeds what is left.
  """

  def __init__(
    self,
    source_file: pathlib.Path,
    folder: pathlib.Path,
    encoder: Encoder | None,
    *,
    mode: Mode = "hybrid",
    chunking: Chunking | None = None,
    index: kinds.IndexConfig | None = None,
    replace: bool = False,
  ):
    """Begins a build, or finds an interrupted one.

    Args:
      source_file: see `read_passages`; all of it is read for its digest.
      folder: of the corpus.
      encoder: embeds the passages; not needed for the mode "bm25".
      mode: the ways to search that the corpus is to have, "hybrid" for both.
      chunking: how passages are cut; None to leave them whole.
      index: kind of the index over vectors. The kind "auto" builds ScaNN where
        it is installed, its parameters chosen for the three nearest passages.
      replace: whether a corpus that is there makes room at the end.

    Raises:
      InputError: something is at the folder already; or an interrupted build
        was begun from something else.
    """
    check_mode(mode)
    if mode != "dense":
      bm25_lib.check_installed()
    check_room(folder, replace=replace)
    self._folder = files.followed(folder)
    self._input = source_file
    self._encoder = encoder if mode != "bm25" else None
    if self._encoder is None and mode != "bm25":
      raise InputError(f"the mode {mode} needs an encoder, got none.")
    self._index_cls = _index_class(index or kinds.IndexConfig())
    self._source = _source(
      source_file, self._encoder, chunking or Chunking(), mode
    )
    self._partial = partial_folder(self._folder)
    self._corpus = self._partial / _CORPUS_FOLDER
    self._texts = self._corpus / TEXTS_FOLDER
    with accessing(self._partial):
      self._corpus.mkdir(parents=True, exist_ok=True)
    with files.locked(self._partial / _LOCK_FILE):
      self._begin()

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    """Waits until no other process works on the build, embedding apart."""
    lock = self._partial / _LOCK_FILE
    if lock.exists():
      with files.locked(lock):
        if lock.exists():
          yield
          return
    raise InputError(
      f"another process has ended the build of {self._folder} meanwhile: "
      "nothing is left to do."
    )

  def _begin(self) -> None:
    """Writes what the corpus is made from, or compares it."""
    path = self._partial / _STATE_FILE
    if not path.is_file():
      text = json.dumps(dataclasses.asdict(self._source), indent=2) + "\n"
      with files.replaced_file(path, private=False) as new:
        new.write_text(text, encoding="utf-8")
      return
    try:
      begun = manifest_lib.source_of(text_files.read_json(path))
    except (KeyError, TypeError, AttributeError, ValueError):
      begun = None
    if begun != self._source:
      raise InputError(
        f"{self._partial} must have been begun with this input, encoder, "
        "chunking and mode, and was not: give the same ones to go on with it, "
        "or delete the folder to begin again."
      )

  def read(self, report: Report) -> int:
    """Reads the passages, unless it was done before.

    Returns:
      How many there are, chunks where they are cut.

    Raises:
      InputError: the file is broken, or two rows have one id; names the row.
    """
    with self._locked():
      if not self._texts.is_dir():
        with files.replaced_folder(self._texts) as new:
          self._write_texts(new, report)
    return len(self._contents())

  def _write_texts(self, new: pathlib.Path, report: Report) -> None:
    ids = _DistinctIds()
    chunks = (
      (where, chunk)
      for where, passage in read_passages(self._input)
      for chunk in self._source.chunking.chunks(passage)
    )
    count = 0
    with (
      PackedWriter(new / CONTENTS) as contents_writer,
      PackedWriter(new / IDS) as ids_writer,
    ):
      while block := list(itertools.islice(chunks, _ROWS)):
        ids.add(block)
        contents_writer.extend(chunk.contents for _, chunk in block)
        ids_writer.extend(chunk.passage_id for _, chunk in block)
        count += len(block)
        report(count, 0, f"{count:,} passages")
    if not count:
      raise InputError(no_passages(self._input))

  def embed(self, report: Report, shard: Shard | None = None) -> None:
    """Embeds passages, those of earlier runs and other processes apart.

    Args:
      report: counts passages.
      shard: embed this part alone; None for all.
    """
    if self._encoder is None or (self._corpus / INDEX_FOLDER).is_dir():
      return
    contents = self._contents()
    (self._partial / _VECTORS_FOLDER).mkdir(exist_ok=True)
    shard = shard or Shard(1, 1)
    starts = range(0, len(contents), CHUNK_PASSAGES)
    own = starts[shard.number - 1 :: shard.count]
    begun = False
    for done, start in enumerate(own):
      size = min(CHUNK_PASSAGES, len(contents) - start)
      path = self._vectors_file(start)
      # Another process may embed them, and has then written them.
      with files.locked(path.with_suffix(".lock")):
        there = self._chunk(path, size) is not None
        # What an earlier run has embedded would pass for a speed.
        begun = begun or not there
        if begun:
          report(done, len(own), f"{start:,} of {len(contents):,} passages")
        if not there:
          vectors = self._encoder.encode(contents[start : start + size])
          with (
            files.replaced_file(path, private=False) as new,
            new.open("wb") as file,
          ):
            np.save(file, vectors.astype(np.float16))
    report(len(own), len(own), f"{len(contents):,} passages")

  def index(self) -> None:
    """Builds the index over all vectors, unless it was done before."""
    path = self._corpus / INDEX_FOLDER
    if self._encoder is None or path.is_dir():
      return
    with self._locked():
      if path.is_dir():
        return
      index = self._index_cls.build(
        self._all_vectors(), encoder_sha256=self._encoder.sha256
      )
      index.save(path)
      shutil.rmtree(self._partial / _VECTORS_FOLDER)

  def words(self, report: Report) -> None:
    """Builds the index of words, unless it was done before."""
    path = self._corpus / BM25_FOLDER
    if not self._source.words or path.is_dir():
      return
    with self._locked():
      if path.is_dir():
        return
      contents = self._contents()
      bm25_lib.build(
        contents,
        path,
        lambda done, total: report(done, total, f"{done:,} passages"),
      )

  def finish(self) -> Manifest:
    """Writes the manifest and puts the corpus in its place."""
    with self._locked():
      index = None
      if self._encoder is not None:
        index = index_lib.read_meta(self._corpus / INDEX_FOLDER)
      manifest = Manifest(
        source=self._source,
        num_passages=len(self._contents()),
        index=index,
        files=describe_files(self._corpus),
      )
      manifest_lib.write_manifest(self._corpus, manifest)
      files.take_place(self._corpus, self._folder)
      shutil.rmtree(self._partial)
    return manifest

  def _contents(self) -> PackedTexts:
    return PackedTexts(self._texts / CONTENTS)

  def _vectors_file(self, start: int) -> pathlib.Path:
    name = f"{start // CHUNK_PASSAGES:06d}.npy"
    return self._partial / _VECTORS_FOLDER / name

  def _chunk(
    self, path: pathlib.Path, size: int
  ) -> Float16[np.ndarray, "N D"] | None:
    """Vectors of an earlier run; None where they have to be computed."""
    assert self._encoder is not None
    if not path.exists():
      return None
    try:
      vectors = index_lib.open_vectors(path, half=True)
    except InputError as error:
      _log.warning("%s is computed again: %s", path, error)
      return None
    if vectors.shape != (size, self._encoder.dimension):
      return None
    return vectors if vectors.dtype == np.float16 else None

  def _all_vectors(self) -> Float16[np.ndarray, "N D"]:
    """The vectors of all files in one that is mapped.

    Raises:
      InputError: some are not embedded yet.
    """
    assert self._encoder is not None
    count = len(self._contents())
    vectors = np.lib.format.open_memmap(
      self._partial / _VECTORS_FOLDER / "all.npy",
      "w+",
      np.float16,
      (count, self._encoder.dimension),
    )
    for start in range(0, count, CHUNK_PASSAGES):
      size = min(CHUNK_PASSAGES, count - start)
      chunk = self._chunk(self._vectors_file(start), size)
      if chunk is None:
        raise InputError(
          f"{self._vectors_file(start)} must be there before the index is "
          "built, and is not: start the build again without --shard."
        )
      vectors[start : start + size] = chunk
    vectors.flush()
    return vectors


def _index_class(config: kinds.IndexConfig) -> index_lib.IndexClass:
  if config.kind == kinds.AUTO and scann_index.is_scann_installed():
    config = kinds.IndexConfig(scann_index.ScannIndex.kind, INDEX_PARAMETERS)
  return kinds.index_class(config)


def check_room(folder: pathlib.Path, *, replace: bool) -> None:
  """Refuses a folder for a corpus where there is something.

  Raises:
    InputError: there is, and it is not to be replaced or is no corpus.
  """
  if replace:
    files.check_replaceable(folder, MARKS, "a corpus")
  elif folder.exists():
    raise InputError(
      f"there is something at {folder} already: choose another folder, or let "
      "it be replaced (--replace)."
    )


def build(
  builder: CorpusBuilder, report: Report = lambda done, total, text: None
) -> Manifest:
  """Goes through all stages of a build."""
  builder.read(report)
  builder.embed(report)
  builder.index()
  builder.words(report)
  return builder.finish()


def _source(
  path: pathlib.Path,
  encoder: Encoder | None,
  chunking: Chunking,
  mode: Mode,
) -> Source:
  with accessing(path), path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  info = FileInfo(path.stat().st_size, digest)
  encoder_info = None
  if encoder is not None:
    encoder_info = EncoderInfo(
      encoder.encoder_id, encoder.sha256, encoder.max_tokens
    )
  return Source({path.name: info}, chunking, encoder_info, mode != "dense")


class _DistinctIds:
  """Finds repeated ids, with 8 bytes for each.

  Ids are compared by 64 bits of their digests. Among 21 million, two that
  differ are taken for one with a chance of 1 in 100,000.
  """

  def __init__(self) -> None:
    # Sorted, each at least as long as all behind it.
    self._runs: list[np.ndarray] = []

  def add(self, block: list[tuple[str, Passage]]) -> None:
    """Takes the passages of a block and their places.

    Raises:
      InputError: an id is repeated; names the place of the second one.
    """
    ids = np.array([_digest(chunk.passage_id) for _, chunk in block], np.uint64)
    order = np.argsort(ids, kind="stable")
    run = ids[order]
    again = np.zeros(len(run), bool)
    again[1:] = run[1:] == run[:-1]
    for other in self._runs:
      at = np.minimum(np.searchsorted(other, run), len(other) - 1)
      again |= other[at] == run
    if again.any():
      where, chunk = block[int(order[again].min())]
      raise InputError(repeated_id(where, chunk.passage_id))
    while self._runs and len(self._runs[-1]) <= len(run):
      run = np.sort(np.concatenate([self._runs.pop(), run]))
    self._runs.append(run)


def _digest(passage_id: str) -> int:
  digest = hashlib.blake2b(passage_id.encode("utf-8"), digest_size=8).digest()
  return int.from_bytes(digest, "little")
