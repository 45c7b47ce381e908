"""Questions out of the files that data sets come in."""

from __future__ import annotations

import base64
import binascii
import collections
import contextlib
import csv
import hashlib
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rapo_jax import text_files
from rapo_jax.dataset_rows import unpacked, user_message
from rapo_jax.errors import InputError, MissingInputError

FIELDS = ("question", "problem", "query", "prompt")
"""Where a question stands, the first of them that a row has. Capitals and
white space around a name do not count."""
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_SEPARATORS = (",", ";", "\t")


def read_questions(path: pathlib.Path, field: str | None = None) -> list[str]:
  """Reads the questions of a data set.

  Text is UTF-8, with a byte order mark or without. Rows of BrowseComp, which
  come encrypted, are decrypted with their canary.

  Args:
    path: a .jsonl, .json, .csv, .tsv or .parquet file. JSON is a list of
      objects, or an object with one such list. A .csv file may be separated
      by semicolons or tabs.
    field: name of the field with the question, with dots for fields within
      fields; None takes `extra_info.question` or the first of `FIELDS`.

  Returns:
    The questions in the order of the file, at least one.

  Raises:
    MissingInputError: there is no such file.
    InputError: it is of another kind, broken, has no rows, or a row has no
      question; names the path and the line or row.
  """
  if not path.is_file():
    raise MissingInputError(f"no file of questions at {path}")
  questions = []
  for where, row in _rows(path, field):
    try:
      question = _question(row, field) if isinstance(row, Mapping) else None
      if isinstance(question, str):
        text_files.check_text(question)
    except ValueError as error:
      raise InputError(f"{where}: {error}. Fix or remove the row.") from error
    if not isinstance(question, str) or not question.strip():
      names = sorted(row) if isinstance(row, Mapping) else type(row).__name__
      raise InputError(
        f"{where}: no question in {field or ', '.join(FIELDS)}; it has"
        f" {names}. Rename the field with the question."
      )
    questions.append(question)
  if not questions:
    raise InputError(f"{path} has no questions: give at least one row.")
  return questions


def _rows(path: pathlib.Path, field: str | None) -> Iterator[tuple[str, Any]]:
  """The place of each row, for errors, and the row."""
  match path.suffix.lower():
    case ".jsonl":
      for number, row in text_files.json_lines(path):
        yield f"{path}:{number}", row
    case ".json":
      for number, row in enumerate(_listed(text_files.read_json(path))):
        yield f"{path}, row {number}", row
    case ".csv" | ".tsv":
      yield from _table_rows(path, field)
    case ".parquet":
      yield from _parquet_rows(path)
    case suffix:
      raise InputError(
        f"questions are read from {', '.join(SUFFIXES)}, {path} ends in"
        f" {suffix!r}: convert it."
      )


def _listed(content: Any) -> list[Any]:
  """The rows of a JSON value: a list, or an object that holds one list."""
  if isinstance(content, Mapping):
    lists = [value for value in content.values() if isinstance(value, list)]
    has_question = any(_lowered(content).get(name) for name in FIELDS)
    if len(lists) == 1 and not has_question:
      return lists[0]
  return content if isinstance(content, list) else [content]


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  number = 0
  try:
    with pq.ParquetFile(path) as table:
      for batch in table.iter_batches():
        for row in batch.to_pylist():
          yield f"{path}, row {number}", row
          number += 1
  # A value can be no text, or a date that Python has not.
  except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
    raise InputError(
      f"{path} cannot be read as Parquet ({error}). Copy the file again."
    ) from error


def _table_rows(
  path: pathlib.Path, field: str | None
) -> Iterator[tuple[str, Any]]:
  """Rows of a .csv or .tsv file, whose first line has the names."""
  lines = text_files.text_lines(path)
  first = next(lines, "")
  separator = (
    "\t" if path.suffix.lower() == ".tsv" else _separator(first, field)
  )
  reader = csv.reader(
    (line for part in ((first,), lines) for line in part),
    delimiter=separator,
    # A quote that nothing ends would make one field of all that follows.
    strict=True,
  )
  names: Sequence[str] | None = None
  with _any_field_size():
    try:
      for values in reader:
        if names is None:
          names = values
          _check_names(path, names)
        elif len(values) > len(names):
          raise InputError(
            f"{path}:{reader.line_num}: {len(values)} fields in the row, but"
            f" {len(names)} names in the first line. Quote fields that hold"
            f" {separator!r}."
          )
        elif values:
          row = dict(zip(names, values, strict=False))
          yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
      raise InputError(
        f"{path}:{reader.line_num}: {error}. Fix or remove the line."
      ) from error


def _check_names(path: pathlib.Path, names: Sequence[str]) -> None:
  counts = collections.Counter(name for name in names if name)
  for name, count in counts.items():
    if count > 1:
      raise InputError(
        f"{path}:1: {count} fields have the name {name!r}. Rename all but one."
      )


def _separator(header: str, field: str | None) -> str:
  """The one by which the first line names a field with the question."""
  wanted = FIELDS if field is None else (field.lower(),)
  for separator in _SEPARATORS:
    for names in csv.reader([header], delimiter=separator):
      if any(name.strip().lower() in wanted for name in names):
        return separator
  return _SEPARATORS[0]


@contextlib.contextmanager
def _any_field_size() -> Iterator[None]:
  """Lets fields be longer than the 128 kB that the csv module takes."""
  limit = csv.field_size_limit(sys.maxsize)
  try:
    yield
  finally:
    csv.field_size_limit(limit)


def _lowered(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row by small names; the first of two names that differ in case."""
  lowered: dict[str, Any] = {}
  for name, value in row.items():
    lowered.setdefault(name.strip().lower(), value)
  return lowered


def _question(row: Mapping[str, Any], field: str | None) -> Any:
  if field is not None:
    value: Any = row
    for name in field.split("."):
      value = value.get(name) if isinstance(value, Mapping) else None
    return value
  extra = unpacked(row.get("extra_info"))
  if isinstance(extra, Mapping) and isinstance(extra.get("question"), str):
    return extra["question"]
  by_name = _lowered(row)
  found = next((by_name[name] for name in FIELDS if by_name.get(name)), None)
  value = user_message(found)
  if isinstance(value, str) and by_name.get("canary"):
    return _decrypted(value, str(by_name["canary"]))
  return value


def _decrypted(text: str, password: str) -> str:
  """BrowseComp's scheme: base64, XOR with SHA-256 of the canary, repeated."""
  try:
    data = base64.b64decode(text, validate=True)
  except binascii.Error as error:
    raise InputError(f"no base64: {text[:40]!r}") from error
  key = hashlib.sha256(password.encode()).digest()
  plain = bytes(a ^ key[i % len(key)] for i, a in enumerate(data))
  return text_files.decode(plain)
