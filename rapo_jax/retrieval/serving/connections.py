"""HTTP connections that cannot lock others out.

Uvicorn waits without end for the head of a request, and takes connections until
the process has no more files. Here the head has a deadline, and the number of
connections a limit. At the limit a connection that waits for no answer is
closed: the one silent for longest, of the machine that has most of them. A
client that does not read its answer waits for none either, and has a deadline.
"""

from __future__ import annotations

import asyncio
import collections
import json
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from rapo_jax.retrieval.serving.config import ServerConfig


def limited(config: ServerConfig) -> type[H11Protocol]:
  """Makes the class of a server's connections, uvicorn's setting `http`."""
  return type("Connection", (_Connection,), {"limits": config})


class _Connection(H11Protocol):
  """A connection with deadlines for the head of each request and its answer.

  Attributes:
    limits: `header_timeout_s`, `timeout_s` and `max_connections` are read.
  """

  limits: ClassVar[ServerConfig]
  _heard_at: float = 0.0
  _deadline: asyncio.TimerHandle | None = None
  _read_deadline: asyncio.TimerHandle | None = None

  def connection_made(self, transport: Any) -> None:
    super().connection_made(transport)
    self._heard_at = self.loop.time()
    self._start_deadline()
    if len(self.connections) > self.limits.max_connections:
      self._make_room()

  def connection_lost(self, exc: Exception | None) -> None:
    self._stop_deadline()
    self._stop_read_deadline()
    super().connection_lost(exc)

  def data_received(self, data: bytes) -> None:
    if self.transport.is_closing():
      return
    self._heard_at = self.loop.time()
    super().data_received(data)
    if self._has_request():
      self._stop_deadline()
    elif self._deadline is None and not self.transport.is_closing():
      self._start_deadline()

  def send_400_response(self, msg: str) -> None:
    self._refuse(
      "400 Bad Request",
      "The request must be HTTP/1.1 with a head of at most 16 KiB, and is not:"
      f" {msg}",
    )

  def on_response_complete(self) -> None:
    self._heard_at = self.loop.time()
    self._stop_read_deadline()
    if self.transport.get_write_buffer_size():
      self._read_deadline = self.loop.call_later(
        self.limits.timeout_s, self._on_read_deadline
      )
    super().on_response_complete()

  def resume_writing(self) -> None:
    super().resume_writing()
    self._stop_read_deadline()

  def _on_read_deadline(self) -> None:
    self._read_deadline = None
    # close() would wait for the client, who reads nothing.
    if self.transport.get_write_buffer_size():
      self.transport.abort()

  def _stop_read_deadline(self) -> None:
    if self._read_deadline is not None:
      self._read_deadline.cancel()
      self._read_deadline = None

  def _has_request(self) -> bool:
    """Whether the head of a request has come that is not answered yet."""
    return self.cycle is not None and not self.cycle.response_complete

  def _waits_for_answer(self) -> bool:
    """Whether all of a request has come, and its answer has not.

    Not while the client leaves an earlier answer unread.
    """
    return (
      self._has_request()
      and not self.cycle.more_body
      and not self.transport.get_write_buffer_size()
    )

  def _start_deadline(self) -> None:
    self._deadline = self.loop.call_later(
      self.limits.header_timeout_s, self._on_deadline
    )

  def _stop_deadline(self) -> None:
    if self._deadline is not None:
      self._deadline.cancel()
      self._deadline = None

  def _on_deadline(self) -> None:
    self._deadline = None
    if not self._has_request() and not self.transport.is_closing():
      self._refuse(
        "408 Request Timeout",
        "The head of a request must come within"
        f" {self.limits.header_timeout_s:g} s, and did not: send it faster.",
      )

  def _make_room(self) -> None:
    """Closes a connection that waits for no answer; itself if all others do."""
    idle = [
      connection
      for connection in self.connections
      if isinstance(connection, _Connection)
      and connection is not self
      and not connection._waits_for_answer()
    ]
    if not idle:
      self._refuse(
        "503 Service Unavailable",
        f"All {self.limits.max_connections} connections wait for answers. Try"
        " again in 1 s.",
        "retry-after: 1\r\n",
      )
      return
    number = collections.Counter(c.machine for c in idle)
    oldest = max(idle, key=lambda c: (number[c.machine], -c._heard_at))
    # Not close(), which waits until the other side has read everything.
    oldest.transport.abort()

  @property
  def machine(self) -> str:
    """Address of the other side."""
    return self.client[0] if self.client else ""

  def _refuse(self, status: str, message: str, headers: str = "") -> None:
    """Answers without the application, and ends the connection."""
    body = json.dumps({"error": message})
    head = (
      f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}"
      f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    self.transport.write((head + body).encode("ascii"))
    self.transport.close()
