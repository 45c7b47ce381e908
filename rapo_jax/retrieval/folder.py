"""Writes a folder so that a reader sees the old one or the new one whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def replaced_folder(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a temporary folder that takes the place of `path` at the end.

  A process that dies in between leaves `path` as it was. The temporary folder
  lies beside it, so that the last move is a rename on one file system.

  Args:
    path: folder to create or replace; its parent is created.

  Yields:
    An empty folder to write into. It is removed if the block raises.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(
    tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)
  )
  new, old = work / "new", work / "old"
  new.mkdir()
  try:
    yield new
    if path.exists():
      os.replace(path, old)
    os.replace(new, path)
  finally:
    shutil.rmtree(work, ignore_errors=True)
