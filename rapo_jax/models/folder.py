"""Writes a folder so that a reader sees the old one or the new one whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from rapo_jax import files
from rapo_jax.errors import accessing


@contextlib.contextmanager
def replaced_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a temporary folder that takes the place of `path` at the end.

  A failure leaves `path` as it was. The temporary folder lies beside it, so
  that the last move is a rename on one file system, after all of it is on the
  disk. A link to a folder is followed and stays.

  Args:
    path: folder to create or replace; its parent is created.

  Yields:
    An empty folder to write into. It is removed if the block raises.
  """
  path = files.followed(path)
  with accessing(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
  suffix = uuid.uuid4().hex[:8]
  new, old = (path.with_name(f"{prefix}{suffix}") for prefix in _prefixes(path))
  new.mkdir()
  try:
    yield new
    files.sync_tree(new)
    _replace(new, path, old)
    files.sync(path.parent)
  finally:
    shutil.rmtree(new, ignore_errors=True)


def clear_leftovers(path: pathlib.Path) -> None:
  """Deletes what writers of a folder that were killed have left beside it.

  Args:
    path: the folder, which no other process is writing.
  """
  path = files.followed(path)
  if not path.parent.is_dir():
    return
  for entry in path.parent.iterdir():
    if entry.name.startswith(_prefixes(path)):
      shutil.rmtree(entry)


def _prefixes(path: pathlib.Path) -> tuple[str, str]:
  """How folders are called that take a folder's place, and that gave it up."""
  return f".{path.name}.new-", f".{path.name}.old-"


def _replace(new: pathlib.Path, path: pathlib.Path, old: pathlib.Path) -> None:
  """Puts a folder where another may be, which comes back if that fails."""
  if path.exists():
    path.rename(old)
  try:
    new.rename(path)
  except OSError:
    if old.exists():
      old.rename(path)
    raise
  shutil.rmtree(old, ignore_errors=True)
