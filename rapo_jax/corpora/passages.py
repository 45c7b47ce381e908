"""Passages of a corpus: read from files, and cut into chunks.

A corpus has the layout of Search-R1 (Jin et al., "Search-R1: Training LLMs to
Reason and Leverage Search Engines with Reinforcement Learning", 2025): JSON
lines of `id` and `contents`. The first line of the contents is the title, in
quotes.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from rapo_jax import row_files, text_files
from rapo_jax.errors import InputError, MissingInputError, accessing

GZIP_BYTES = b"\x1f\x8b"

_TABLES = (".csv", ".tsv", ".json", ".parquet")
_FIELDS = ("contents",)
_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True)
class Passage:
  """A text that a search finds.

  Attributes:
    passage_id: tells it from the others of its corpus.
    contents: what is searched and shown.
  """

  passage_id: str
  contents: str


@dataclasses.dataclass(frozen=True)
class Chunking:
  """How passages are cut.

  Attributes:
    words: of a chunk at most, the title apart; None leaves passages whole.
    overlap: words that a chunk shares with the one before it.
  """

  words: int | None = None
  overlap: int = 0

  def __post_init__(self) -> None:
    if self.words is not None and self.words < 1:
      raise InputError(
        f"chunk_words must be at least 1, got {self.words}: correct it."
      )
    most = (self.words or 1) - 1
    if not 0 <= self.overlap <= most:
      raise InputError(
        f"overlap must lie between 0 and chunk_words - 1 ({most}), got "
        f"{self.overlap}: correct it, or set chunk_words."
      )

  def chunks(self, passage: Passage) -> list[Passage]:
    """The chunks of a passage, each behind the title.

    A passage of one chunk stays as it is. Otherwise the chunks' ids are the
    passage's with `#0`, `#1`, … behind it.
    """
    title, body = _split_title(passage.contents)
    words = list(_WORD.finditer(body))
    if self.words is None or len(words) <= self.words:
      return [passage]
    step = self.words - self.overlap
    starts = range(0, len(words) - self.overlap, step)
    chunks = []
    for number, start in enumerate(starts):
      last = words[min(start + self.words, len(words)) - 1]
      text = title + body[words[start].start() : last.end()]
      chunks.append(Passage(f"{passage.passage_id}#{number}", text))
    return chunks


def _split_title(contents: str) -> tuple[str, str]:
  """The title with its line break, "" without one; and the rest."""
  first, line_break, rest = contents.partition("\n")
  quoted = first.strip()
  if line_break and len(quoted) > 1 and quoted[0] == quoted[-1] == '"':
    return first + line_break, rest
  return "", contents


def read_passages(
  path: str | os.PathLike[str],
) -> Iterator[tuple[str, Passage]]:
  """The place of each passage in its file, for errors, and the passage.

  That ids differ is not checked.

  Args:
    path: JSON lines, each with `id` and `contents`, also compressed by gzip;
      blank lines are skipped. Or a .csv, .tsv, .json or .parquet file of such
      rows.

  Raises:
    MissingInputError: there is no such file.
    InputError: the file is broken, or a row has no id or contents; names it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingInputError(f"no corpus at {path}")
  if path.suffix.lower() in _TABLES:
    for where, row in row_files.read_rows(path, _FIELDS):
      yield where, _passage(row, where)
    return
  for number, record in text_files.parsed_lines(path, _raw_lines(path)):
    where = f"{path}:{number}"
    yield where, _passage(record, where)


def load_corpus(path: str | os.PathLike[str]) -> list[str]:
  """Reads a corpus into memory.

  Args:
    path: see `read_passages`.

  Returns:
    The contents, in the order of the file.

  Raises:
    MissingInputError: if there is no such file.
    InputError: for a row that is no passage or repeats an id, named by its
      number; for a file without passages, or one that is broken.
  """
  documents: dict[str, str] = {}
  for where, passage in read_passages(path):
    if passage.passage_id in documents:
      raise InputError(repeated_id(where, passage.passage_id))
    documents[passage.passage_id] = passage.contents
  if not documents:
    raise InputError(no_passages(path))
  return list(documents.values())


def repeated_id(where: str, passage_id: str) -> str:
  """What is wrong with a passage whose id another one has."""
  return (
    f"{where}: the id {passage_id!r} is repeated. Give each document an id of "
    "its own."
  )


def no_passages(path: str | os.PathLike[str]) -> str:
  """What is wrong with a file without passages."""
  return f"{path} has no documents: give at least one line."


@dataclasses.dataclass(frozen=True)
class Sample:
  """The first passages of a file.

  Attributes:
    passages: at least one.
    total: passages of the whole file: counted if `passages` has all of them,
      otherwise estimated from the bytes read.
  """

  passages: Sequence[Passage]
  total: int


def read_sample(path: str | os.PathLike[str], count: int) -> Sample:
  """Reads the first `count` passages.

  Raises:
    InputError: as `read_passages`, or there are none.
  """
  path = pathlib.Path(path)
  found = list(itertools.islice(read_passages(path), count + 1))
  if not found:
    raise InputError(no_passages(path))
  passages = [passage for _, passage in found[:count]]
  if len(found) <= count:
    return Sample(passages, len(passages))
  return Sample(passages, max(count + 1, _estimated(path, passages)))


def _estimated(path: pathlib.Path, passages: Sequence[Passage]) -> int:
  """Rows of a file, from its size and those of the first rows."""
  if path.suffix.lower() == ".parquet":
    return int(pq.read_metadata(path).num_rows)
  size = path.stat().st_size
  if path.suffix.lower() in _TABLES:
    bytes_read = sum(
      len(p.passage_id.encode()) + len(p.contents.encode()) for p in passages
    )
    return round(size * len(passages) / bytes_read)
  with path.open("rb") as file:
    lines = gzip.GzipFile(fileobj=file) if _is_gzip(path) else file
    count = sum(bool(line.strip()) for line in _first(lines, len(passages)))
    # What is compressed is read in blocks, of which the last is read ahead.
    return round(size * count / max(file.tell(), 1))


def _first(lines: Any, count: int) -> Iterator[bytes]:
  for _ in range(count):
    yield lines.readline()


def _is_gzip(path: pathlib.Path) -> bool:
  with accessing(path), path.open("rb") as file:
    return file.read(len(GZIP_BYTES)) == GZIP_BYTES


def _raw_lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Number, from 1, and bytes of each line, decompressed."""
  if not _is_gzip(path):
    if path.suffix.lower() == ".gz":
      raise InputError(
        f"{path} must be compressed by gzip, as its name says, and is not: "
        "copy the file again, or name it .jsonl."
      )
    yield from text_files.raw_lines(path)
    return
  try:
    with gzip.open(path, "rb") as lines:
      yield from enumerate(lines, 1)
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(
      f"{path} must be a whole gzip file, and is not ({error}): copy the file "
      "again."
    ) from error


def _passage(record: Any, where: str) -> Passage:
  if not isinstance(record, dict):
    raise InputError(f"{where}: expected an object, got {record!a:.80}")
  contents, passage_id = record.get("contents"), record.get("id")
  if passage_id is None or not isinstance(contents, str) or not contents:
    raise InputError(
      f'{where}: expected "id" and a text "contents", got the keys '
      f"{sorted(record)}. Convert the file to this layout."
    )
  if isinstance(passage_id, bool) or not isinstance(passage_id, str | int):
    raise InputError(
      f'{where}: "id" must be a text or a whole number, got {passage_id!a:.80}.'
    )
  try:
    text_files.check_text(contents)
    text_files.check_text(str(passage_id))
  except text_files.TextError as error:
    raise InputError(f"{where}: {error}. Fix or remove the row.") from error
  return Passage(str(passage_id), contents)
