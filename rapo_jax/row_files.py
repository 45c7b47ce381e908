"""Rows of the files that data sets come in: JSON, CSV and Parquet."""

from __future__ import annotations

import collections
import contextlib
import csv
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rapo_jax import text_files
from rapo_jax.errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_SEPARATORS = (",", ";", "\t")
# In what Arrow calls types that hold floats of 16 or 32 bits.
_SHORT_FLOAT = re.compile(r"\b(halffloat|float)\b")


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """Files below a folder that end in one of `SUFFIXES`, sorted by path.

  Links are followed, and no folder is entered twice. A link to a file that is
  not there counts, so that who reads it says so.
  """
  found: list[pathlib.Path] = []
  entered = {os.path.realpath(folder)}
  for place, folders, names in os.walk(folder, followlinks=True):
    by_target = {
      os.path.realpath(os.path.join(place, name)): name
      for name in sorted(folders, reverse=True)
    }
    folders[:] = [n for target, n in by_target.items() if target not in entered]
    entered |= by_target.keys()
    paths = (pathlib.Path(place, name) for name in names)
    found += [
      path
      for path in paths
      if path.suffix.lower() in SUFFIXES
      and (path.is_file() or path.is_symlink())
    ]
  return sorted(found)


def read_rows(
  path: pathlib.Path, names: Collection[str]
) -> Iterator[tuple[str, Any]]:
  """The place of each row, for errors, and the row.

  Text is UTF-8, with a byte order mark or without.

  Args:
    path: a file that ends in one of `SUFFIXES`. JSON is a list of objects, an
      object with one such list, or one object. A .csv file may be separated by
      semicolons or tabs.
    names: in small letters, of fields of which a row has one.

  Raises:
    InputError: the file is of another kind or broken; names path and row.
  """
  match path.suffix.lower():
    case ".jsonl":
      for number, row in text_files.json_lines(path):
        yield f"{path}:{number}", row
    case ".json":
      for number, row in enumerate(_listed(text_files.read_json(path), names)):
        yield f"{path}, row {number}", row
    case ".csv" | ".tsv":
      yield from _table_rows(path, names)
    case ".parquet":
      yield from parquet_rows(path, names)
    case suffix:
      raise InputError(
        f"rows are read from {', '.join(SUFFIXES)}, {path} ends in"
        f" {suffix!r}: convert it."
      )


def _listed(content: Any, names: Collection[str]) -> list[Any]:
  """The rows of a JSON value: a list, or an object that holds one list."""
  if isinstance(content, Mapping):
    lists = [value for value in content.values() if isinstance(value, list)]
    is_row = any(by_small_name(content).get(name) for name in names)
    if len(lists) == 1 and not is_row:
      return lists[0]
  return content if isinstance(content, list) else [content]


def parquet_rows(
  path: pathlib.Path,
  names: Collection[str],
  columns: Sequence[str] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
  """The place of each row of a Parquet file, for errors, and the row.

  Args:
    path: the file.
    names: in small letters, of columns that have to be read. Another one that
      Python cannot read is left out.
    columns: those that are read; None for all.

  Raises:
    InputError: it is no such file, or one of these columns cannot be read.
  """
  number = 0
  with _parquet(path) as table:
    _check_names(path, table.schema_arrow.names)
    for batch in table.iter_batches(1024, columns=columns):
      read = {
        field.name: values
        for field, column in zip(batch.schema, batch.columns, strict=True)
        if (values := _values(path, field, column, names)) is not None
      }
      for row in zip(*read.values(), strict=True):
        yield f"{path}, row {number}", dict(zip(read, row, strict=True))
        number += 1


def parquet_names(path: pathlib.Path) -> list[str]:
  """The names of the columns of a Parquet file.

  Raises:
    InputError: it is no such file.
  """
  with _parquet(path) as table:
    return table.schema_arrow.names


@contextlib.contextmanager
def _parquet(path: pathlib.Path) -> Iterator[pq.ParquetFile]:
  """Opens a Parquet file.

  Raises:
    InputError: it cannot be opened or read as one.
  """
  try:
    with pq.ParquetFile(path) as table:
      yield table
  except (pa.ArrowException, OSError) as error:
    raise InputError(
      f"{path} must be a Parquet file, and cannot be read as one ({error}): "
      "copy or download it again."
    ) from error


def _values(
  path: pathlib.Path, field: pa.Field, column: pa.Array, names: Collection[str]
) -> list[Any] | None:
  """The values of a column; None if it cannot be read and does not have to be.

  Raises:
    InputError: it has to be read and cannot.
  """
  try:
    values = column.to_pylist(maps_as_pydicts="strict")
  # A text that is no UTF-8, a date that Python has not, a key twice in a map.
  except (ValueError, OverflowError, KeyError) as error:
    if field.name.strip().lower() not in names:
      return None
    raise InputError(
      f"{path}: the column {field.name!r}, of type {field.type}, cannot be "
      f"read: {error}. Correct the column, or write it as text."
    ) from error
  if _SHORT_FLOAT.search(str(field.type)):
    values = [_shortest(value, field.type) for value in values]
  return values


def _shortest(value: Any, kind: pa.DataType) -> Any:
  """A value whose floats of 16 and 32 bits have the fewest decimals: 3.14."""
  if value is None:
    return None
  if pa.types.is_float16(kind) or pa.types.is_float32(kind):
    return float(str(kind.to_pandas_dtype()(value)))
  if pa.types.is_struct(kind):
    return {f.name: _shortest(value[f.name], f.type) for f in kind}
  if pa.types.is_map(kind):
    return {key: _shortest(item, kind.item_type) for key, item in value.items()}
  if pa.types.is_nested(kind) and isinstance(value, list):
    return [_shortest(item, kind.value_type) for item in value]
  return value


def _table_rows(
  path: pathlib.Path, wanted: Collection[str]
) -> Iterator[tuple[str, Any]]:
  """Rows of a .csv or .tsv file, whose first line has the names."""
  lines = text_files.text_lines(path)
  head: list[str] = []
  for line in lines:
    head.append(line)
    if line.strip():
      break
  separator = "\t"
  if path.suffix.lower() != ".tsv":
    separator = _separator("".join(head[-1:]), wanted)
  reader = csv.reader(
    itertools.chain(head, lines),
    delimiter=separator,
    # A quote that nothing ends would make one field of all that follows.
    strict=True,
  )
  names: Sequence[str] | None = None
  with _any_field_size():
    try:
      for values in reader:
        if not values:
          continue
        if names is None:
          names = values
          _check_names(path, names)
        elif len(values) > len(names):
          raise InputError(
            f"{path}:{reader.line_num}: {len(values)} fields in the row, but"
            f" {len(names)} names in the first line. Quote fields that hold"
            f" {separator!r}."
          )
        else:
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


def _separator(header: str, wanted: Collection[str]) -> str:
  """The one by which the first line names a field that is wanted."""
  for separator in _SEPARATORS:
    # The reader of the whole file says what is wrong with its first line.
    with contextlib.suppress(csv.Error):
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


def by_small_name(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row by small names; the first of two names that differ in case."""
  lowered: dict[str, Any] = {}
  for name, value in row.items():
    lowered.setdefault(name.strip().lower(), value)
  return lowered
