"""TCP between the host that leads and the others, with deadlines.

The leader sends in order; each host reads in a thread of its own, so that a
message is heard at any time. Every host says a few times a minute that it
lives. One whose connection ends, or that is silent for too long, is lost: the
others are told its name, and end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import pathlib
import queue
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rapo_jax.errors import InputError

JOIN_S = 90.0
"""Seconds in which all hosts have to be there."""
SILENCE_S = 45.0
"""Seconds after which a host that says nothing is lost."""
_PING_S = 3.0
_LATE_S = 3 * _PING_S
_SEE_S = 40.0  # Network file systems show a new file late.
_RETRY_S = 0.2
_FRAME = struct.Struct(">BI")
_TEXT, _BYTES, _PING = 0, 1, 2
_NONCE = re.compile(r"[0-9a-f]{32}")
_TOKEN_PREFIX = ".hosts-"


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a host stands among those of one run.

  Attributes:
    address: host and port on which the leader listens.
    count: number of hosts.
    index: of this one; 0 leads.
  """

  address: tuple[str, int]
  count: int
  index: int


@dataclasses.dataclass(frozen=True)
class Lost:
  """A host that is gone, and how that was noticed."""

  index: int
  name: str
  reason: str


class Connection:
  """One end of a connection: messages in order, and signs of life.

  Args:
    stream: the socket; owned.
    index: of the host at the other end.
    name: of that host.
    heard: called in another thread with each message, text or bytes.
    lost: called once, in another thread, when the other end is gone.
  """

  def __init__(
    self,
    stream: socket.socket,
    index: int,
    name: str,
    heard: Callable[[int, Any], None],
    lost: Callable[[Lost], None],
  ):
    self.index = index
    self.name = name
    self._stream = stream
    self._heard = heard
    self._lost = lost
    self._lock = threading.Lock()
    self._over = threading.Event()
    self._last = time.monotonic()
    for target in (self._read, self._live):
      threading.Thread(target=target, daemon=True, name="hosts").start()

  @property
  def silent_s(self) -> float:
    """Seconds since the other end was heard."""
    return time.monotonic() - self._last

  def send(self, message: Mapping[str, Any] | bytes) -> None:
    """Sends JSON or bytes; a connection that is gone is noticed elsewhere."""
    if isinstance(message, bytes):
      self._send(_BYTES, message)
    else:
      self._send(_TEXT, json.dumps(message).encode())

  def close(self) -> None:
    """Ends the connection, which is then no loss."""
    self._over.set()
    with contextlib.suppress(OSError):
      self._stream.shutdown(socket.SHUT_RDWR)
    self._stream.close()

  def _send(self, kind: int, content: bytes) -> None:
    with self._lock, contextlib.suppress(OSError):
      self._stream.sendall(_FRAME.pack(kind, len(content)) + content)

  def _read(self) -> None:
    try:
      while True:
        kind, content = _receive(self._stream)
        self._last = time.monotonic()
        if kind == _BYTES:
          self._heard(self.index, content)
        elif kind == _TEXT:
          self._heard(self.index, json.loads(content))
    except (OSError, EOFError, ValueError):
      self._lose("its connection has ended")

  def _live(self) -> None:
    while not self._over.wait(_PING_S):
      self._send(_PING, b"")
      if self.silent_s > SILENCE_S:
        self._lose(f"it has said nothing for {self.silent_s:.0f} s")

  def _lose(self, reason: str) -> None:
    if not self._over.is_set():
      self._over.set()
      self._lost(Lost(self.index, self.name, reason))


class Link:
  """The connections of this host: to all others if it leads, else to that one.

  Args:
    place: of this host.
    urgent: called in another thread with a host's index and what it said;
      returns whether that is dealt with, and is no message to be received.
    lost: called in another thread when a host is gone.

  Attributes:
    place: of this host.
    messages: what was heard, in order, as pairs of a host's index and what it
      said.
  """

  def __init__(
    self,
    place: Place,
    urgent: Callable[[int, Any], bool],
    lost: Callable[[Lost], None],
  ):
    self.place = place
    self.messages: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    self._urgent = urgent
    self._lost = lost
    self._connections: dict[int, Connection] = {}

  @property
  def leads(self) -> bool:
    """Whether this host leads."""
    return self.place.index == 0

  @property
  def is_silent(self) -> bool:
    """Whether another host should have been heard by now, and was not."""
    return any(
      one.silent_s > _LATE_S for one in list(self._connections.values())
    )

  @property
  def is_connected(self) -> bool:
    """Whether there is a host at the other end."""
    return bool(self._connections)

  def name(self, index: int) -> str:
    """What a message calls a host."""
    if index == self.place.index:
      return f"host {index} ({socket.gethostname()})"
    connection = self._connections.get(index)
    return f"host {index}" + (f" ({connection.name})" if connection else "")

  def send(self, message: Mapping[str, Any] | bytes) -> None:
    """Sends to the leader, or from the leader to all others."""
    for connection in list(self._connections.values()):
      connection.send(message)

  def send_to(self, index: int, message: Mapping[str, Any] | bytes) -> None:
    """Sends from the leader to one other host."""
    self._connections[index].send(message)

  def receive(self) -> tuple[int, Any]:
    """Waits for the next message: a host's index, and what it said."""
    return self.messages.get()

  def close(self) -> None:
    """Ends all connections."""
    for connection in self._connections.values():
      connection.close()

  def add(self, stream: socket.socket, index: int, name: str) -> None:
    """Takes a socket to a host that has said who it is."""
    stream.settimeout(None)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._connections[index] = Connection(
      stream, index, name, self._heard, self._lost
    )

  def _heard(self, index: int, message: Any) -> None:
    if not self._urgent(index, message):
      self.messages.put((index, message))


def join(
  link: Link, folder: pathlib.Path, *, timeout_s: float | None = None
) -> None:
  """Connects the hosts of a run; returns once all are there.

  The leader writes a secret into the folder, which the others show that they
  have read: so no stranger joins, and the folder is known to be shared.

  Args:
    link: of this host; gets the connections.
    folder: the work folder; the leader's has to exist.
    timeout_s: how long to wait for the others; None for `JOIN_S`.

  Raises:
    InputError: a host is not there in time, or does not see the folder.
  """
  until = time.monotonic() + (JOIN_S if timeout_s is None else timeout_s)
  if link.leads:
    _gather(link, folder, until)
  else:
    _connect(link, folder, until)


def _gather(link: Link, folder: pathlib.Path, until: float) -> None:
  """The leader's side of `join`."""
  place = link.place
  nonce, secret = secrets.token_hex(16), secrets.token_hex(32)
  token = folder / f"{_TOKEN_PREFIX}{nonce}"
  token.touch(mode=0o600)
  token.write_text(secret, encoding="utf-8")
  missing = set(range(1, place.count))
  try:
    with _listen(place.address) as server:
      while missing:
        left = until - time.monotonic()
        index = _welcome(server, link, nonce, secret, left) if left > 0 else 0
        if index == 0:
          break
        missing.discard(index)
  finally:
    token.unlink(missing_ok=True)
  if missing:
    named = ", ".join(f"host {i}" for i in sorted(missing))
    raise InputError(
      f"all {place.count} hosts must join within {JOIN_S:.0f} s, and these "
      f"have not: {named}. Start the same command on each; see docs/pods.md."
    )


def _listen(address: tuple[str, int]) -> socket.socket:
  """Listens on all interfaces of the leader."""
  try:
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
      ("", address[1]),
      family=socket.AF_INET6 if both else socket.AF_INET,
      dualstack_ipv6=both,
      backlog=512,
    )
  except OSError as error:
    raise InputError(
      f"host 0 must be able to listen on port {address[1]}, and is not "
      f"({error}): give another port with --coordinator."
    ) from error


def _welcome(
  server: socket.socket, link: Link, nonce: str, secret: str, left_s: float
) -> int:
  """Lets one host in: its index, -1 for a stranger, 0 when time is over."""
  server.settimeout(left_s)
  try:
    stream, _ = server.accept()
  except TimeoutError:
    return 0
  try:
    stream.settimeout(max(1.0, min(left_s, _SEE_S + 5)))
    _send_json(
      stream,
      {
        "nonce": nonce,
        "count": link.place.count,
        "name": socket.gethostname(),
      },
    )
    hello = _receive_json(stream)
    index, name = int(hello["index"]), str(hello["name"])[:100]
    answer = str(hello["answer"])
  except (OSError, EOFError, ValueError, KeyError, TypeError):
    stream.close()
    return -1
  if hmac.compare_digest(answer, _answer("", index)):
    stream.close()
    raise InputError(_unshared(f"host {index} ({name})"))
  known = hmac.compare_digest(answer, _answer(secret, index))
  if not (known and 0 < index < link.place.count):
    stream.close()
    return -1
  link.add(stream, index, name)
  return index


def _unshared(name: str) -> str:
  return (
    f"--workdir must lie on a file system that all hosts share, and {name} "
    "does not see what host 0 writes there: put it on one."
  )


def _connect(link: Link, folder: pathlib.Path, until: float) -> None:
  """The side of `join` of a host that does not lead."""
  place = link.place
  error: Exception = TimeoutError("nothing listens there")
  while time.monotonic() < until:
    try:
      stream = socket.create_connection(place.address, timeout=5.0)
      stream.settimeout(max(1.0, until - time.monotonic()))
      greeting = _receive_json(stream)
    except (OSError, EOFError, ValueError) as refused:
      error = refused
      time.sleep(_RETRY_S)
      continue
    _check_count(place, greeting)
    secret = _seen_secret(folder, str(greeting["nonce"]), until)
    name = socket.gethostname()
    answer = _answer(secret or "", place.index)
    _send_json(stream, {"index": place.index, "name": name, "answer": answer})
    if secret is None:
      raise InputError(_unshared(f"host {place.index} ({name})"))
    link.add(stream, 0, str(greeting["name"])[:100])
    return
  raise InputError(
    f"host 0 must answer at {place.address[0]}:{place.address[1]} within "
    f"{JOIN_S:.0f} s, and does not ({error}): start it, and check the address "
    "and the firewall."
  )


def _check_count(place: Place, greeting: Mapping[str, Any]) -> None:
  if greeting["count"] != place.count or place.index >= place.count:
    raise InputError(
      "all hosts must be started with one --num_processes, host 0 has "
      f"{greeting['count']}, host {place.index} has {place.count}: correct it."
    )


def await_file(path: pathlib.Path) -> None:
  """Waits on another host until it sees what the leader has written.

  Network file systems show a new file late.

  Args:
    path: of a file on a file system that all hosts share.
  """
  until = time.monotonic() + _SEE_S
  while not path.exists() and time.monotonic() < until:
    time.sleep(_RETRY_S)


def _seen_secret(folder: pathlib.Path, nonce: str, until: float) -> str | None:
  """What the leader wrote; None if it is not to be seen in time."""
  if not _NONCE.fullmatch(nonce):
    return None
  path = folder / f"{_TOKEN_PREFIX}{nonce}"
  until = min(until, time.monotonic() + _SEE_S)
  while True:
    with contextlib.suppress(OSError):
      text = path.read_text(encoding="utf-8")
      if text:
        return text
    if time.monotonic() > until:
      return None
    time.sleep(_RETRY_S)


def _answer(secret: str, index: int) -> str:
  return hmac.new(
    secret.encode(), str(index).encode(), hashlib.sha256
  ).hexdigest()


def _send_json(stream: socket.socket, value: Mapping[str, Any]) -> None:
  content = json.dumps(value).encode()
  stream.sendall(_FRAME.pack(_TEXT, len(content)) + content)


def _receive_json(stream: socket.socket) -> dict[str, Any]:
  kind, content = _receive(stream, most=1 << 16)
  value = json.loads(content)
  if kind != _TEXT or not isinstance(value, dict):
    raise ValueError("not an object")
  return value


def _receive(
  stream: socket.socket, *, most: int | None = None
) -> tuple[int, bytes]:
  """One message; EOFError at the end of the stream."""
  kind, size = _FRAME.unpack(b"".join(_pieces(stream, _FRAME.size)))
  if most is not None and size > most:
    raise ValueError(f"a greeting of {size} bytes")
  return kind, b"".join(_pieces(stream, size))


def _pieces(stream: socket.socket, size: int) -> Iterator[bytes]:
  while size:
    piece = stream.recv(min(size, 1 << 20))
    if not piece:
      raise EOFError
    size -= len(piece)
    yield piece
