"""An index of logged trajectories: where each lies, its figures, its words.

`trajectories.jsonl` of the runs stays the only copy of a trajectory. The index
is an SQLite file beside them: a row a trajectory, and the words of its text
(FTS5). It grows with the logs, and is made again from where a log was cut or
changed. Deleting it loses nothing.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import re
import secrets
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.report.folders import run_folders
from experiments.report.samples import reward_class
from experiments.viewer import followed
from experiments.workdir import TRAJECTORIES_FILE, parse_row
from rapo_jax import files
from rapo_jax.errors import InputError, accessing
from rapo_jax.records import TrajectoryRecord

INDEX_FILE = ".view.sqlite3"
"""In the work folder, or among the user's caches if that cannot be written."""
PAGE = 200
"""Most trajectories of one list."""
_VERSION = 3
_BATCH_BYTES = 2**22
_BUSY_S = 60.0
_SECRET_BYTES = 12
_SCHEMA = """
CREATE TABLE secret (text TEXT NOT NULL);
CREATE TABLE log (
  id INTEGER PRIMARY KEY, run TEXT UNIQUE NOT NULL, task TEXT NOT NULL,
  method TEXT NOT NULL, seed INTEGER NOT NULL, position INTEGER NOT NULL,
  tail BLOB NOT NULL, broken TEXT NOT NULL
);
CREATE TABLE question (
  id INTEGER PRIMARY KEY, query_id TEXT NOT NULL, text TEXT NOT NULL,
  truth TEXT NOT NULL, UNIQUE (query_id, text, truth)
);
CREATE TABLE trajectory (
  id INTEGER PRIMARY KEY AUTOINCREMENT, log INTEGER NOT NULL,
  start INTEGER NOT NULL, at_update INTEGER NOT NULL,
  question INTEGER NOT NULL, number INTEGER NOT NULL, score REAL NOT NULL,
  reward_class TEXT NOT NULL, status TEXT NOT NULL, finish TEXT NOT NULL,
  origin TEXT NOT NULL, hybrid INTEGER NOT NULL, retrieved INTEGER NOT NULL,
  tool_calls INTEGER NOT NULL, tool_errors INTEGER NOT NULL,
  advantage REAL NOT NULL, tokens INTEGER NOT NULL, strip TEXT NOT NULL,
  digest INTEGER NOT NULL
);
CREATE INDEX by_update ON trajectory (at_update DESC, log, start);
CREATE UNIQUE INDEX by_place ON trajectory (log, start);
CREATE INDEX by_question ON trajectory (question);
CREATE VIRTUAL TABLE words USING fts5(text, content='');
"""
_COLUMNS = """
  log.run, log.task, log.method, log.seed, t.start, t.at_update, q.query_id,
  q.text, q.truth, t.number, t.score, t.reward_class, t.status, t.finish,
  t.origin, t.hybrid, t.retrieved, t.tool_calls, t.tool_errors, t.advantage,
  t.tokens, t.strip
"""
_JOINED = """
  FROM trajectory AS t JOIN log ON log.id = t.log
  JOIN question AS q ON q.id = t.question
"""
_CHOICES = {
  "task": "log.task",
  "method": "log.method",
  "seed": "log.seed",
  "at_update": "t.at_update",
  "reward_class": "t.reward_class",
  "status": "t.status",
  "finish": "t.finish",
  "origin": "t.origin",
}
"""What a list can be filtered by, with its column."""
_WORD = re.compile(r'"([^"]*)"?(\*?)|([^\s"]+)')


class Log(NamedTuple):
  """The log of one run.

  Attributes:
    run: path of its folder below the root; names the run in links.
    task: by name.
    method: by name.
    seed: of the run.
    path: its file.
  """

  run: str
  task: str
  method: str
  seed: int
  path: pathlib.Path


class Row(NamedTuple):
  """A trajectory in a list.

  Attributes:
    run: path of the run's folder below the root.
    task: by name.
    method: by name.
    seed: of the run.
    start: offset of its line in the log, in bytes.
    at_update: number of the update that trained on it.
    query_id: id of the question.
    question: the question alone.
    truth: accepted answers, with " | " between them.
    number: of the trajectory among those of the question.
    score: reward.
    reward_class: right, partly, wrong or broken.
    status: the rule of the reward that decided.
    finish: why it ended.
    origin: who wrote it: policy, replay or agent.
    hybrid: whether it was allowed to retrieve.
    retrieved: inserted steps.
    tool_calls: calls of tools.
    tool_errors: calls that did not end well.
    advantage: mean over its policy tokens.
    tokens: without the prompt; 0 where they are not known.
    strip: kind and tokens of each segment: "p9 o12 r30".
  """

  run: str
  task: str
  method: str
  seed: int
  start: int
  at_update: int
  query_id: str
  question: str
  truth: str
  number: int
  score: float
  reward_class: str
  status: str
  finish: str
  origin: str
  hybrid: bool
  retrieved: int
  tool_calls: int
  tool_errors: int
  advantage: float
  tokens: int
  strip: str


@dataclasses.dataclass(frozen=True)
class Filters:
  """Which trajectories are listed; None and "" leave nothing out.

  Attributes:
    text: words that all occur, in any case; "in quotes" side by side, and
      `begin*` for all that begin so. The prompt is not searched.
    run: path of the run's folder below the root.
    task: by name.
    method: by name.
    seed: of the run.
    first_update: number of the first update.
    last_update: number of the last update.
    query_id: id of the question.
    reward_class: right, partly, wrong or broken.
    status: the rule of the reward that decided.
    finish: why it ended.
    origin: who wrote it: policy, replay or agent.
    hybrid: whether it was allowed to retrieve.
    retrieved: whether a step was inserted.
    tool_error: whether a call of a tool did not end well.
  """

  text: str = ""
  run: str | None = None
  task: str | None = None
  method: str | None = None
  seed: int | None = None
  first_update: int | None = None
  last_update: int | None = None
  query_id: str | None = None
  reward_class: str | None = None
  status: str | None = None
  finish: str | None = None
  origin: str | None = None
  hybrid: bool | None = None
  retrieved: bool | None = None
  tool_error: bool | None = None


class Progress(NamedTuple):
  """How far the logs are indexed.

  Attributes:
    trajectories: that are indexed.
    read_bytes: of the logs that are indexed.
    log_bytes: size of the logs.
    broken: a message for each run whose log holds lines that cannot be read.
  """

  trajectories: int
  read_bytes: int
  log_bytes: int
  broken: tuple[str, ...]


class TrajectoryIndex:
  """Finds trajectories of a work folder or a study.

  One thread may call `refresh` while others read, and several processes may
  share the file.

  Args:
    root: work folder of a run, or folder of a study.
    path: file of the index; made when missing, made again when it is of
      another version. By default `index_path(root)`.

  Raises:
    InputError: the file cannot be made.
  """

  def __init__(self, root: pathlib.Path, path: pathlib.Path | None = None):
    self._root = root
    self._path = index_path(root) if path is None else path
    with accessing(self._path):
      _make(self._path)

  @property
  def secret(self) -> str:
    """A word that lasts as long as the file, for addresses of a server."""
    with self._connected() as connection:
      return str(connection.execute("SELECT text FROM secret").fetchone()[0])

  def refresh(self, seconds: float = math.inf) -> bool:
    """Reads on in all logs.

    Args:
      seconds: after which it stops, when what it began is done.

    Returns:
      Whether all whole lines have been read.
    """
    end = time.monotonic() + seconds
    logs = find_logs(self._root)
    with self._connected() as connection:
      self._forget(connection, logs)
      for log in logs:
        while self._read_on(connection, log):
          if time.monotonic() > end:
            return False
    return True

  def progress(self) -> Progress:
    """How far the logs are indexed."""
    with self._connected() as connection:
      rows = connection.execute("SELECT run, position, broken FROM log")
      known = {run: (position, broken) for run, position, broken in rows}
      (count,) = connection.execute(
        "SELECT count(*) FROM trajectory"
      ).fetchone()
    sizes = {log.run: log.path.stat().st_size for log in find_logs(self._root)}
    return Progress(
      count,
      sum(min(known.get(run, (0, ""))[0], n) for run, n in sizes.items()),
      sum(sizes.values()),
      tuple(broken for _, broken in known.values() if broken),
    )

  def choices(self) -> dict[str, list[Any]]:
    """Values by which lists can be filtered, sorted, by field of `Row`."""
    with self._connected() as connection:
      return {
        name: sorted(
          value
          for (value,) in connection.execute(
            f"SELECT DISTINCT {column} FROM trajectory AS t"
            " JOIN log ON log.id = t.log"
          )
        )
        for name, column in _CHOICES.items()
      }

  def count(self, filters: Filters) -> int:
    """How many trajectories pass.

    Raises:
      InputError: the text holds no word.
    """
    where, values = _where(filters)
    with self._connected() as connection:
      (count,) = connection.execute(
        f"SELECT count(*) {_JOINED} WHERE {where}", values
      ).fetchone()
    return int(count)

  def rows(
    self, filters: Filters, *, after: Row | None = None, limit: int = PAGE
  ) -> list[Row]:
    """Trajectories that pass, the last update first.

    Args:
      filters: which.
      after: last row of the list before; None for the first list.
      limit: most rows.

    Raises:
      InputError: the text holds no word.
    """
    where, values = _where(filters)
    if after is not None:
      where += (
        " AND (t.at_update < ? OR t.at_update = ? AND (t.log, t.start) >"
        " ((SELECT id FROM log WHERE run = ?), ?))"
      )
      values += [after.at_update, after.at_update, after.run, after.start]
    order = "ORDER BY t.at_update DESC, t.log, t.start LIMIT ?"
    with self._connected() as connection:
      found = connection.execute(
        f"SELECT {_COLUMNS} {_JOINED} WHERE {where} {order}", [*values, limit]
      )
      return [_row(columns) for columns in found]

  def row(self, run: str, start: int) -> Row | None:
    """One trajectory; None if there is none at that place.

    Args:
      run: path of the run's folder below the root.
      start: offset of its line, in bytes.
    """
    with self._connected() as connection:
      found = connection.execute(
        f"SELECT {_COLUMNS} {_JOINED} WHERE log.run = ? AND t.start = ?",
        [run, start],
      ).fetchone()
    return None if found is None else _row(found)

  def record(self, row: Row) -> TrajectoryRecord | None:
    """The whole trajectory, from its log; None if the log has changed."""
    path = self._root / row.run / TRAJECTORIES_FILE
    try:
      with path.open("rb") as file:
        file.seek(row.start)
        record = _parsed(file.readline(), path)
    except (FileNotFoundError, InputError):
      return None
    same = (record.query_id, record.index) == (row.query_id, row.number)
    return record if same else None

  @contextlib.contextmanager
  def _connected(self) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(
      self._path, timeout=_BUSY_S, isolation_level=None
    )
    with contextlib.closing(connection):
      connection.execute("PRAGMA synchronous = NORMAL")
      connection.execute("PRAGMA mmap_size = 268435456")
      yield connection

  def _forget(
    self, connection: sqlite3.Connection, logs: Sequence[Log]
  ) -> None:
    """Drops the logs that are no longer there."""
    there = {log.run for log in logs}
    for number, run in connection.execute("SELECT id, run FROM log").fetchall():
      if run not in there:
        with _transaction(connection):
          _drop(connection, number, 0)
          connection.execute("DELETE FROM log WHERE id = ?", [number])

  def _read_on(self, connection: sqlite3.Connection, log: Log) -> bool:
    """Reads a part of a log; returns whether there may be more."""
    number, place, _ = _place(connection, log)
    if number is not None and _is_read(log.path, place):
      return False
    with _transaction(connection):
      # Another process may have read on.
      number, place, broken = _place(connection, log)
      if number is None:
        number = connection.execute(
          "INSERT INTO log (run, task, method, seed, position, tail, broken)"
          " VALUES (?, ?, ?, ?, 0, x'', '')",
          [log.run, log.task, log.method, log.seed],
        ).lastrowid
        assert number is not None
      if not followed.is_continued(log.path, place):
        place = _sound_place(connection, number, log.path)
        _drop(connection, number, place.position)
        broken = broken if place.position else ""
      begin = place.position
      for start, line, behind in followed.lines_from(log.path, place):
        place = behind
        try:
          record = _parsed(line, log.path)
          _insert(connection, number, start, record, _digest(line))
        except InputError as error:
          broken = broken or str(error)
        if place.position - begin >= _BATCH_BYTES:
          break
      connection.execute(
        "UPDATE log SET position = ?, tail = ?, broken = ? WHERE id = ?",
        [place.position, place.tail, broken, number],
      )
    return place.position > begin


def find_logs(root: pathlib.Path) -> list[Log]:
  """Logs of the runs of a work folder or a study, by task, method and seed."""
  found = [
    Log(
      place.path.relative_to(root).as_posix(),
      place.task,
      place.method,
      place.seed,
      place.path / TRAJECTORIES_FILE,
    )
    for place in run_folders(root)
    if (place.path / TRAJECTORIES_FILE).exists()
  ]
  return sorted(found, key=lambda log: (log.task, log.method, log.seed))


def index_path(root: pathlib.Path) -> pathlib.Path:
  """File of the index of a folder."""
  if os.access(root, os.W_OK):
    return root / INDEX_FILE
  name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
  caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  folder = pathlib.Path(caches).expanduser() / "rapo_jax" / "view"
  return folder / f"{name}.sqlite3"


def _make(path: pathlib.Path) -> None:
  """Makes the file, unless it is there in this version."""
  files.make_private_folder(path.parent)
  with files.locked(path.with_name(f"{path.name}.lock")):
    if path.exists():
      with contextlib.closing(sqlite3.connect(path)) as connection:
        if _version(connection) == _VERSION:
          return
    for suffix in ("", "-wal", "-shm"):
      path.with_name(path.name + suffix).unlink(missing_ok=True)
    files.append_private(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
      connection.execute("PRAGMA journal_mode = WAL")
      connection.executescript(_SCHEMA)
      connection.execute(
        "INSERT INTO secret VALUES (?)", [secrets.token_urlsafe(_SECRET_BYTES)]
      )
      connection.execute(f"PRAGMA user_version = {_VERSION}")
      connection.commit()


def _version(connection: sqlite3.Connection) -> int:
  try:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
  except sqlite3.DatabaseError:
    # It is no database, or a damaged one.
    return 0


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
  connection.execute("BEGIN IMMEDIATE")
  try:
    yield
  except BaseException:
    connection.execute("ROLLBACK")
    raise
  connection.execute("COMMIT")


def _place(
  connection: sqlite3.Connection, log: Log
) -> tuple[int | None, followed.Place, str]:
  """Id of a log, how far it is read, and what could not be read."""
  found = connection.execute(
    "SELECT id, position, tail, broken FROM log WHERE run = ?", [log.run]
  ).fetchone()
  if found is None:
    return None, followed.START, ""
  number, position, tail, broken = found
  return number, followed.Place(position, tail), broken


def _is_read(path: pathlib.Path, place: followed.Place) -> bool:
  size = path.stat().st_size
  return size == place.position and followed.is_continued(path, place)


def _digest(line: bytes) -> int:
  """Tells a line from others that are as long."""
  return zlib.crc32(line)


def _sound_place(
  connection: sqlite3.Connection, log: int, path: pathlib.Path
) -> followed.Place:
  """How far a log that was cut is still what was read of it.

  A resumed run cuts the end of its log and then writes another. So the lines
  that are still the same come first.
  """
  rows = connection.execute(
    "SELECT start, digest FROM trajectory WHERE log = ? ORDER BY start", [log]
  ).fetchall()
  with path.open("rb") as file:

    def line_at(start: int) -> bytes:
      file.seek(start)
      return file.readline()

    cut = bisect.bisect_left(
      rows, True, key=lambda row: _digest(line_at(row[0])) != row[1]
    )
    if not cut:
      return followed.START
    start, _ = rows[cut - 1]
    return followed.place_behind(start, line_at(start))


def _drop(connection: sqlite3.Connection, log: int, position: int) -> None:
  """Drops the trajectories of a log from a position on.

  Their words stay, under numbers that are not given again.
  """
  connection.execute(
    "DELETE FROM trajectory WHERE log = ? AND start >= ?", [log, position]
  )


def _parsed(line: bytes, path: pathlib.Path) -> TrajectoryRecord:
  """A line of a log.

  Raises:
    InputError: it is damaged.
  """
  try:
    record = TrajectoryRecord.from_json(parse_row(line, path))
    if record.training is None:
      raise InputError("it does not say what training made of it")
    # What the index and the page read.
    _figures(record)
    _strip(record)
  # A damaged line may be wrong in any way.
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise InputError(
      f"{path} holds a line that is no trajectory ({error}): it is left out."
    ) from error
  return record


def _insert(
  connection: sqlite3.Connection,
  log: int,
  start: int,
  record: TrajectoryRecord,
  digest: int,
) -> None:
  question = [
    record.query_id,
    record.question,
    " | ".join(record.ground_truth),
  ]
  connection.execute(
    "INSERT OR IGNORE INTO question (query_id, text, truth) VALUES (?, ?, ?)",
    question,
  )
  (asked,) = connection.execute(
    "SELECT id FROM question WHERE query_id = ? AND text = ? AND truth = ?",
    question,
  ).fetchone()
  tokens, strip = _strip(record)
  columns = {
    "log": log,
    "start": start,
    "question": asked,
    "number": record.index,
    "finish": record.finish_reason,
    "tokens": tokens,
    "strip": strip,
    "digest": digest,
    **_figures(record),
  }
  number = connection.execute(
    f"INSERT INTO trajectory ({', '.join(columns)})"
    f" VALUES ({', '.join('?' * len(columns))})",
    [*columns.values()],
  ).lastrowid
  written = [s.text for s in record.segments if s.kind != "prompt"]
  connection.execute(
    "INSERT INTO words (rowid, text) VALUES (?, ?)",
    [number, "\n".join([record.question, *written])],
  )


def _figures(record: TrajectoryRecord) -> dict[str, Any]:
  """Columns that a record's training, score and events say."""
  training, score = record.training, record.score
  assert training is not None
  tools = [event for event in record.events if event["type"] == "tool"]
  return {
    "at_update": training.update,
    "score": float(score["value"]),
    "reward_class": reward_class(score),
    "status": str(score["status"]),
    "origin": training.origin,
    "hybrid": bool(training.hybrid),
    "retrieved": sum(s.kind == "retrieved" for s in record.segments),
    "tool_calls": len(tools),
    "tool_errors": sum(event["status"] != "ok" for event in tools),
    "advantage": float(training.advantage or 0.0),
  }


def _strip(record: TrajectoryRecord) -> tuple[int, str]:
  """Tokens of a record, and the kind and tokens of each of its segments."""
  parts = [
    (s.kind[0], int(s.num_tokens or 0))
    for s in record.segments
    if s.kind != "prompt"
  ]
  return sum(n for _, n in parts), " ".join(f"{kind}{n}" for kind, n in parts)


def _row(columns: Sequence[Any]) -> Row:
  row = Row(*columns)
  return row._replace(hybrid=bool(row.hybrid))


def _where(filters: Filters) -> tuple[str, list[Any]]:
  """A condition of SQL and its values."""
  equal = {
    "log.run": filters.run,
    "log.task": filters.task,
    "log.method": filters.method,
    "log.seed": filters.seed,
    "q.query_id": filters.query_id,
    "t.reward_class": filters.reward_class,
    "t.status": filters.status,
    "t.finish": filters.finish,
    "t.origin": filters.origin,
    "t.hybrid": filters.hybrid,
    "t.retrieved > 0": filters.retrieved,
    "t.tool_errors > 0": filters.tool_error,
  }
  parts = [(f"({c}) = ?", v) for c, v in equal.items() if v is not None]
  if filters.first_update is not None:
    parts.append(("t.at_update >= ?", filters.first_update))
  if filters.last_update is not None:
    parts.append(("t.at_update <= ?", filters.last_update))
  if filters.text:
    found = "t.id IN (SELECT rowid FROM words WHERE words MATCH ?)"
    parts.append((found, _match(filters.text)))
  return " AND ".join(["1", *(c for c, _ in parts)]), [v for _, v in parts]


def _match(text: str) -> str:
  """A text that a person wrote, as FTS5 reads it."""
  terms = []
  for quoted, quoted_star, word in _WORD.findall(text):
    term = quoted or word.rstrip("*")
    star = quoted_star or "*" * word.endswith("*")
    if re.search(r"\w", term):
      terms.append(f'"{term}"{star}')
  if not terms:
    raise InputError(
      f"text must hold a word to search for, got {text!a:.60}: write one, or "
      "leave it empty."
    )
  return " AND ".join(terms)
