"""A work folder on an object store, by a folder here that is copied there.

A run needs what an object store has not: renames, locks, files that grow. So it
works in a folder of this machine. A thread copies what has changed to the
store, and the last copy is made when the command ends. The next command, on
this machine or another, begins with what lies there.

Objects are never overwritten. `.rapo/index-<number>.json` says which objects
make up which file, and appears only when all of them are there. So a process
that is killed while it copies leaves the state before it whole. Of two
processes that write one index, the store lets one succeed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from experiments.object_store import (
  MissingObjectError,
  ObjectStore,
  StoreError,
  is_url,
  local_folder,
  read_bytes,
  safe_name,
)
from experiments.workdir import hold_lock
from rapo_jax import files

EVERY_S = 30.0
"""Seconds between two copies of what has changed."""
CLAIM_S = 150.0
"""Seconds that a claim of a folder holds after it was last renewed."""

_FORMAT_VERSION = 1
_OWN = ".rapo/"
_INDEX = re.compile(r"\.rapo/index-(\d{8})\.json")
_CLAIM = ".rapo/claim.json"
# Locks, what is being written, and what is made again.
_LEFT_OUT = re.compile(
  r"\.lock.*|.*\.lock|.*\.partial|\.partial-.*|\..+\.(new|old)-[0-9a-f]{8}"
  r"|\.view\.sqlite3.*"
)
# Files that grow at their end alone.
_LOG = re.compile(r".*\.jsonl|events\.out\.tfevents.*")
_LEAST_LOG_BYTES = 1 << 20
_MOST_PARTS = 64
_TRIES = 20
_CALM_S = 0.05
_LOOK_S = 1.0


class ClaimLostError(StoreError):
  """Another process writes to the folder on the store."""


@dataclasses.dataclass(frozen=True)
class _Part:
  """A piece of a file.

  Attributes:
    object: its name on the store.
    bytes: of it.
    sha256: of it.
  """

  object: str
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class _Copied:
  """A file here as it was when it was copied.

  Attributes:
    inode: of the file.
    bytes: of it.
    mtime_ns: when it was last changed.
    parts: that make it up on the store.
  """

  inode: int
  bytes: int
  mtime_ns: int
  parts: tuple[_Part, ...]


class _MovedError(Exception):
  """A file has changed while it was copied."""


class Mirror:
  """A folder here and its copy on a store. One process uses both at a time.

  Args:
    store: where the copy lies.
    folder: of this machine, for this mirror alone; made if it is missing.

  Attributes:
    tree: the folder here that is copied.
    url: of the copy.
  """

  def __init__(self, store: ObjectStore, folder: pathlib.Path):
    self._store = store
    self._state = folder / "state.json"
    self.tree = folder / "tree"
    self.url = store.url
    files.make_private_folder(self.tree)
    self._owner = uuid.uuid4().hex
    self._copy = uuid.uuid4().hex
    self._number = 0
    self._copied: dict[str, _Copied] = {}
    self._cleared = False
    self._read_state()

  def pull(self) -> None:
    """Makes the folder here what the store holds.

    A folder that holds the store's newest state, or that and later changes of
    its own, stays as it is.

    Raises:
      StoreError: the store holds something else, or not what was written.
    """
    for _ in range(_TRIES):
      try:
        number, indexed = self._newest()
        if number != self._number:
          self._take(number, indexed)
        return
      except MissingObjectError:
        continue  # Its objects have given way to those of a newer index.
    raise StoreError(
      f"{self.url} must hold the objects that its index names, and lacks "
      "some: put them back, or choose another --workdir."
    )

  def begin(self) -> None:
    """Makes the folder here what the store holds, once that is claimed.

    Raises:
      StoreError: see `pull`.
    """
    self.pull()
    if not self._number:
      # From now on, what lies there is a work folder, though nothing is whole.
      self._publish(1, {})

  def claim(self) -> None:
    """Claims the folder on the store for this process.

    Where another process holds it, this waits until that one's claim ends.

    Raises:
      StoreError: it renews its claim.
    """
    first: float | None = None
    while (held := self._held()) is not None:
      if held["copy"] == self._copy or held["until"] < time.time():
        break
      if first is None:
        first = held["until"]
        print(
          f"{self.url} was claimed by a process on {held['host']}; "
          f"waiting {first - time.time():.0f} s for whether it still works"
        )
      elif held["until"] > first:
        raise StoreError(
          f"one process at a time may write to {self.url}, and one on "
          f"{held['host']} does: wait for it, or choose another --workdir."
        )
      time.sleep(_LOOK_S)
    self.renew()

  def renew(self) -> None:
    """Says that this process still works.

    Raises:
      ClaimLostError: another process has claimed the folder.
    """
    held = self._held()
    if held and held["copy"] != self._copy and held["until"] > time.time():
      raise self._lost(held["host"])
    claim = {
      "copy": self._copy,
      "host": socket.gethostname(),
      "until": time.time() + CLAIM_S,
    }
    self._store.write(_CLAIM, json.dumps(claim).encode())

  def release(self) -> None:
    """Gives up the claim; where that fails it ends by itself."""
    with contextlib.suppress(StoreError):
      held = self._held()
      if held and held["copy"] == self._copy:
        self._store.delete([_CLAIM])

  def push(self) -> None:
    """Copies what has changed here to the store.

    What is copied is the folder as it was at one moment; logs may be longer.

    Raises:
      ClaimLostError: another process has written there.
      StoreError: the store refuses.
    """
    for _ in range(_TRIES):
      there = self._snapshot()
      if there is None:
        continue
      try:
        self._push(there)
        return
      except _MovedError:
        continue
    raise StoreError(
      f"{self.tree} must rest for a moment to be copied to {self.url}, "
      "and it changes all the time: stop what writes there."
    )

  def _push(self, there: Mapping[str, os.stat_result]) -> None:
    changed = {
      path: found
      for path, found in there.items()
      if not self._is_same(path, found)
    }
    if not changed and there.keys() == self._copied.keys():
      return
    number = self._number + 1
    copied = {path: one for path, one in self._copied.items() if path in there}
    for path, found in changed.items():
      copied[path] = self._upload(path, found, number)
    self._publish(number, copied)

  def _publish(self, number: int, copied: dict[str, _Copied]) -> None:
    """Makes files visible on the store, all at once."""
    index = {
      "format_version": _FORMAT_VERSION,
      "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      "files": {
        path: [dataclasses.astuple(part) for part in one.parts]
        for path, one in sorted(copied.items())
      },
    }
    text = json.dumps(index, ensure_ascii=False).encode()
    if not self._store.create(_index_name(number), text):
      raise self._lost("another machine")
    before = _objects(self._copied)
    self._number, self._copied = number, copied
    self._write_state()
    self._clear(before)

  def _clear(self, before: set[str]) -> None:
    """Deletes objects that the newest index does not name.

    Args:
      before: those that the index before it named.
    """
    if self._cleared:
      unused = before | {_index_name(self._number - 1)}
    else:
      # Processes that were killed have left some.
      unused, self._cleared = set(self._store.names()), True
    unused -= _objects(self._copied) | {_CLAIM, _index_name(self._number)}
    self._store.delete(unused)

  def _upload(self, path: str, found: os.stat_result, number: int) -> _Copied:
    """Copies a file, or what it has grown by."""
    name = f"{path}~{number}-{self._owner[:6]}"
    try:
      with (self.tree / path).open("rb") as file:
        if os.fstat(file.fileno()).st_ino != found.st_ino:
          raise _MovedError
        kept = self._grown_from(path, found, file)
        begin = sum(part.bytes for part in kept)
        file.seek(begin)
        size, sha256 = self._store.write_file(name, file, found.st_size - begin)
        if size != found.st_size - begin:
          raise _MovedError
        now = os.fstat(file.fileno())
    except FileNotFoundError:
      raise _MovedError from None
    if not _is_log(path) and _sign(now) != _sign(found):
      raise _MovedError
    parts = (*kept, _Part(name, size, sha256))
    return _Copied(found.st_ino, found.st_size, found.st_mtime_ns, parts)

  def _grown_from(
    self, path: str, found: os.stat_result, file: BinaryIO
  ) -> tuple[_Part, ...]:
    """Parts of a log that it still begins with; none for what is copied whole.

    The last of them is read again: a file that took this one's place may have
    its inode.
    """
    known = self._copied.get(path)
    if (
      known is None
      or not _is_log(path)
      or known.inode != found.st_ino
      or not _LEAST_LOG_BYTES <= known.bytes < found.st_size
      or len(known.parts) >= _MOST_PARTS
    ):
      return ()
    last = known.parts[-1]
    file.seek(known.bytes - last.bytes)
    _, sha256 = read_bytes(file, last.bytes)
    return known.parts if sha256 == last.sha256 else ()

  def _is_same(self, path: str, found: os.stat_result) -> bool:
    known = self._copied.get(path)
    return known is not None and _sign(found) == (
      known.inode,
      known.bytes,
      known.mtime_ns,
    )

  def _snapshot(self) -> dict[str, os.stat_result] | None:
    """All files as they were at one moment; None if they do not rest."""
    first, second = self._walk(), self._walk()
    rests = first.keys() == second.keys() and all(
      first[path].st_ino == found.st_ino
      if _is_log(path)
      else _sign(first[path]) == _sign(found)
      for path, found in second.items()
    )
    if rests:
      return second
    time.sleep(_CALM_S)
    return None

  def _walk(self) -> dict[str, os.stat_result]:
    found: dict[str, os.stat_result] = {}
    for parent, folders, names in os.walk(self.tree):
      folders[:] = [name for name in folders if not _LEFT_OUT.fullmatch(name)]
      for name in (*names, *folders):
        path = pathlib.Path(parent, name)
        if _LEFT_OUT.fullmatch(name):
          continue
        try:
          seen = path.lstat()
        except FileNotFoundError:
          continue
        if stat.S_ISLNK(seen.st_mode):
          raise StoreError(
            f"a work folder on an object store must hold no links, and {path} "
            "is one: choose a --workdir on a disk."
          )
        if stat.S_ISREG(seen.st_mode):
          found[path.relative_to(self.tree).as_posix()] = seen
    return found

  def _take(
    self, number: int, indexed: Mapping[str, tuple[_Part, ...]]
  ) -> None:
    """Makes the folder here what an index says."""
    if self._number and not number:
      print(f"{self.url} was emptied: starting anew")
    copied: dict[str, _Copied] = {}
    for path, parts in indexed.items():
      target = self.tree / path
      known = self._copied.get(path)
      same = (
        known is not None
        and known.parts == parts
        and target.is_file()
        and self._is_same(path, target.stat())
      )
      if not same:
        self._download(target, parts)
      seen = target.stat()
      copied[path] = _Copied(*_sign(seen), parts)
    for path in self._walk().keys() - indexed.keys():
      (self.tree / path).unlink()
    self._number, self._copied = number, copied
    self._write_state()

  def _download(self, target: pathlib.Path, parts: tuple[_Part, ...]) -> None:
    files.make_private_folder(target.parent)
    with files.replaced_file(target) as new, new.open("wb") as file:
      for part in parts:
        if self._store.copy_here(part.object, file) != (
          part.bytes,
          part.sha256,
        ):
          raise StoreError(
            f"{self.url}/{part.object} must be as it was written, and is "
            "not: put it back, or choose another --workdir."
          )

  def _newest(self) -> tuple[int, dict[str, tuple[_Part, ...]]]:
    """Number and content of the newest index; 0 and nothing without one."""
    own = self._store.names(_OWN)
    numbers = [int(m[1]) for name in own if (m := _INDEX.fullmatch(name))]
    if not numbers:
      if others := sorted(self._store.names().keys() - {_CLAIM}):
        raise StoreError(
          f"{self.url} must be empty or hold a work folder, and holds "
          f"{others[0]}: choose another --workdir."
        )
      return 0, {}
    name = _index_name(max(numbers))
    raw = self._store.read(name)
    if raw is None:
      raise MissingObjectError(f"{self.url}/{name} must exist.")
    try:
      content = json.loads(raw)
      if content["format_version"] != _FORMAT_VERSION:
        raise ValueError(f"format version {content['format_version']}")
      return max(numbers), {
        safe_name(path): tuple(_Part(*part) for part in parts)
        for path, parts in content["files"].items()
      }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise StoreError(
        f"{self.url}/{name} must be an index of format version "
        f"{_FORMAT_VERSION}, and is none ({error}): put it back, or choose "
        "another --workdir."
      ) from error

  def _held(self) -> dict[str, Any] | None:
    """The claim on the store; None without one."""
    raw = self._store.read(_CLAIM)
    try:
      held = None if raw is None else json.loads(raw)
      return held and {
        "copy": str(held["copy"]),
        "host": str(held["host"]),
        "until": float(held["until"]),
      }
    except (ValueError, KeyError, TypeError):
      return None

  def _lost(self, host: str) -> ClaimLostError:
    return ClaimLostError(
      f"one process at a time may write to {self.url}, and one on {host} "
      "has taken it over: wait for it. What this one has made since lies in "
      f"{self.tree}."
    )

  def _read_state(self) -> None:
    """What this folder was last; without a sound state it is nothing."""
    try:
      state = json.loads(self._state.read_text(encoding="utf-8"))
      copied = {
        path: _Copied(inode, size, changed, tuple(_Part(*p) for p in parts))
        for path, (inode, size, changed, parts) in state["files"].items()
      }
      self._copy, self._number = state["copy"], state["number"]
      self._copied = copied
    except (OSError, ValueError, KeyError, TypeError):
      shutil.rmtree(self.tree)
      files.make_private_folder(self.tree)
      self._write_state()

  def _write_state(self) -> None:
    state = {
      "copy": self._copy,
      "number": self._number,
      "files": {
        path: dataclasses.astuple(one) for path, one in self._copied.items()
      },
    }
    files.replace_text(self._state, json.dumps(state))


@contextlib.contextmanager
def opened(
  place: pathlib.Path | str, only_read: bool = False
) -> Iterator[pathlib.Path]:
  """Gives the folder to work in; what it holds at the end lies at `place`.

  Args:
    place: a folder here, which is given as it is; or a URL of an object store.
    only_read: nothing is written to the store.

  Raises:
    StoreError: the store cannot be used, or another process works there.
  """
  if not (isinstance(place, str) and is_url(place)):
    yield pathlib.Path(place)
    return
  with _held_mirror(place) as mirror:
    if only_read:
      mirror.pull()
      yield mirror.tree
      return
    mirror.claim()
    renewing = _Repeated(mirror.renew)
    try:
      mirror.begin()
      copying = _Repeated(mirror.push)
      try:
        yield mirror.tree
      finally:
        _copy_last(mirror, copying, renewing)
    finally:
      renewing.stop()
      mirror.release()


def _copy_last(mirror: Mirror, copying: _Repeated, renewing: _Repeated) -> None:
  """Makes the last copy; an error of the command itself goes before its own."""
  error = sys.exception()
  try:
    copying.stop()
    if lost := copying.lost or renewing.lost:
      raise lost
    mirror.push()
    print(f"copied to {mirror.url}")
  except StoreError as refused:
    text = (
      f"{refused}\nWhat this command has made lies in {mirror.tree}; the same "
      "command on this machine copies it."
    )
    if error is None:
      raise StoreError(text) from refused
    print(f"error: {text}", file=sys.stderr)


@contextlib.contextmanager
def _held_mirror(url: str) -> Iterator[Mirror]:
  """The mirror of a URL on this machine, for this process alone."""
  folder = local_folder(url, "workdirs")
  files.make_private_folder(folder)
  with hold_lock(folder, ".lock", wait=False) as held:
    if not held:
      raise StoreError(
        f"one process at a time may use {url}, and another on this machine "
        "does: wait for it, or choose another --workdir."
      )
    yield Mirror(ObjectStore(url), folder)


class _Repeated:
  """A thread that does something every 30 seconds, until it is stopped.

  A claim that is lost ends the process in good order (SIGTERM).

  Args:
    action: what it does.

  Attributes:
    lost: says that another process has taken over.
  """

  def __init__(self, action: Callable[[], None]):
    self.lost: ClaimLostError | None = None
    self._action = action
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread, after what it is doing now."""
    self._over.set()
    self._thread.join()

  def _run(self) -> None:
    failed = False
    while not self._over.wait(EVERY_S):
      try:
        self._action()
        failed = False
      except ClaimLostError as error:
        self.lost = error
        os.kill(os.getpid(), signal.SIGTERM)
        return
      except StoreError as error:
        if not failed:
          print(f"warning: {error} It is tried again.", file=sys.stderr)
        failed = True


def _is_log(path: str) -> bool:
  """Whether a file grows at its end alone, by its name."""
  return _LOG.fullmatch(pathlib.PurePosixPath(path).name) is not None


def _index_name(number: int) -> str:
  return f"{_OWN}index-{number:08d}.json"


def _objects(copied: Mapping[str, _Copied]) -> set[str]:
  return {part.object for one in copied.values() for part in one.parts}


def _sign(found: os.stat_result) -> tuple[int, int, int]:
  """What changes with a file."""
  return found.st_ino, found.st_size, found.st_mtime_ns
