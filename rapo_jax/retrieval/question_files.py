"""Questions out of the files that data sets come in."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.parquet as pq

from rapo_jax.dataset_rows import unpacked, user_message

FIELDS = ("question", "Question", "problem", "query", "prompt")
"""Where a question stands, the first of them that a row has."""


def read_questions(path: pathlib.Path, field: str | None = None) -> list[str]:
  """Reads the questions of a data set.

  Rows of BrowseComp, which come encrypted, are decrypted with their canary.

  Args:
    path: a .jsonl, .json (a list of objects), .csv or .parquet file.
    field: name of the field with the question, with dots for fields within
      fields; None takes `extra_info.question` or the first of `FIELDS`.

  Returns:
    The questions in the order of the file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is of another kind, broken, or a row has no question.
  """
  if not path.is_file():
    raise FileNotFoundError(f"no file of questions at {path}")
  try:
    rows = list(_rows(path))
  except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  questions = []
  for number, row in enumerate(rows):
    question = _question(row, field) if isinstance(row, Mapping) else None
    if not isinstance(question, str) or not question.strip():
      names = sorted(row) if isinstance(row, Mapping) else type(row).__name__
      raise ValueError(
        f"{path}, row {number}: no question in "
        f"{field or ', '.join(FIELDS)}; it has {names}. Name the field."
      )
    questions.append(question)
  return questions


def _rows(path: pathlib.Path) -> Iterable[Any]:
  match path.suffix.lower():
    case ".jsonl":
      with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())
    case ".json":
      content = json.loads(path.read_text(encoding="utf-8"))
      yield from content if isinstance(content, list) else [content]
    case ".csv":
      with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
    case ".parquet":
      with pq.ParquetFile(path) as table:
        for batch in table.iter_batches():
          yield from batch.to_pylist()
    case suffix:
      raise ValueError(
        f"questions are read from .jsonl, .json, .csv and .parquet, {path} "
        f"ends in {suffix!r}: convert it."
      )


def _question(row: Mapping[str, Any], field: str | None) -> Any:
  if field is not None:
    value: Any = row
    for name in field.split("."):
      value = value.get(name) if isinstance(value, Mapping) else None
    return value
  extra = unpacked(row.get("extra_info"))
  if isinstance(extra, Mapping) and isinstance(extra.get("question"), str):
    return extra["question"]
  found = next((row[name] for name in FIELDS if row.get(name)), None)
  value = user_message(found)
  if isinstance(value, str) and row.get("canary"):
    return _decrypted(value, str(row["canary"]))
  return value


def _decrypted(text: str, password: str) -> str:
  """BrowseComp's scheme: base64, XOR with SHA-256 of the canary, repeated."""
  try:
    data = base64.b64decode(text, validate=True)
  except binascii.Error as error:
    raise ValueError(f"no base64: {text[:40]!r}") from error
  key = hashlib.sha256(password.encode()).digest()
  plain = bytes(a ^ key[i % len(key)] for i, a in enumerate(data))
  return plain.decode("utf-8")
