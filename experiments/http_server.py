"""How a command of this package serves an application over HTTP."""

from __future__ import annotations

import logging
import signal
import socket
from typing import Any

import uvicorn

from rapo_jax.errors import InputError

_BACKLOG = 4096


def listen(host: str, port: int) -> socket.socket:
  """Opens a port.

  Args:
    host: name or address to listen at.
    port: its number; 0 for any that is free.

  Raises:
    InputError: it is taken, or there is no such host or port.
  """
  try:
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
  # A port beyond 65,535 is an OverflowError.
  except (OSError, OverflowError) as error:
    raise InputError(
      f"cannot listen at {host}, port {port} ({error}): choose another"
      " --host or --port; --port=0 takes any that is free."
    ) from error


def serve(app: Any, listener: socket.socket, **options: Any) -> None:
  """Serves until a signal comes, and what has been asked by then.

  Args:
    app: an ASGI application.
    listener: from `listen`.
    **options: further ones of `uvicorn.Config`.
  """
  logging.basicConfig(level=logging.WARNING)
  server = uvicorn.Server(
    uvicorn.Config(
      app,
      # Its own would close the handlers of others.
      log_config=None,
      log_level="warning",
      access_log=False,
      lifespan="on",
      ws="none",
      **options,
    )
  )
  # Uvicorn ends on these, and then raises them again.
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
  server.run(sockets=[listener])
