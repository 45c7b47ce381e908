"""A server on this machine that plays a service of the web."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request that came."""

  method: str
  path: str
  headers: dict[str, str]
  body: bytes

  @property
  def fields(self) -> Any:
    return json.loads(self.body)


@dataclasses.dataclass(frozen=True)
class Reply:
  """What is answered; `drip_s` is the pause before each byte of the body."""

  body: bytes = b""
  status: int = 200
  headers: tuple[tuple[str, str], ...] = ()
  delay_s: float = 0.0
  drip_s: float = 0.0


def reply(value: Any, status: int = 200, **headers: str) -> Reply:
  """A reply in JSON."""
  return Reply(json.dumps(value).encode(), status, tuple(headers.items()))


@dataclasses.dataclass(frozen=True)
class Served:
  """Where the server is, and what came."""

  url: str
  asked: list[Asked]


@contextlib.contextmanager
def serving(answer: Callable[[Asked], Reply]) -> Iterator[Served]:
  """Runs a server that answers each request by a function."""
  asked: list[Asked] = []

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
      length = int(self.headers.get("Content-Length", 0))
      headers = {name.lower(): value for name, value in self.headers.items()}
      one = Asked(self.command, self.path, headers, self.rfile.read(length))
      asked.append(one)
      given = answer(one)
      time.sleep(given.delay_s)
      with contextlib.suppress(ConnectionError):
        self.send_response(given.status)
        for name, value in given.headers:
          self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(given.body)))
        self.end_headers()
        if not given.drip_s:
          self.wfile.write(given.body)
          return
        for byte in given.body:
          self.wfile.write(bytes((byte,)))
          time.sleep(given.drip_s)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
      """Says nothing."""

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield Served(f"http://127.0.0.1:{server.server_port}", asked)
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def scripted(*replies: Reply) -> Callable[[Asked], Reply]:
  """Answers in turn; the last one again and again."""
  left = list(replies)
  lock = threading.Lock()

  def answer(asked: Asked) -> Reply:
    del asked
    with lock:
      return left.pop(0) if len(left) > 1 else left[0]

  return answer
