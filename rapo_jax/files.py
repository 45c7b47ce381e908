"""Files and folders that are there whole, on the disk, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TextIO

from rapo_jax.errors import InputError, accessing

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


def digest(paths: Iterable[pathlib.Path]) -> str:
  """SHA-256 of some files, by their names and bytes, in the order given."""
  whole = hashlib.sha256()
  for path in paths:
    with path.open("rb") as file:
      content = hashlib.file_digest(file, "sha256")
    whole.update(f"{path.name} {content.hexdigest()}\n".encode())
  return whole.hexdigest()


def followed(path: str | os.PathLike[str]) -> pathlib.Path:
  """The place that a path leads to, so that a link is kept when it is written.

  A link that leads nowhere gives the place where it leads.
  """
  return pathlib.Path(os.path.realpath(path))


def rename(source: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a file or folder within a folder; waits until the disk has it.

  What it holds has to be on the disk before.
  """
  source.replace(target)
  sync(target.parent)


@contextlib.contextmanager
def replaced_file(
  path: str | os.PathLike[str], *, private: bool = True
) -> Iterator[pathlib.Path]:
  """Gives a file to write that takes the place of `path` at the end.

  A failure leaves `path` as it was. A link is followed.

  Args:
    path: file to create or replace; its folder must exist.
    private: only the owner can read it, whatever the umask; otherwise the umask
      says who can.

  Yields:
    An empty file beside it, which is removed if the block raises.
  """
  target = followed(path)
  partial = target.with_name(target.name + ".partial")
  partial.unlink(missing_ok=True)
  mode = PRIVATE_FILE if private else 0o666
  os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
  try:
    yield partial
    sync(partial)
    rename(partial, target)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Waits until no other process holds a lock file, and holds it.

  The lock ends with the process, however that ends.

  Raises:
    InputError: the file cannot be made or locked. What the block raises is
      left as it is.
  """
  with contextlib.ExitStack() as stack:
    with accessing(path):
      file = stack.enter_context(path.open("a", encoding="utf-8"))
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


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
    InputError: a file of that name is there, or the system refuses.
  """
  missing = [path, *path.parents]
  for folder in reversed([p for p in missing if not p.exists()]):
    # A umask can only take permissions away; another process may be first.
    with (
      accessing(path),
      contextlib.suppress(FileExistsError, NotADirectoryError),
    ):
      folder.mkdir(mode=PRIVATE_FOLDER)
  if not path.is_dir():
    raise InputError(
      f"{path} must be a folder, and a file of that name is there: move it, or "
      "choose another folder."
    )


@contextlib.contextmanager
def replaced_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a temporary folder that takes the place of `path` at the end.

  A failure leaves `path` as it was. The temporary folder lies beside it, so
  that the last move is a rename on one file system. The move comes after all of
  it is on the disk. A link to a folder is followed and stays.

  Args:
    path: folder to create or replace; its parent is created.

  Yields:
    An empty folder to write into. It is removed if the block raises.

  Raises:
    InputError: a file lies at `path`.
  """
  path = followed(path)
  if path.exists() and not path.is_dir():
    raise InputError(
      f"a folder is written to {path}, and a file lies there: delete it, or "
      "choose another path."
    )
  with accessing(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(f"{_prefixes(path)[0]}{_suffix()}")
  new.mkdir()
  try:
    yield new
    take_place(new, path)
  finally:
    shutil.rmtree(new, ignore_errors=True)


def check_replaceable(
  folder: pathlib.Path, marks: Mapping[str, str], what: str
) -> None:
  """Refuses a folder whose content would be lost where another is written.

  Args:
    folder: may be missing or empty.
    marks: JSON files, and a key that one of them has in such a folder.
    what: "a buffer", say.

  Raises:
    InputError: something else lies there.
  """
  if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
    return
  if not any(_has_key(folder / name, key) for name, key in marks.items()):
    raise InputError(
      f"--output must be a new folder, or {what} to be replaced, and {folder} "
      "is something else: give another folder, or delete it."
    )


def _has_key(path: pathlib.Path, key: str) -> bool:
  try:
    content = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(content, dict) and key in content


def take_place(new: pathlib.Path, path: pathlib.Path) -> None:
  """Moves a finished folder to `path`, where another may be.

  The move comes after all of `new` is on the disk. A failure leaves `path` as
  it was.

  Args:
    new: folder on the file system of `path`.
    path: no link; see `followed`.
  """
  sync_tree(new)
  old = path.with_name(f"{_prefixes(path)[1]}{_suffix()}")
  if path.exists():
    path.rename(old)
  try:
    new.rename(path)
  except OSError:
    if old.exists():
      old.rename(path)
    raise
  shutil.rmtree(old, ignore_errors=True)
  sync(path.parent)


def _suffix() -> str:
  return uuid.uuid4().hex[:8]


def clear_leftovers(path: pathlib.Path) -> None:
  """Deletes what writers of a folder that were killed have left beside it.

  Args:
    path: the folder, which no other process is writing.
  """
  path = followed(path)
  if not path.parent.is_dir():
    return
  for entry in path.parent.iterdir():
    if entry.name.startswith(_prefixes(path)):
      shutil.rmtree(entry)


def _prefixes(path: pathlib.Path) -> tuple[str, str]:
  """How folders are called that take a folder's place, and that gave it up."""
  return f".{path.name}.new-", f".{path.name}.old-"
