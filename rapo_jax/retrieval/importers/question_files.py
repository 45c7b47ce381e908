"""Questions out of the files that data sets come in."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from rapo_jax import encrypted, row_files, text_files
from rapo_jax.dataset_rows import unpacked, user_message
from rapo_jax.errors import InputError, MissingInputError

FIELDS = ("question", "problem", "query", "prompt")
"""Where a question stands, the first of them that a row has. Capitals and
white space around a name do not count."""


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
  wanted = FIELDS if field is None else (field.lower(),)
  questions = []
  for where, row in row_files.read_rows(path, wanted):
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


def _question(row: Mapping[str, Any], field: str | None) -> Any:
  if field is not None:
    value: Any = row
    for name in field.split("."):
      value = value.get(name) if isinstance(value, Mapping) else None
    return value
  extra = unpacked(row.get("extra_info"))
  if isinstance(extra, Mapping) and isinstance(extra.get("question"), str):
    return extra["question"]
  by_name = row_files.by_small_name(row)
  found = next((by_name[name] for name in FIELDS if by_name.get(name)), None)
  value = user_message(found)
  if isinstance(value, str) and by_name.get("canary"):
    return encrypted.decrypted(value, str(by_name["canary"]))
  return value
