"""Slow, silent and many connections, over loopback."""

import contextlib
import json
import socket
import threading
import time

import httpx2
import pytest

from rapo_jax.retrieval.serving import server
from rapo_jax.retrieval.serving.config import ServerConfig
from tests.retrieval import loopback

HEAD = b"POST /retrieve HTTP/1.1\r\nhost: x\r\n"
BODY = b'{"queries": ["q"]}'
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture
def open_server():
  with contextlib.ExitStack() as stack:

    def start(source=None, **config):
      limits = ServerConfig(max_wait_s=0.0, **config)
      app = server.make_app(
        source or loopback.FakeSource(), None, config=limits
      )
      url = stack.enter_context(loopback.serving(app, limits))
      port = int(url.rpartition(":")[2])

      def connect(data=b""):
        peer = stack.enter_context(
          socket.create_connection(("127.0.0.1", port), timeout=20)
        )
        peer.sendall(data)
        return peer

      return url, connect

    yield start


def received(peer):
  """All that comes until the other side ends the connection."""
  parts = []
  with contextlib.suppress(ConnectionResetError):
    while part := peer.recv(65_536):
      parts.append(part)
  return b"".join(parts)


def is_open(peer):
  peer.setblocking(False)
  try:
    return peer.recv(1, socket.MSG_PEEK) != b""
  except BlockingIOError:
    return True
  except ConnectionResetError:
    return False
  finally:
    peer.settimeout(20)


@pytest.mark.parametrize("data", [b"", b"P", HEAD])
def test_a_head_that_does_not_come(open_server, data):
  _, connect = open_server(header_timeout_s=0.2)
  answer = received(connect(data))
  head, _, body = answer.partition(b"\r\n\r\n")
  assert head.startswith(b"HTTP/1.1 408 ")
  assert "within 0.2 s" in json.loads(body)["error"]


def test_a_head_that_comes_byte_by_byte(open_server):
  _, connect = open_server(header_timeout_s=0.3)
  peer = connect()
  began = time.monotonic()
  with contextlib.suppress(OSError):
    for i in range(200):
      peer.sendall(HEAD[i % len(HEAD) : i % len(HEAD) + 1])
      time.sleep(0.02)
      if not is_open(peer) or b"408" in peer.recv(20, socket.MSG_PEEK):
        break
  assert time.monotonic() - began < 2


def test_the_second_head_of_a_connection_has_a_deadline_too(open_server):
  _, connect = open_server(header_timeout_s=0.2)
  peer = connect(WHOLE)
  assert b" 200 " in peer.recv(65_536)
  time.sleep(0.4)
  assert is_open(peer)  # It keeps a connection on which nothing has begun.
  peer.sendall(HEAD)
  assert b" 408 " in received(peer)


def test_an_answer_may_take_longer_than_a_head(open_server):
  source = loopback.FakeSource(delay_s=0.6)
  _, connect = open_server(source, header_timeout_s=0.2)
  assert b" 200 " in connect(WHOLE).recv(65_536)


@pytest.mark.parametrize(
  "data", [b"", HEAD, HEAD + b"content-length: 9\r\n\r\n"]
)
def test_silent_connections_make_room(open_server, data):
  url, connect = open_server(max_connections=8)
  silent = [connect(data) for _ in range(8)]
  time.sleep(0.1)
  others = [connect(data) for _ in range(40)]
  with httpx2.Client(timeout=20, trust_env=False) as client:
    response = client.post(url + "/retrieve", content=BODY)
  assert response.status_code == 200
  # Those that were silent for longest are gone.
  assert not any(is_open(peer) for peer in silent)
  assert sum(is_open(peer) for peer in others) <= 8


def test_who_waits_for_an_answer_stays(open_server):
  source = loopback.FakeSource(delay_s=1.0)
  _, connect = open_server(source, max_connections=2, max_batch=2)
  waiting = [connect(WHOLE) for _ in range(2)]
  while not source.batches:
    time.sleep(0.01)
  time.sleep(0.2)
  refused = received(connect(WHOLE))
  assert refused.startswith(b"HTTP/1.1 503 ")
  assert b"retry-after: 1\r\n" in refused
  assert all(b" 200 " in peer.recv(65_536) for peer in waiting)


def test_a_client_that_reads_nothing_stops_no_other(open_server):
  url, connect = open_server(max_connections=4)
  many = json.dumps({"queries": ["x" * 9_000] * 400}).encode()
  head = HEAD + b"content-length: %d\r\n\r\n" % len(many)
  threads = [
    threading.Thread(target=connect, args=(head + many,)) for _ in range(3)
  ]
  for thread in threads:
    thread.start()
  with httpx2.Client(timeout=20, trust_env=False) as client:
    for _ in range(5):
      assert client.post(url + "/retrieve", content=BODY).status_code == 200
  for thread in threads:
    thread.join()


@pytest.fixture
def unread():
  """A request whose answer no socket's buffer holds, and twice of it."""
  many = json.dumps({"queries": ["x" * 60_000] * 5, "topk": 20}).encode()
  length = b"content-length: %d\r\n" % len(many)
  return {
    "kept": HEAD + length + b"\r\n" + many,
    "ended": HEAD + length + b"connection: close\r\n\r\n" + many,
    "pipelined": 2 * (HEAD + length + b"\r\n" + many),
  }


@pytest.mark.parametrize("kind", ["kept", "ended", "pipelined"])
def test_who_reads_no_answer_makes_room(open_server, unread, kind):
  _, connect = open_server(max_connections=3)
  silent = [connect(unread[kind]) for _ in range(3)]
  assert len(silent) == 3
  time.sleep(1.0)
  for _ in range(6):
    assert b" 200 " in connect(WHOLE).recv(65_536)


@pytest.mark.parametrize("kind", ["kept", "ended", "pipelined"])
def test_an_answer_that_is_not_read_has_a_deadline(open_server, unread, kind):
  source = loopback.FakeSource()
  _, connect = open_server(source, timeout_s=1.0)
  peer = connect(unread[kind])
  time.sleep(2.5)
  assert source.batches
  assert len(received(peer)) < 20 * 5 * 2 * 60_000


@pytest.mark.parametrize(
  "data",
  [
    b"no HTTP at all\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"x" * 20_000,
    b"GET /" + b"x" * 20_000,
    HEAD + b"content-length: -1\r\n\r\n",
    HEAD + b"content-length: x\r\n\r\n",
  ],
)
def test_what_is_no_request_is_answered_in_json(open_server, data):
  _, connect = open_server()
  head, _, body = received(connect(data)).partition(b"\r\n\r\n")
  assert head.startswith(b"HTTP/1.1 400 ")
  assert "must be HTTP/1.1" in json.loads(body)["error"]
