"""Answers of the web on disk, shared by runs, so that they can be replayed."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import pathlib
import sqlite3
import threading
import unicodedata
import urllib.parse
from collections.abc import Iterator
from typing import Any, Literal

from rapo_jax import files, text_files
from rapo_jax.errors import InputError, MissingInputError

Mode = Literal["off", "record", "replay"]

IMPORTED = "imported"
"""Kind of the answers that another project's file gave."""

_MODES = ("off", "record", "replay")
_WAIT_S = 30.0
_PREFIX = "search query: "
_TABLE = """
  CREATE TABLE IF NOT EXISTS answers (
    kind TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    query TEXT NOT NULL,
    top_k INTEGER NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (kind, endpoint, query, top_k)
  ) WITHOUT ROWID
"""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CacheConfig:
  """Where answers of the web are kept, and how they are used.

  Attributes:
    path: SQLite file, which several runs may share; None for none.
    mode: "record" asks what is not kept yet, and keeps it. "replay" answers
      from the file alone: it opens no socket and needs no key. "off" neither
      reads nor writes.

  Raises:
    InputError: the mode is another, or needs a path.
  """

  path: str | None = None
  mode: Mode = "off"

  def __post_init__(self) -> None:
    if self.mode not in _MODES:
      raise InputError(
        f"mode of a cache must be one of {', '.join(_MODES)}, got "
        f"{self.mode!r}: correct it."
      )
    if self.mode != "off" and not self.path:
      raise InputError(
        f"a cache with mode {self.mode!r} must have a path, got "
        f"{self.path!r}: name its file, or set mode to 'off'."
      )


@dataclasses.dataclass(frozen=True)
class Key:
  """What is asked.

  Attributes:
    kind: of the tool.
    endpoint: address of the service; "" where the query says all.
    query: in its plain form, see `plain_query`.
    top_k: results that are wanted; 0 where there is one.
  """

  kind: str
  endpoint: str
  query: str
  top_k: int = 0


def plain_query(text: str) -> str:
  """A query without what makes no difference: forms of Unicode and spaces."""
  valid = text.encode("utf-8", "replace").decode().replace("\0", " ")
  return " ".join(unicodedata.normalize("NFC", valid).split())


def plain_url(text: str) -> str:
  """An address without its fragment and outer spaces."""
  return urllib.parse.urldefrag(plain_query(text)).url


class WebCache:
  """Answers by what was asked. Threads and processes may share the file.

  An answer is on the disk once `add` has returned, or it is not there.

  Args:
    path: of the file.
    read_only: whether it must exist, and is never written.

  Raises:
    InputError: the file is no cache, or cannot be opened.
  """

  def __init__(self, path: pathlib.Path, *, read_only: bool = False):
    self.path = path
    self._lock = threading.Lock()
    self._warned = False
    if read_only:
      _check_exists(path)
    if not read_only:
      files.make_private_folder(path.absolute().parent)
      with self._named(), files.append_private(path):
        """Makes the file for its owner alone."""
    mode = "ro" if read_only else "rw"
    address = f"file:{urllib.parse.quote(str(path.absolute()))}?mode={mode}"
    with self._named():
      self._base = sqlite3.connect(
        address,
        uri=True,
        timeout=_WAIT_S,
        check_same_thread=False,
        isolation_level=None,
      )
    try:
      with self._named():
        if not read_only:
          self._base.execute(_TABLE)
        self._base.execute("SELECT 1 FROM answers LIMIT 1")
    except InputError:
      self._base.close()
      raise

  def close(self) -> None:
    """Closes the file."""
    with self._lock:
      self._base.close()

  def get(self, key: Key) -> Any:
    """The value that is kept, or None.

    Raises:
      InputError: the file is broken.
    """
    row = (key.kind, key.endpoint, key.query, key.top_k)
    with self._lock, self._named():
      found = self._base.execute(
        "SELECT value FROM answers WHERE kind = ? AND endpoint = ? AND "
        "query = ? AND top_k = ?",
        row,
      ).fetchone()
    return None if found is None else json.loads(found[0])

  def add(self, key: Key, value: Any) -> None:
    """Keeps a value; where that fails, warns once and goes on.

    Args:
      key: what was asked.
      value: of JSON, not None.
    """
    try:
      self.add_all([(key, value)])
    except InputError as error:
      with self._lock:
        first, self._warned = not self._warned, True
      if first:
        _log.warning("An answer of the web is not kept: %s", error)

  def add_all(self, pairs: list[tuple[Key, Any]]) -> None:
    """Keeps values, all of them or none.

    Raises:
      InputError: the disk or the file does not take them.
    """
    rows = [
      (k.kind, k.endpoint, k.query, k.top_k, json.dumps(value))
      for k, value in pairs
    ]
    with self._lock, self._named():
      self._base.execute("BEGIN IMMEDIATE")
      try:
        self._base.executemany(
          "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", rows
        )
        self._base.execute("COMMIT")
      except sqlite3.Error:
        with contextlib.suppress(sqlite3.Error):
          self._base.execute("ROLLBACK")
        raise

  def counts(self) -> dict[tuple[str, str], int]:
    """Number of answers by kind and endpoint."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    with self._lock, self._named():
      rows = self._base.execute(
        "SELECT kind, endpoint, COUNT(*) FROM answers GROUP BY kind, endpoint"
      ).fetchall()
    for kind, endpoint, count in rows:
      found[kind, endpoint] += count
    return dict(found)

  def find(self, text: str, limit: int) -> list[tuple[Key, Any]]:
    """Answers whose query holds a text, in the order of their keys."""
    with self._lock, self._named():
      rows = self._base.execute(
        "SELECT kind, endpoint, query, top_k, value FROM answers "
        "WHERE instr(query, ?) ORDER BY kind, endpoint, query LIMIT ?",
        (text, limit),
      ).fetchall()
    return [(Key(*row[:4]), json.loads(row[4])) for row in rows]

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    """Says which file it is that fails."""
    try:
      yield
    except (sqlite3.Error, OSError) as error:
      raise InputError(
        f"{self.path} must be a cache of the web that can be read, and is not "
        f"({type(error).__name__}: {error}): check its permissions and the "
        "disk, or record another."
      ) from error


def _check_exists(path: pathlib.Path) -> None:
  if not path.is_file():
    raise MissingInputError(
      f"a cache that is replayed must exist, and {path} does not: record it "
      "first (mode 'record'), or import one with `python -m "
      "experiments.search_cache import`."
    )


def check_cache(config: CacheConfig) -> None:
  """Checks that a cache which is to be replayed is there.

  Raises:
    MissingInputError: it is not.
  """
  if config.path is not None and config.mode == "replay":
    _check_exists(pathlib.Path(config.path).expanduser())


def open_cache(config: CacheConfig) -> WebCache | None:
  """The cache of a config; None where it is off.

  Raises:
    InputError: it is to be replayed and is not there, or is no cache.
  """
  if config.mode == "off" or config.path is None:
    return None
  return WebCache(
    pathlib.Path(config.path).expanduser(), read_only=config.mode == "replay"
  )


def import_answers(cache: WebCache, path: pathlib.Path) -> int:
  """Keeps what a JSON file holds, an object from queries to texts.

  That is ARPO's `search_cache.json`. Its keys may begin with "search query: ".
  A later search for the query is answered by the text as it is.

  Args:
    cache: gets the answers.
    path: of the file.

  Returns:
    Number of queries.

  Raises:
    InputError: the file holds something else.
  """
  content = text_files.read_json(path)
  if not isinstance(content, dict) or not content:
    raise InputError(
      f"{path} must hold an object from queries to texts, and holds "
      f"{type(content).__name__}: check the file."
    )
  pairs: dict[str, str] = {}
  for name, text in content.items():
    query = plain_query(name.removeprefix(_PREFIX))
    if not isinstance(text, str) or not query:
      raise InputError(
        f"{path} must map queries to texts, and maps {name!r:.60} to "
        f"{text!r:.60}: correct or remove it."
      )
    # Of two answers the query's own counts, and the one that says something.
    if not pairs.get(query) or (text and query == plain_query(name)):
      pairs[query] = text
  cache.add_all(
    [(Key(IMPORTED, "", query), text) for query, text in pairs.items()]
  )
  return len(pairs)
