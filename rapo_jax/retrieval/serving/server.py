"""Serves a Step-Trace Buffer over HTTP, by the protocol of Search-R1.

An ASGI application. The event loop reads and checks requests. One thread
searches them in batches (`batcher`). The response holds their documents. An
error is JSON with one field, `error`:

    400, 422  the request is malformed (`protocol.parse_request`)
    404, 405  another path or method
    408       its head (`connections`) or body did not come in time
    413       it is too large
    499       the client left first: nobody reads this, it is counted
    500       the encoder or the index failed; the next request may do better
    503       too much waits: Retry-After says when to come back
    504       no answer in time
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import (
  AsyncIterator,
  Callable,
  Hashable,
  Mapping,
  Sequence,
)
from typing import Any, Protocol, runtime_checkable

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rapo_jax.errors import InputError
from rapo_jax.retrieval import (
  Hit,
  Index,
  Miss,
  RetrievalConfig,
  StepTraceBuffer,
  choose_hit,
)
from rapo_jax.retrieval.serving import protocol
from rapo_jax.retrieval.serving.batcher import Batcher, OverloadedError
from rapo_jax.retrieval.serving.config import ServerConfig

_log = logging.getLogger(__name__)

_LATENCIES_KEPT = 4096
_COUNTED_CHARS = 2048
"""Characters of a query that its cost counts; an encoder reads no more."""
_CHARS_A_QUERY = 64
"""Cost of a query apart from its text, in characters."""
_LONG_BODY_BYTES = 2**18
"""Bodies above it are parsed in a thread; shorter ones take milliseconds."""
# Nobody reads it; it is counted, under the number that nginx gave it.
_CLIENT_GONE = 499


@runtime_checkable
class TraceSource(Protocol):
  """Finds step traces, as a `StepTraceBuffer` does."""

  @property
  def version(self) -> int:
    """Version of its content."""
    ...

  def neighbors(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    num_neighbors: int,
  ) -> list[list[Hit]]:
    """Finds the nearest traces of N histories; see `StepTraceBuffer`."""
    ...


class _Metrics:
  """Counts, and how long the last requests took."""

  def __init__(self) -> None:
    self._began = time.monotonic()
    self._responses: collections.Counter[int] = collections.Counter()
    self._queries = 0
    self._latencies: collections.deque[float] = collections.deque(
      maxlen=_LATENCIES_KEPT
    )

  def count(self, status: int, queries: int, seconds: float) -> None:
    self._responses[status] += 1
    if status == 200:
      self._queries += queries
      self._latencies.append(seconds)

  def to_json(self) -> dict[str, Any]:
    latencies = np.array(self._latencies)
    return {
      "uptime_s": round(time.monotonic() - self._began, 1),
      "responses": {str(s): n for s, n in sorted(self._responses.items())},
      "queries": self._queries,
      "latency_s": {
        f"p{p}": round(float(np.percentile(latencies, p)), 4)
        for p in (50, 95, 99)
        if len(latencies)
      },
    }


def buffer_app(buffer: StepTraceBuffer, config: ServerConfig) -> Starlette:
  """Makes the application of a buffer, for queries and for vectors.

  Args:
    buffer: what is served.
    config: limits and times.

  Returns:
    An ASGI application. It answers between the start and the end of its
    lifespan.
  """
  encoder = buffer.encoder

  def about() -> dict[str, Any]:
    return {
      "version": buffer.version,
      "num_traces": len(buffer),
      **_about_index(buffer.index, encoder.dimension),
      "encoder": {
        "id": encoder.encoder_id,
        "sha256": encoder.sha256,
        "max_tokens": encoder.max_tokens,
      },
    }

  return make_app(buffer, buffer.index, config=config, about=about)


def index_app(
  index: Index, config: ServerConfig, *, dimension: int
) -> Starlette:
  """Makes the application of an index alone, which answers vectors.

  Args:
    index: what is served.
    config: limits and times.
    dimension: of its vectors.
  """
  return make_app(
    None, index, config=config, about=lambda: _about_index(index, dimension)
  )


def _about_index(index: Index, dimension: int) -> dict[str, Any]:
  return {
    "num_keys": len(index),
    "dimension": dimension,
    "encoder": {"sha256": index.encoder_sha256},
    "index": dict(index.parameters),
  }


def make_app(
  source: TraceSource | None,
  index: Index | None,
  *,
  config: ServerConfig,
  about: Callable[[], Mapping[str, Any]] = dict,
) -> Starlette:
  """Makes an application of its parts.

  Args:
    source: answers queries; None where only vectors are answered.
    index: answers vectors; None where only queries are answered.
    config: limits and times.
    about: what is served, for `/healthz`.

  Returns:
    An ASGI application; see `buffer_app`.
  """
  return _App(source, index, config, about).starlette


class _App:
  def __init__(
    self,
    source: TraceSource | None,
    index: Index | None,
    config: ServerConfig,
    about: Callable[[], Mapping[str, Any]],
  ):
    self._search = _Search(source, index, config.retrieval)
    self._config = config
    self._about = about
    self._metrics = _Metrics()
    self._batcher: Batcher[protocol.RetrieveRequest, _Found]
    self.starlette = Starlette(
      routes=[
        Route(protocol.PATH, self._retrieve, methods=["POST"]),
        Route(protocol.HEALTH_PATH, self._health, methods=["GET"]),
        Route(protocol.METRICS_PATH, self._show_metrics, methods=["GET"]),
      ],
      lifespan=self._lifespan,
      exception_handlers={HTTPException: _wrong_place},
    )

  @contextlib.asynccontextmanager
  async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
    self._batcher = Batcher(
      self._search,
      max_batch=self._config.max_batch,
      max_wait_s=self._config.max_wait_s,
      max_queue=self._config.max_queue,
      max_batch_s=self._config.max_batch_s,
    )
    async with self._batcher:
      yield

  async def _retrieve(self, request: Request) -> Response:
    began = time.monotonic()
    num_queries = 0
    headers: dict[str, str] = {}
    try:
      body = await self._body(request)
      parsed = await self._parsed(body, request.query_params)
      num_queries = len(parsed)
      content = await self._answer(
        request, parsed, began + self._config.timeout_s - time.monotonic()
      )
      response = Response(content, media_type="application/json")
    except protocol.RefusedError as error:
      if error.status == 413:
        # The rest of the body is not read, so that no other request follows.
        headers["connection"] = "close"
      response = _error(error.status, str(error), headers)
    except OverloadedError as error:
      headers["retry-after"] = str(error.retry_after_s)
      response = _error(
        503, f"{error} Try again in {error.retry_after_s} s.", headers
      )
    except TimeoutError:
      response = _error(
        504,
        f"No answer within {self._config.timeout_s:g} s: send fewer requests at"
        " a time, or start the server with more time.",
      )
    except (RuntimeError, OSError) as error:
      _log.exception("A search failed.")
      response = _error(500, f"{type(error).__name__}: {error}")
    self._metrics.count(
      response.status_code, num_queries, time.monotonic() - began
    )
    return response

  async def _parsed(
    self, body: bytes, parameters: Mapping[str, str]
  ) -> protocol.RetrieveRequest:
    """Reads a request; a long one beside the event loop, not in its way."""
    parse = functools.partial(
      protocol.parse_request,
      body,
      parameters,
      limits=self._config.limits,
      defaults=self._config.defaults,
    )
    if len(body) <= _LONG_BODY_BYTES:
      return parse()
    return await asyncio.to_thread(parse)

  async def _answer(
    self,
    request: Request,
    parsed: protocol.RetrieveRequest,
    timeout_s: float,
  ) -> bytes:
    """Waits for the answer, as long as the client does.

    A client that gave up asks again, and what it left must not be in the way.
    """
    client = _client(request)
    self._batcher.check_room(max(len(parsed), 1), client[0])
    # In parts, between which others take their turn.
    parts = [
      asyncio.ensure_future(
        self._batcher.submit(
          part,
          size=max(len(part), 1),
          timeout_s=timeout_s,
          client=client,
          cost=_cost(part),
        )
      )
      for part in parsed.parts(self._config.part_queries)
    ]
    answer = asyncio.gather(*parts)
    # The body has been read: the next message is the end of the connection.
    gone = asyncio.ensure_future(request.receive())
    try:
      await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
      if not answer.done():
        raise protocol.RefusedError("The client is gone.", _CLIENT_GONE)
      found = answer.result()
      return protocol.answer_to_json(
        (result for part in found for result in part.results),
        found[-1].version,
      )
    finally:
      for waiting in (*parts, gone):
        waiting.cancel()

  async def _body(self, request: Request) -> bytes:
    """Reads the body, no further than it may reach."""
    most = self._config.limits.max_body_bytes
    too_large = protocol.RefusedError(
      f"The body of a request may have {most} bytes: send fewer or shorter"
      " queries at a time.",
      413,
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
      raise too_large
    body = bytearray()
    try:
      async with asyncio.timeout(self._config.timeout_s):
        async for chunk in request.stream():
          body += chunk
          if len(body) > most:
            raise too_large
    except TimeoutError as error:
      raise protocol.RefusedError(
        f"The body did not come within {self._config.timeout_s:g} s: send it"
        " faster.",
        408,
      ) from error
    except ClientDisconnect as error:
      raise protocol.RefusedError(
        "The client is gone.", _CLIENT_GONE
      ) from error
    return bytes(body)

  async def _health(self, request: Request) -> Response:
    limits = dataclasses.asdict(self._config.limits)
    return JSONResponse({"ready": True, **self._about(), "limits": limits})

  async def _show_metrics(self, request: Request) -> Response:
    return JSONResponse(
      {
        **self._metrics.to_json(),
        "queued": self._batcher.num_queued,
        "batches": self._batcher.num_batches,
      }
    )


def _error(
  status: int, message: str, headers: Mapping[str, str] | None = None
) -> Response:
  return JSONResponse({"error": message}, status, headers)


def _wrong_place(request: Request, error: Exception) -> Response:
  """What a path or a method gets that is not served."""
  assert isinstance(error, HTTPException)
  return _error(
    error.status_code,
    f"{request.method} {request.url.path!r:.80} is not served: send POST"
    f" {protocol.PATH}, GET {protocol.HEALTH_PATH} or GET"
    f" {protocol.METRICS_PATH}.",
    error.headers,
  )


def _client(request: Request) -> tuple[str, Hashable]:
  """The client of a request: its machine or the name it sends; its port.

  Trainers of one machine share its turn unless they name themselves.
  """
  host, port = request.client or ("", 0)
  name = request.headers.get(protocol.CLIENT_HEADER, "")
  return f"{host} {name}", port


def _cost(request: protocol.RetrieveRequest) -> float:
  """Cost of a search, in characters that the encoder reads."""
  lengths = (
    len(question) + sum(map(len, history))
    for question, history in zip(
      request.questions, request.histories, strict=True
    )
  )
  texts = sum(min(length, _COUNTED_CHARS) for length in lengths)
  return texts + _CHARS_A_QUERY * max(len(request), 1)


@dataclasses.dataclass(frozen=True)
class _Found:
  """What the queries of a part get, in JSON, and from which version."""

  results: Sequence[bytes]
  version: int | None


class _Search:
  """Answers the requests of a batch: one search for all that want as much."""

  def __init__(
    self,
    source: TraceSource | None,
    index: Index | None,
    retrieval: RetrievalConfig,
  ):
    self._source = source
    self._index = index
    self._retrieval = retrieval

  def __call__(
    self, requests: Sequence[protocol.RetrieveRequest]
  ) -> list[_Found | Exception]:
    # What a query gets must not depend on its batch. How many neighbours are
    # looked for may change which are found.
    groups: dict[object, list[int]] = collections.defaultdict(list)
    for number, request in enumerate(requests):
      vectors = request.vectors
      width = None if vectors is None else vectors.shape[1]
      groups[width, request.topk].append(number)
    answers: dict[int, _Found | Exception] = {}
    for members in groups.values():
      found = self._answer([requests[number] for number in members])
      answers.update(zip(members, found, strict=True))
    return [answers[number] for number in range(len(requests))]

  def _answer(
    self, requests: Sequence[protocol.RetrieveRequest]
  ) -> Sequence[_Found | Exception]:
    """Answers requests of one kind."""
    try:
      if requests[0].vectors is None:
        return self._find_traces(requests)
      return self._find_rows(requests)
    except (RuntimeError, ValueError, OSError) as error:
      if len(requests) > 1:
        # One may have spoilt it for the others.
        return [self._answer([request])[0] for request in requests]
      if isinstance(error, ValueError):
        return [protocol.RefusedError(str(error))]
      return [error]

  def _find_traces(
    self, requests: Sequence[protocol.RetrieveRequest]
  ) -> list[_Found]:
    if self._source is None:
      raise InputError(
        "This server answers vectors alone: send vectors in place of queries."
      )
    version = self._source.version
    hits = iter(
      self._source.neighbors(
        [question for request in requests for question in request.questions],
        [history for request in requests for history in request.histories],
        requests[0].topk,
      )
    )
    return [
      _Found(
        [
          protocol.result_to_json(
            protocol.hits_to_json(self._wanted(next(hits), request), request)
          )
          for _ in request.questions
        ],
        version,
      )
      for request in requests
    ]

  def _wanted(
    self, hits: list[Hit], request: protocol.RetrieveRequest
  ) -> list[Hit]:
    if request.mode == "list":
      return hits
    chosen = choose_hit(hits, self._retrieval)
    return [] if isinstance(chosen, Miss) else [chosen]

  def _find_rows(
    self, requests: Sequence[protocol.RetrieveRequest]
  ) -> list[_Found]:
    if self._index is None:
      raise InputError(
        "This server answers queries alone: send queries in place of vectors."
      )
    queries = [r.vectors for r in requests if r.vectors is not None]
    found = self._index.search(np.concatenate(queries), requests[0].topk)
    rows = iter(zip(found.ids.tolist(), found.scores.tolist(), strict=True))
    return [
      _Found(
        [
          protocol.result_to_json(
            protocol.neighbors_to_json(*next(rows), request)
          )
          for _ in range(len(request))
        ],
        None,
      )
      for request in requests
    ]
