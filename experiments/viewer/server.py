"""Serves the viewer's page and its data, to this machine alone.

An ASGI application that answers GET, below a path that is a secret:

    /                 the page; `/view.css`, `/view.js`
    /api/state        how far the logs are indexed, and choices of the filters
    /api/runs         runs, warnings, names of metrics
    /api/curves       metrics by name and run
    /api/trajectories a list, by filters
    /api/trajectory   one trajectory, and the others of its question
    /api/key          the key of a retrieved step

A thread reads the logs on. Logs are their owner's, and others may be logged in
on the machine: they do not know the path (`TrajectoryIndex.secret`). A request
is refused unless its Host header names this machine: a page of another site
could otherwise read the logs through a name of its own (DNS rebinding). The
page may load nothing from elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.viewer import content, page
from experiments.viewer.index import Filters, Row, TrajectoryIndex
from rapo_jax.errors import InputError

_log = logging.getLogger(__name__)

HOSTS = ("127.0.0.1", "localhost")
_HEADERS = {
  "content-security-policy": page.SERVED_POLICY,
  "cross-origin-resource-policy": "same-origin",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cache-control": "no-store",
}
_WAIT_S = 1.0
_TURN_S = 0.5
_NUMBERS = ("seed", "first_update", "last_update")
_TRUTHS = ("hybrid", "retrieved", "tool_error")
_TEXTS = (
  "text",
  "run",
  "task",
  "method",
  "query_id",
  "reward_class",
  "status",
  "finish",
  "origin",
)


def view_app(root: pathlib.Path, index: TrajectoryIndex) -> Starlette:
  """Makes the application of a work folder or a study.

  Args:
    root: the folder.
    index: of its trajectories.

  Returns:
    An ASGI application. It follows the logs between the start and the end of
    its lifespan.
  """
  return _App(root, index).starlette


class _App:
  def __init__(self, root: pathlib.Path, index: TrajectoryIndex):
    self._root = root
    self._index = index
    self._follower = _Follower(index)
    self._choices: tuple[int, dict[str, list[Any]]] = (-1, {})
    self._curves: Any = None
    self._curves_lock = threading.Lock()
    self.starlette = Starlette(
      routes=[
        Mount(
          f"/{index.secret}",
          routes=[
            Route("/", self._page),
            Route("/view.css", self._style),
            Route("/view.js", self._script),
            Route("/api/state", self._state),
            Route("/api/runs", self._runs),
            Route("/api/curves", self._show_curves),
            Route("/api/trajectories", self._trajectories),
            Route("/api/trajectory", self._trajectory),
            Route("/api/key", self._key),
          ],
        )
      ],
      middleware=[
        Middleware(_WithHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS]),
      ],
      exception_handlers={InputError: _refused},
      lifespan=self._lifespan,
    )

  @contextlib.asynccontextmanager
  async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
    with self._follower:
      yield

  # Plain functions run in threads, beside the event loop.

  def _page(self, request: Request) -> Response:
    text = page.served(self._root)
    return Response(text, media_type="text/html")

  def _style(self, request: Request) -> Response:
    return Response(page.style(), media_type="text/css")

  def _script(self, request: Request) -> Response:
    return Response(page.script(), media_type="text/javascript")

  def _state(self, request: Request) -> Response:
    progress = self._index.progress()
    troubles = [*progress.broken]
    if self._follower.trouble:
      troubles.append(self._follower.trouble)
    return JSONResponse(
      {
        "trajectories": progress.trajectories,
        "read_bytes": progress.read_bytes,
        "log_bytes": progress.log_bytes,
        "troubles": troubles,
        "choices": self._choices_at(progress.trajectories),
      }
    )

  def _choices_at(self, trajectories: int) -> dict[str, list[Any]]:
    """Choices of the filters; they are asked for every other second."""
    if self._choices[0] != trajectories:
      self._choices = (trajectories, self._index.choices())
    return self._choices[1]

  def _runs(self, request: Request) -> Response:
    return JSONResponse(self._known_curves().overview())

  def _show_curves(self, request: Request) -> Response:
    names = request.query_params.getlist("name")
    x = request.query_params.get("x", "update")
    return JSONResponse(self._known_curves().curves(x, names))

  def _known_curves(self) -> Any:
    with self._curves_lock:
      if self._curves is None:
        # Lists do not wait for what curves import.
        from experiments.viewer.curves import Curves

        self._curves = Curves(self._root)
      return self._curves

  def _trajectories(self, request: Request) -> Response:
    parameters = request.query_params
    filters = _filters(parameters)
    after = None
    if "after" in parameters:
      after = self._row(parameters["after"])
    rows = self._index.rows(filters, after=after)
    return JSONResponse(
      {
        "rows": [content.row_to_json(row) for row in rows],
        "count": self._index.count(filters),
      }
    )

  def _trajectory(self, request: Request) -> Response:
    row = self._row(request.query_params.get("key", ""))
    record = self._index.record(row)
    if record is None:
      raise _gone(content.key_of(row))
    others = content.siblings(self._index, row)
    return JSONResponse(
      {
        **content.trajectory_to_json(row, record),
        "siblings": [content.row_to_json(other) for other in others],
      }
    )

  def _key(self, request: Request) -> Response:
    parameters = request.query_params
    trace_id = _number(parameters, "trace_id")
    run = parameters.get("run", "")
    found = (
      None
      if trace_id is None
      else content.retrieved_key(self._root, run, trace_id)
    )
    return JSONResponse({"key": found})

  def _row(self, key: str) -> Row:
    run, _, start = key.rpartition("@")
    row = self._index.row(run, int(start)) if start.isdecimal() else None
    if row is None:
      raise _gone(key)
    return row


class _Follower:
  """A thread that reads the logs on, while it is entered.

  Attributes:
    trouble: why it has stopped reading; "" while all is well.
  """

  def __init__(self, index: TrajectoryIndex):
    self._index = index
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._follow, daemon=True)
    self.trouble = ""

  def __enter__(self) -> _Follower:
    self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._end.set()
    self._thread.join()

  def _follow(self) -> None:
    while not self._end.is_set():
      try:
        done = self._index.refresh(seconds=_TURN_S)
        self.trouble = ""
      except (OSError, sqlite3.Error, InputError) as error:
        # A full disk, or a log that went while it was read.
        _log.warning("The logs cannot be read on: %s", error)
        self.trouble, done = f"The logs cannot be read on: {error}", True
      if done:
        self._end.wait(_WAIT_S)


class _WithHeaders:
  """Adds the headers that keep the page on this machine to every answer."""

  def __init__(self, app: ASGIApp):
    self._app = app

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async def with_headers(message: Message) -> None:
      if message["type"] == "http.response.start":
        message["headers"] = [
          *message.get("headers", []),
          *((n.encode(), v.encode()) for n, v in _HEADERS.items()),
        ]
      await send(message)

    await self._app(scope, receive, with_headers)


def _filters(parameters: Mapping[str, str]) -> Filters:
  """Filters of a request.

  Raises:
    InputError: a number or a truth value is none.
  """
  values: dict[str, Any] = {n: parameters.get(n) or None for n in _TEXTS}
  values["text"] = parameters.get("text", "").strip()
  values |= {name: _number(parameters, name) for name in _NUMBERS}
  for name in _TRUTHS:
    value = parameters.get(name, "")
    if value not in ("", "0", "1"):
      raise InputError(f"{name} must be 0 or 1, got {value!a:.60}")
    values[name] = value == "1" if value else None
  return Filters(**values)


def _number(parameters: Mapping[str, str], name: str) -> int | None:
  value = parameters.get(name, "")
  if not value:
    return None
  if not (value.isascii() and value.isdecimal() and len(value) < 19):
    raise InputError(f"{name} must be a whole number, got {value!a:.60}")
  return int(value)


def _gone(key: str) -> InputError:
  return InputError(
    f"there is no trajectory {key!a:.200}: its log was cut or deleted since "
    "the link was made, or is not indexed yet."
  )


def _refused(request: Request, error: Exception) -> Response:
  return JSONResponse({"error": str(error)}, 400)
