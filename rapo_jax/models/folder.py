"""Writes a folder so that a reader sees the old one or the new one whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from rapo_jax import files


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
  path.parent.mkdir(parents=True, exist_ok=True)
  suffix = uuid.uuid4().hex[:8]
  new = path.with_name(f".{path.name}.new-{suffix}")
  old = path.with_name(f".{path.name}.old-{suffix}")
  new.mkdir()
  try:
    yield new
    files.sync_tree(new)
    _replace(new, path, old)
    files.sync(path.parent)
  finally:
    shutil.rmtree(new, ignore_errors=True)


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
