"""Files and folders that are there whole, on the disk, or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import TextIO

from rapo_jax.errors import InputError

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600


def sync(path: str | os.PathLike[str]) -> None:
  """Waits until a file's content, or a folder's names, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def sync_tree(folder: pathlib.Path) -> None:
  """Waits until everything below a folder, itself included, is on the disk."""
  for parent, _, names in os.walk(folder):
    for name in names:
      sync(os.path.join(parent, name))
    sync(parent)


def followed(path: str | os.PathLike[str]) -> pathlib.Path:
  """The place that a path leads to, so that a link is kept when it is written.

  A link that leads nowhere gives the place where it leads.
  """
  return pathlib.Path(os.path.realpath(path))


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a file to write that takes the place of `path` at the end.

  A failure leaves `path` as it was. The owner alone can read what is written,
  whatever the umask. A link is followed.

  Args:
    path: file to create or replace; its folder must exist.

  Yields:
    An empty file beside it, which is removed if the block raises.
  """
  target = followed(path)
  partial = target.with_name(target.name + ".partial")
  partial.unlink(missing_ok=True)
  handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
  os.close(handle)
  try:
    yield partial
    sync(partial)
    partial.replace(target)
  finally:
    partial.unlink(missing_ok=True)
  sync(target.parent)


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is either the old one or all of the new one.

  The owner alone can read it. Folders that are missing are made.
  """
  make_private_folder(path.parent)
  with replaced_file(path) as new:
    new.write_text(text, encoding="utf-8")


def append_private(path: pathlib.Path) -> TextIO:
  """Opens a text file to append to; if it is made, for its owner alone."""
  return open(
    path,
    "a",
    encoding="utf-8",
    opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE),
  )


def make_private_folder(path: pathlib.Path) -> None:
  """Makes a folder, and those above that are missing, for its owner alone.

  What is there keeps its permissions.

  Raises:
    InputError: a file of that name is there.
  """
  missing = [path, *path.parents]
  for folder in reversed([p for p in missing if not p.exists()]):
    # A umask can only take permissions away; another process may be first.
    with contextlib.suppress(FileExistsError, NotADirectoryError):
      folder.mkdir(mode=PRIVATE_FOLDER)
  if not path.is_dir():
    raise InputError(
      f"{path} must be a folder, and a file of that name is there: move it, or "
      "choose another folder."
    )
