"""Object stores, `gs://` and `s3://`: what lies there, and copies of it here.

fsspec reads and writes them (gcsfs, s3fs). Credentials, regions and endpoints
are what those libraries find: Google's default credentials and
STORAGE_EMULATOR_HOST, AWS's profile, variables and AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

from rapo_jax import files
from rapo_jax.errors import InputError

FOLDER_VARIABLE = "RAPO_STORE_DIR"
"""Where copies of object stores lie, instead of ~/.cache/rapo_jax/stores."""

_URL = re.compile(r"(?P<scheme>gs|s3)://(?P<root>[^/]+(?:/.*)?)")
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_BLOCK_BYTES = 1 << 20
_PART_BYTES = 1 << 24
_TOLD_CHARS = 400
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SIGNS = ("ETag", "etag", "md5Hash", "generation")


class StoreError(InputError):
  """An object store that cannot be used as it stands, or does not answer."""


def is_url(text: str) -> bool:
  """Whether a text names a place on an object store that can be used."""
  return _URL.fullmatch(text) is not None


class MissingObjectError(StoreError):
  """An object that has to exist and does not."""


class ObjectStore:
  """The objects below one URL.

  Names are relative to it, with slashes. Objects appear whole. The methods
  raise `StoreError` for all that the store refuses, and may be called from
  several threads.

  Args:
    url: `gs://bucket/…` or `s3://bucket/…`.

  Raises:
    StoreError: the library for it is not installed, or has no credentials.
  """

  def __init__(self, url: str):
    found = _URL.fullmatch(url)
    if found is None:
      raise StoreError(
        f"an object store must be gs://bucket/… or s3://bucket/…, got {url!r}: "
        "correct it."
      )
    self.url = url.rstrip("/")
    self._root = found["root"].rstrip("/")
    package = _PACKAGES[found["scheme"]]
    import fsspec

    try:
      with self._telling():
        self._files = fsspec.filesystem(
          found["scheme"], use_listings_cache=False
        )
    except ImportError as error:
      raise StoreError(
        f"{url} needs the package {package}, which is not installed: `pip "
        f"install {package}`."
      ) from error

  def names(self, below: str = "") -> dict[str, int]:
    """Sizes of all objects, in bytes, by name; none where there are none.

    Args:
      below: the beginning of their names, up to a slash.
    """
    return {name: size for name, (size, _) in self.signed(below).items()}

  def signed(self, below: str = "") -> dict[str, tuple[int, str]]:
    """(bytes, what changes with the content) of all objects, by name."""
    root = self._path(below) if below else self._root
    with self._telling():
      try:
        found = self._files.find(root, detail=True)
      except FileNotFoundError:
        return {}
    return {
      path[len(self._root) + 1 :]: (int(info["size"]), _sign(info))
      for path, info in found.items()
      # A console makes "folders", which are empty objects; the root may be an
      # object itself.
      if path != self._root and not path.endswith("/")
    }

  def read(self, name: str) -> bytes | None:
    """Content of an object; None where there is none."""
    with self._telling():
      try:
        return bytes(self._files.cat_file(self._path(name)))
      except FileNotFoundError:
        return None

  def create(self, name: str, content: bytes) -> bool:
    """Writes an object if there is none; returns whether it was written.

    Of several that create one name, one succeeds.
    """
    with self._telling():
      try:
        self._files.pipe_file(self._path(name), content, mode="create")
      except FileExistsError:
        return False
    return True

  def write(self, name: str, content: bytes) -> None:
    """Writes an object, or another in its place."""
    with self._telling():
      self._files.pipe_file(self._path(name), content)

  def write_file(self, name: str, file: BinaryIO, most: int) -> tuple[int, str]:
    """Writes an object from a file, in parts if it is large.

    Args:
      name: of the object.
      file: read from where it stands.
      most: bytes to copy.

    Returns:
      Its (bytes, SHA-256): fewer bytes where the file has no more.
    """
    with (
      self._telling(),
      self._files.open(
        self._path(name), "wb", block_size=_PART_BYTES
      ) as target,
    ):
      return read_bytes(file, most, target)

  def copy_here(self, name: str, file: BinaryIO) -> tuple[int, str]:
    """Appends an object's content to a file; returns its (bytes, SHA-256).

    Raises:
      MissingObjectError: there is no such object.
    """
    with self._telling():
      try:
        with self._files.open(
          self._path(name), "rb", block_size=_PART_BYTES
        ) as source:
          return read_bytes(source, target=file)
      except FileNotFoundError as error:
        raise MissingObjectError(
          f"{self.url}/{name} must exist, and does not: put it back."
        ) from error

  def delete(self, names: Iterable[str]) -> None:
    """Deletes objects; those that are not there are passed over."""
    for name in names:
      with self._telling(), contextlib.suppress(FileNotFoundError):
        self._files.rm_file(self._path(name))

  def _path(self, name: str) -> str:
    return f"{self._root}/{name}"

  @contextlib.contextmanager
  def _telling(self) -> Iterator[None]:
    """Says what a store refuses, whatever its library raises.

    Raises:
      StoreError: instead of all but what the disk of this machine refuses.
    """
    try:
      yield
    except (InputError, ImportError):
      raise
    except Exception as error:
      if getattr(error, "errno", None) in _DISK_ERRORS:
        raise
      told = f"{type(error).__name__}: {error}"[:_TOLD_CHARS]
      raise StoreError(
        f"{self.url} must be readable and writable, and is not ({told}): check "
        "the bucket, your credentials for it and the network."
      ) from error


def read_bytes(
  source: BinaryIO, most: int | None = None, target: BinaryIO | None = None
) -> tuple[int, str]:
  """Reads a file block by block; returns how many bytes, and their SHA-256.

  Args:
    source: read from where it stands.
    most: bytes to read; None for all.
    target: gets what is read; None if nothing does.
  """
  digest, size = hashlib.sha256(), 0
  while most is None or size < most:
    wanted = _BLOCK_BYTES if most is None else min(_BLOCK_BYTES, most - size)
    block = source.read(wanted)
    if not block:
      break
    if target is not None:
      target.write(block)
    digest.update(block)
    size += len(block)
  return size, digest.hexdigest()


def safe_name(name: str) -> str:
  """A name of an object as a path below a folder.

  Raises:
    StoreError: it would lead out of the folder, or is no name of a file.
  """
  parts = name.split("/")
  if any(part in ("", ".", "..") or "\0" in part for part in parts):
    raise StoreError(
      f"names of objects must be paths of files, got {name!r}: rename it."
    )
  return name


def local_folder(url: str, kind: str) -> pathlib.Path:
  """Where this machine keeps a copy of what a URL names.

  Args:
    url: of an object store.
    kind: of copy; each has its own.
  """
  named = os.environ.get(FOLDER_VARIABLE) or "~/.cache/rapo_jax/stores"
  tail = re.sub(r"[^\w.-]", "_", url.rstrip("/").rpartition("/")[2])[:40]
  sign = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:12]
  return pathlib.Path(named).expanduser() / kind / f"{tail}-{sign}"


def fetched(url: str) -> pathlib.Path:
  """Copies a file or a folder from an object store to this machine.

  What was copied before and has not changed there is not copied again.

  Args:
    url: of one object, or of a folder of them.

  Returns:
    The file or folder here; it is not to be written to.

  Raises:
    StoreError: nothing lies there, or the store refuses.
  """
  store, only = ObjectStore(url), ""
  objects = store.signed()
  if not objects:
    # It may be one object, which is found from above.
    above, _, only = store.url.rpartition("/")
    if is_url(above):
      store = ObjectStore(above)
      objects = {n: s for n, s in store.signed(only).items() if n == only}
  if not objects:
    raise StoreError(
      f"{url} must hold a file or a folder, and nothing lies there: correct it."
    )
  copy = local_folder(url, "read")
  files.make_private_folder(copy)
  signs = json.dumps(objects, indent=1, sort_keys=True)
  mark, tree = copy / "objects.json", copy / "tree"
  with files.locked(copy / ".lock"):
    if not (mark.exists() and mark.read_text(encoding="utf-8") == signs):
      mark.unlink(missing_ok=True)
      with files.replaced_folder(tree) as new:
        for name in objects:
          _copy_object(store, name, new / safe_name(name))
      files.replace_text(mark, signs)
  return tree / only


def _copy_object(store: ObjectStore, name: str, target: pathlib.Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  with target.open("wb") as file:
    store.copy_here(name, file)


def _sign(info: Mapping[str, object]) -> str:
  """What changes with the content of an object, of what its store tells."""
  return next((str(info[key]) for key in _SIGNS if info.get(key)), "")
