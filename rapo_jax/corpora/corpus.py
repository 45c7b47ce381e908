"""A built corpus: opened without reading it, searched, and checked.

Its folder:

    manifest.json   written last; names every other file
    texts/          contents and ids of the passages
    index/          the index over their vectors, which are float16
    bm25/           the index of their words

What a build leaves out (`index` or `bm25`) is not there.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import tempfile
from collections.abc import Sequence

from rapo_jax.corpora import bm25 as bm25_lib
from rapo_jax.corpora.manifest import Manifest, is_partial, read_manifest
from rapo_jax.corpora.packed import PackedTexts
from rapo_jax.corpora.passages import load_corpus
from rapo_jax.corpora.retrievers import (
  ByWords,
  Dense,
  Encoder,
  Hybrid,
  Mode,
  Retriever,
  check_mode,
)
from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.retrieval.buffer.manifest import file_problems
from rapo_jax.retrieval.index import base as index_lib
from rapo_jax.retrieval.index import kinds

TEXTS_FOLDER = "texts"
CONTENTS = "contents"
IDS = "ids"
INDEX_FOLDER = "index"
BM25_FOLDER = "bm25"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A built corpus whose files are mapped; use `open_corpus`.

  Attributes:
    folder: where it lies.
    manifest: what it says of itself.
    documents: contents of the passages.
    ids: of the passages.
  """

  folder: pathlib.Path
  manifest: Manifest
  documents: Sequence[str]
  ids: Sequence[str]

  def __len__(self) -> int:
    """Number of passages."""
    return len(self.documents)

  def retriever(self, mode: Mode, encoder: Encoder | None = None) -> Retriever:
    """A way to find passages; row i is `documents[i]`.

    Args:
      mode: "dense", "bm25" or "hybrid".
      encoder: of the queries; needed but for "bm25".

    Raises:
      InputError: the corpus was built without what the mode needs, or with
        another encoder.
    """
    check_mode(mode)
    ways: list[Retriever] = []
    if mode != "bm25":
      ways.append(Dense(self._checked(encoder), self._index()))
    if mode != "dense":
      if not self.manifest.source.words:
        raise InputError(_without(self.folder, mode, "its words"))
      ways.append(ByWords(bm25_lib.Bm25(self.folder / BM25_FOLDER)))
    return ways[0] if len(ways) == 1 else Hybrid(ways)

  def _checked(self, encoder: Encoder | None) -> Encoder:
    built_with = self.manifest.source.encoder
    if built_with is None:
      raise InputError(_without(self.folder, "dense", "vectors"))
    if encoder is None:
      raise InputError(
        f"search in {self.folder} by vectors needs the encoder "
        f"{built_with.id} ({built_with.sha256[:12]}): give it, or search in "
        "mode bm25."
      )
    if encoder.sha256 != built_with.sha256:
      raise InputError(
        f"{self.folder} must be searched with the encoder that embedded it, "
        f"{built_with.id} ({built_with.sha256[:12]}), got {encoder.encoder_id} "
        f"({encoder.sha256[:12]}): set encoder.path and its prefixes to that "
        "one, build the corpus again with this one, or search in mode bm25."
      )
    return encoder

  def _index(self) -> index_lib.Index:
    path = self.folder / INDEX_FOLDER
    try:
      index = kinds.load_index(path)
    # What ScaNN raises for a tree that this machine cannot use.
    except RuntimeError as error:
      _log.warning(
        "%s was built where processors differ and cannot be loaded (%s): the "
        "index is built again in memory, at every start. Build the corpus on "
        "this machine to avoid that.",
        path,
        error,
      )
      vectors = index_lib.read_vectors(path, half=True)
      index = kinds.index_class().build(vectors)
    if len(index) != len(self.documents):
      raise InputError(
        f"{path} must have a vector for each of {len(self.documents)} "
        f"passages, and has {len(index)}: copy the folder again."
      )
    return index


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
  """Opens a built corpus; sizes of all files are checked, not their content.

  Raises:
    MissingInputError: there is nothing.
    InputError: it is no corpus, not built to its end, or not as it was built.
  """
  folder = pathlib.Path(folder)
  # A build that has not ended has its own message.
  if not folder.exists() and not is_partial(folder):
    raise MissingInputError(f"no corpus at {folder}: correct the path.")
  manifest = read_manifest(folder)
  _refuse(folder, file_problems(folder, manifest.files, checksums=False))
  texts = folder / TEXTS_FOLDER
  corpus = Corpus(
    folder, manifest, PackedTexts(texts / CONTENTS), PackedTexts(texts / IDS)
  )
  for name, found in (("contents", corpus.documents), ("ids", corpus.ids)):
    if len(found) != manifest.num_passages:
      _refuse(
        folder,
        [f"it has {len(found)} {name} instead of {manifest.num_passages}"],
      )
  return corpus


def check(folder: pathlib.Path) -> list[str]:
  """Reads all of a corpus and compares it with its manifest.

  Returns:
    The problems, a line each.

  Raises:
    InputError: the folder has no manifest, or one that cannot be read.
  """
  manifest = read_manifest(folder)
  problems = file_problems(folder, manifest.files, checksums=True)
  if problems:
    return problems
  try:
    corpus = open_corpus(folder)
    for texts in (corpus.documents, corpus.ids):
      assert isinstance(texts, PackedTexts)
      problems += texts.problems()
    if manifest.source.encoder is not None:
      index_lib.kept_vectors(
        "vectors", index_lib.read_vectors(folder / INDEX_FOLDER, half=True)
      )
    if manifest.source.words:
      bm25_lib.Bm25(folder / BM25_FOLDER)
  except InputError as error:
    problems.append(str(error))
  return problems


def open_documents(
  path: str | os.PathLike[str],
) -> Corpus | list[str]:
  """A built corpus, or the documents of a file, by what is at the path.

  Raises:
    InputError: see `open_corpus` and `load_corpus`.
  """
  path = pathlib.Path(path)
  if path.is_dir() or is_partial(path):
    return open_corpus(path)
  return load_corpus(path)


def retriever_over(
  documents: Sequence[str],
  mode: Mode,
  encoder: Encoder,
  index_cls: index_lib.IndexClass,
) -> Retriever:
  """A way to find documents in memory, which are embedded here.

  Raises:
    InputError: the mode is unknown, or needs a package that is missing.
  """
  check_mode(mode)
  ways: list[Retriever] = []
  if mode != "bm25":
    ways.append(Dense(encoder, index_cls.build(encoder.encode(documents))))
  if mode != "dense":
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / BM25_FOLDER
      bm25_lib.build(documents, path)
      # Its files stay mapped after they are deleted.
      ways.append(ByWords(bm25_lib.Bm25(path)))
  return ways[0] if len(ways) == 1 else Hybrid(ways)


def _refuse(folder: pathlib.Path, problems: Sequence[str]) -> None:
  if problems:
    raise InputError(
      f"{folder} is not as it was built: {'; '.join(problems)}. Copy the "
      "folder again, or build it again; `python -m experiments.corpus check "
      f"--corpus {folder}` reads all of it."
    )


def _without(folder: pathlib.Path, mode: str, what: str) -> str:
  return (
    f"{folder} was built without {what}, which the mode {mode} needs: build "
    f"it again with --mode {mode}, or search in another mode."
  )
