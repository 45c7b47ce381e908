"""Processes that answer lines, for work that must be ended from outside.

Such work may take any time and memory, or bring its process down. The program
prints `ready`, then answers each line of its standard input by a line. It
imports nothing of this project, so that it starts fast.
"""

from __future__ import annotations

import os
import pathlib
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

_START_S = 60.0
_READ_BYTES = 2**16
# What an interpreter needs to start. Keys and passwords are none of it.
_KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")


class ServerLateError(Exception):
  """A process did not answer in time, or died."""


class ServersBusyError(Exception):
  """No process was idle in time."""


class ServerProcess:
  """One process; used by one thread at a time.

  Args:
    program: a Python file.
    environment: of which the process gets what an interpreter needs.
  """

  def __init__(
    self, program: pathlib.Path, environment: Mapping[str, str] = os.environ
  ):
    self._process = subprocess.Popen(
      [sys.executable, "-I", str(program)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env={name: environment[name] for name in _KEPT if name in environment},
      start_new_session=True,
    )
    self._ready = False

  def ask(self, line: bytes, timeout_s: float) -> bytes:
    """The answer to a line; both without their line ends.

    The time to start does not count.

    Raises:
      ServerLateError: the process did not answer, and is ended.
    """
    if not self._ready:
      self._line(_START_S)
      self._ready = True
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(line + b"\n")
      self._process.stdin.flush()
    except OSError as error:
      self.close()
      raise ServerLateError from error
    return self._line(timeout_s)

  def _line(self, seconds: float) -> bytes:
    assert self._process.stdout is not None
    file = self._process.stdout.fileno()
    until = time.monotonic() + seconds
    text = bytearray()
    while not text.endswith(b"\n"):
      left = until - time.monotonic()
      if left <= 0 or not select.select([file], [], [], left)[0]:
        break
      part = os.read(file, _READ_BYTES)
      if not part:
        break
      text += part
    else:
      return bytes(text).strip()
    self.close()
    raise ServerLateError

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()


class ServerPool:
  """Processes of one program, started when they are needed.

  Any thread may ask.

  Args:
    program: a Python file.
    size: most processes.
  """

  def __init__(self, program: pathlib.Path, size: int):
    self.size = size
    self._program = program
    self._idle: queue.LifoQueue[ServerProcess | None] = queue.LifoQueue()
    for _ in range(size):
      self._idle.put(None)
    self._lock = threading.Lock()
    self._closed = False

  def ask(
    self, line: bytes, timeout_s: float, *, wait_s: float | None = None
  ) -> bytes:
    """The answer of a process that is idle; waits until one is.

    Args:
      line: without its line end.
      timeout_s: for the answer.
      wait_s: for a process that is idle; None for as long as it takes.

    Raises:
      ServerLateError: it did not answer in time, or died, and is replaced.
      ServersBusyError: none was idle in time.
      RuntimeError: the pool is closed.
    """
    try:
      server = self._idle.get(timeout=wait_s)
    except queue.Empty as error:
      raise ServersBusyError from error
    try:
      with self._lock:
        if self._closed:
          raise RuntimeError("the processes are closed")
        server = server or ServerProcess(self._program)
      return server.ask(line, timeout_s)
    except ServerLateError:
      server = None
      raise
    finally:
      self._idle.put(server)

  def close(self) -> None:
    """Ends the processes, once they have answered."""
    with self._lock:
      self._closed = True
    for _ in range(self.size):
      server = self._idle.get()
      if server is not None:
        server.close()
    for _ in range(self.size):
      self._idle.put(None)
