"""Loads documents for the search tool."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from rapo_jax import text_files
from rapo_jax.errors import InputError, MissingInputError


def load_corpus(path: str | os.PathLike[str]) -> list[str]:
  """Reads a corpus in Search-R1's layout.

  Args:
    path: JSON lines, each with "id" and "contents"; blank lines are skipped.

  Returns:
    The contents, in the order of the file.

  Raises:
    MissingInputError: if there is no such file.
    InputError: for a line that is no such object or repeats an id, named by
      its number; for a file without documents, or one that is compressed.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingInputError(f"no corpus at {path}")
  documents: dict[str, str] = {}
  for number, record in text_files.json_lines(path):
    document_id, contents = _document(record, f"{path}:{number}")
    if document_id in documents:
      raise InputError(
        f"{path}:{number}: the id {document_id!r} is repeated. Give each"
        " document an id of its own."
      )
    documents[document_id] = contents
  if not documents:
    raise InputError(f"{path} has no documents: give at least one line.")
  return list(documents.values())


def _document(record: Any, where: str) -> tuple[str, str]:
  if not isinstance(record, dict):
    raise InputError(f"{where}: expected an object, got {record!a:.80}")
  contents, document_id = record.get("contents"), record.get("id")
  if document_id is None or not isinstance(contents, str) or not contents:
    raise InputError(
      f'{where}: expected "id" and a text "contents", got the keys '
      f"{sorted(record)}. Convert the file to this layout."
    )
  if isinstance(document_id, bool) or not isinstance(document_id, str | int):
    raise InputError(
      f'{where}: "id" must be a text or a whole number, got'
      f" {document_id!a:.80}."
    )
  return str(document_id), contents
