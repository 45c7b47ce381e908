"""Connections to addresses that an agent chose: to the public web alone.

An agent, or a page that it reads, may name a service of the machine's own
network: a loopback address, the metadata of a cloud. Each host is resolved
here, once, and only a public address of it is connected to.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore2
import httpx2

from rapo_jax.tools.base import ToolStatus, shorten
from rapo_jax.tools.web_service import NoResult

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Public by its number, and a cloud's own service (Azure).
_CLOUD = ipaddress.ip_address("168.63.129.16")
_ERRORS: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (
  (httpcore2.ConnectTimeout, httpx2.ConnectTimeout),
  (httpcore2.ReadTimeout, httpx2.ReadTimeout),
  (httpcore2.WriteTimeout, httpx2.WriteTimeout),
  (httpcore2.PoolTimeout, httpx2.PoolTimeout),
  (httpcore2.ConnectError, httpx2.ConnectError),
  (httpcore2.ReadError, httpx2.ReadError),
  (httpcore2.WriteError, httpx2.WriteError),
  (httpcore2.LocalProtocolError, httpx2.LocalProtocolError),
  (httpcore2.RemoteProtocolError, httpx2.RemoteProtocolError),
)


def is_public(address: str) -> bool:
  """Whether an IP address is one of the public web.

  Addresses of IPv4 within one of IPv6 count themselves.
  """
  ip = ipaddress.ip_address(address.partition("%")[0])
  if isinstance(ip, ipaddress.IPv6Address):
    inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
    if ip in _NAT64:
      inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if inner and not is_public(str(inner)):
      return False
    if ip.ipv4_mapped:
      return True
  return ip.is_global and not ip.is_multicast and ip != _CLOUD


class PublicTransport(httpx2.BaseTransport):
  """Connects to public addresses, and ends each request at its deadline.

  The timeout of a request bounds all of it, also where the server sends a byte
  now and then.

  Args:
    allow_private: whether it connects to any address.
  """

  def __init__(self, *, allow_private: bool = False):
    self._resolver = _Resolver(allow_private)
    self._ssl = httpx2.create_ssl_context()

  def handle_request(self, request: httpx2.Request) -> httpx2.Response:
    """Makes one request on a connection of its own.

    Raises:
      httpx2.TransportError: the server is not reached.
      NoResult: its address is not public, or there is no such host.
    """
    timeouts = request.extensions.get("timeout", {})
    deadline = time.monotonic() + (timeouts.get("read") or 0.0)
    pool = httpcore2.ConnectionPool(
      ssl_context=self._ssl,
      max_connections=1,
      network_backend=_Backend(deadline, self._resolver),
    )
    url = httpcore2.URL(
      scheme=request.url.raw_scheme,
      host=request.url.raw_host,
      port=request.url.port,
      target=request.url.raw_path,
    )
    made = httpcore2.Request(
      request.method,
      url,
      headers=request.headers.raw,
      content=request.stream,
      extensions=request.extensions,
    )
    try:
      with _translated():
        response = pool.handle_request(made)
    except BaseException:
      pool.close()
      raise
    return httpx2.Response(
      response.status,
      headers=response.headers,
      stream=_Body(response, pool),
      extensions=response.extensions,
    )


class _Body(httpx2.SyncByteStream):
  """The body of a response, which ends its connection."""

  def __init__(
    self, response: httpcore2.Response, pool: httpcore2.ConnectionPool
  ):
    self._response = response
    self._pool = pool

  def __iter__(self) -> Iterator[bytes]:
    with _translated():
      yield from self._response.iter_stream()

  def close(self) -> None:
    self._response.close()
    self._pool.close()


class _Resolver:
  """Finds the addresses of hosts that may be connected to.

  Where there is no network, some systems say of every name that there is none.
  So a name counts as an agent's mistake once another one has been found.
  """

  def __init__(self, allow_private: bool):
    self._allow_private = allow_private
    self._works = False

  def addresses(self, host: str, port: int) -> list[str]:
    """Addresses of a host.

    Raises:
      httpcore2.ConnectError: it cannot be resolved now.
      NoResult: there is none that may be connected to.
    """
    try:
      found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
      unknown = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", -5))
      if error.errno in unknown and self._works:
        raise NoResult(
          f"There is no host {shorten(host)!r}.", ToolStatus.ERROR
        ) from error
      raise httpcore2.ConnectError(str(error)) from error
    except (OSError, UnicodeError) as error:
      raise NoResult(
        f"{shorten(host)!r} is no name of a host.", ToolStatus.ERROR
      ) from error
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    if not self._allow_private:
      addresses = [a for a in addresses if is_public(a)]
    if not addresses:
      raise NoResult(
        f"{shorten(host)!r} is no host of the public web.", ToolStatus.ERROR
      )
    self._works = self._works or host not in addresses
    return addresses


class _Backend(httpcore2.NetworkBackend):
  """Opens connections that end at a deadline."""

  def __init__(self, deadline: float, resolver: _Resolver):
    self._deadline = deadline
    self._resolver = resolver
    self._tcp = httpcore2.SyncBackend()

  def connect_tcp(
    self,
    host: str,
    port: int,
    timeout: float | None = None,
    local_address: str | None = None,
    socket_options: Iterable[Any] | None = None,
  ) -> httpcore2.NetworkStream:
    failure: Exception | None = None
    for address in self._resolver.addresses(host, port):
      try:
        stream = self._tcp.connect_tcp(
          address,
          port,
          timeout=_left_s(self._deadline, httpcore2.ConnectTimeout),
          local_address=local_address,
          socket_options=socket_options,
        )
      except httpcore2.ConnectError as error:
        failure = error
        continue
      return _Stream(stream, self._deadline)
    assert failure is not None
    raise failure


class _Stream(httpcore2.NetworkStream):
  """A connection whose reads and writes end at a deadline."""

  def __init__(self, stream: httpcore2.NetworkStream, deadline: float):
    self._stream = stream
    self._deadline = deadline

  def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
    left = _left_s(self._deadline, httpcore2.ReadTimeout)
    return self._stream.read(max_bytes, left)

  def write(self, buffer: bytes, timeout: float | None = None) -> None:
    self._stream.write(buffer, _left_s(self._deadline, httpcore2.WriteTimeout))

  def close(self) -> None:
    self._stream.close()

  def start_tls(
    self,
    ssl_context: ssl.SSLContext,
    server_hostname: str | None = None,
    timeout: float | None = None,
  ) -> httpcore2.NetworkStream:
    left = _left_s(self._deadline, httpcore2.ConnectTimeout)
    secured = self._stream.start_tls(ssl_context, server_hostname, left)
    return _Stream(secured, self._deadline)

  def get_extra_info(self, info: str) -> Any:
    return self._stream.get_extra_info(info)


def _left_s(deadline: float, late: type[Exception]) -> float:
  """Seconds that are left.

  Raises:
    late: there are none.
  """
  left = deadline - time.monotonic()
  if left <= 0:
    raise late("the answer did not end in time")
  return left


@contextlib.contextmanager
def _translated() -> Iterator[None]:
  """Errors of a connection as the client knows them."""
  try:
    yield
  except tuple(ours for ours, _ in _ERRORS) as error:
    theirs = next(theirs for ours, theirs in _ERRORS if isinstance(error, ours))
    raise theirs(str(error)) from error
