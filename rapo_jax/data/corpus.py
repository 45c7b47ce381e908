"""Loads documents for the search tool."""

from __future__ import annotations

import json
import os
import pathlib


def load_corpus(path: str | os.PathLike[str]) -> list[str]:
  """Reads a corpus in Search-R1's layout.

  Args:
    path: JSON lines, each with "id" and "contents"; blank lines are skipped.

  Returns:
    The contents, in the order of the file.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a line that is no such object or repeats an id, named by
      its number, and for a file without documents.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no corpus at {path}")
  documents: dict[str, str] = {}
  with path.open(encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      document_id, contents = _parse(line, f"{path}:{number}")
      if document_id in documents:
        raise ValueError(f"{path}:{number}: the id {document_id!r} is repeated")
      documents[document_id] = contents
  if not documents:
    raise ValueError(f"{path} has no documents")
  return list(documents.values())


def _parse(line: str, where: str) -> tuple[str, str]:
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: no JSON: {error}") from error
  if not isinstance(record, dict):
    raise ValueError(f"{where}: expected an object, got {line[:80]!r}")
  contents = record.get("contents")
  if "id" not in record or not isinstance(contents, str) or not contents:
    raise ValueError(
      f'{where}: expected "id" and a text "contents", got the keys '
      f"{sorted(record)}"
    )
  return str(record["id"]), contents
