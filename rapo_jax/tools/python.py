"""Runs the agent's Python programs behind a wall, in pre-forked processes."""

from __future__ import annotations

import codecs
import functools
import importlib.util
import json
import logging
import math
import os
import pathlib
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rapo_jax.errors import InputError
from rapo_jax.tools import python_server, python_wall
from rapo_jax.tools.base import ToolResult, ToolStatus

_SERVER = pathlib.Path(__file__).with_name("python_server.py")
# What a program may import beside the standard library, with what these need.
_PACKAGES = ("numpy", "mpmath", "sympy")
# A program that names one of them runs where they are loaded. A fork of that
# server costs several times as much.
_NAMES_PACKAGE = re.compile(rf"\b(?:{'|'.join(_PACKAGES)})\b")
# -S: no package is found by itself. Not -I, which would ignore the hash seed,
# and with it the order of a set would differ between servers.
_FLAGS = ("-S", "-s", "-P", "-B")
_ENVIRONMENT = {
  "PYTHONHASHSEED": "0",
  "PYTHONUTF8": "1",
  # Each thread's own arena of the C library would take 64 MiB of a program's
  # address space.
  "MALLOC_ARENA_MAX": "1",
}
# How long a server may take to start, and to tell of an end, on a busy machine.
_START_S = 60.0
_GRACE_S = 5.0
_FOLDER_BYTES = 16 * 2**20
_STDERR_BYTES = 64 * 2**10
_READ_BYTES = 2**16
NO_OUTPUT = "[no output]"
_ERROR_CHARACTERS = 2000
_CLOSED = "PythonTool is closed; make a new one"
_DECODER = codecs.getincrementaldecoder("utf-8")
_log = logging.getLogger(__name__)


class PythonWallError(RuntimeError):
  """Programs cannot be kept in on this machine."""


class _Limits(NamedTuple):
  """What a program may take; see `PythonTool`."""

  timeout_s: float
  memory_bytes: int
  max_output_bytes: int


class _ServerDied(Exception):
  """The server ended, or does not answer."""


class _ServerHung(_ServerDied):
  """The server did not end a program in time."""


class _Run(NamedTuple):
  """What became of a program.

  Attributes:
    status: its wait status; None if it was ended here.
    stdout: what it printed, up to the limit and a little more.
    stderr: the end of its standard error.
  """

  status: int | None
  stdout: bytes
  stderr: bytes


@functools.cache
def library_folders() -> list[str]:
  """Folders of the shared objects that the standard library can load."""
  found = subprocess.run(
    [sys.executable, *_FLAGS, str(_SERVER), "libraries"],
    env=_ENVIRONMENT,
    stdout=subprocess.PIPE,
    stdin=subprocess.DEVNULL,
    check=True,
  )
  return json.loads(found.stdout)


@functools.cache
def package_folders() -> list[str]:
  """Folders of the packages that programs may import, as far as installed."""
  found = []
  for name in _PACKAGES:
    spec = importlib.util.find_spec(name)
    for folder in (spec and spec.submodule_search_locations) or ():
      # Wheels keep the shared objects that they bring beside the package.
      beside = (folder, f"{folder}.libs")
      found += [path for path in beside if os.path.isdir(path)]
  return found


class _Server:
  """One server process, and one program at a time in it; used by one thread."""

  def __init__(self, limits: _Limits, *, wall: bool, packages: bool = False):
    self._limits = limits
    self.wall = wall
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings = python_server.Settings(
      control=theirs.fileno(),
      wall=wall,
      cpu_s=math.ceil(limits.timeout_s) + 1,
      memory_bytes=limits.memory_bytes,
      folder_bytes=_FOLDER_BYTES,
      libraries=library_folders() if wall else [],
      packages=package_folders(),
      preload=packages,
    )
    self._control = ours
    try:
      self._process = subprocess.Popen(
        [sys.executable, *_FLAGS, str(_SERVER), json.dumps(settings._asdict())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_ENVIRONMENT,
        bufsize=0,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
      )
    except OSError:
      ours.close()
      raise
    finally:
      theirs.close()
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    self._commands = self._process.stdin.fileno()
    self._events = self._process.stdout.fileno()
    self.ready = False

  @property
  def pid(self) -> int:
    return self._process.pid

  @property
  def alive(self) -> bool:
    return self._process.poll() is None

  def wait_until_ready(self) -> None:
    """Goes through the start with the server.

    Raises:
      PythonWallError: a layer of the wall cannot be built; says which.
      _ServerDied: it ended without a word.
    """
    deadline = time.monotonic() + _START_S
    while not self.ready:
      kind, *_ = self._event(deadline)
      if kind == python_server.NEW:
        try:
          python_wall.map_ids(self.pid)
        except OSError as error:
          raise PythonWallError(f"mapping of users: {error}") from error
        self._command(python_server.GO, python_server.NO_TOKEN)
      elif kind == python_server.READY:
        self.ready = True

  def run(self, program: bytes) -> _Run:
    """Runs one program, up to its deadline.

    Raises:
      _ServerDied: the server ended, or it lost the program.
      _ServerHung: it did not end the program in time.
    """
    deadline = time.monotonic() + self._limits.timeout_s
    # Nothing that a program can reach knows it.
    token = os.urandom(len(python_server.NO_TOKEN))
    ends = _Ends()
    try:
      self._command(python_server.GO, token)
      try:
        socket.send_fds(self._control, [b"p"], ends.theirs)
      except OSError as error:
        raise _ServerDied from error
      ends.close_theirs()
      program = python_server.SIZE.pack(len(program)) + program
      return self._watch(ends, memoryview(program), token, deadline)
    finally:
      ends.close()

  def _watch(
    self, ends: _Ends, program: memoryview, token: bytes, deadline: float
  ) -> _Run:
    """Feeds a program, reads its output and waits for its end."""
    poll = select.poll()
    poll.register(self._events, select.POLLIN)
    poll.register(ends.stdout, select.POLLIN)
    poll.register(ends.stderr, select.POLLIN)
    poll.register(ends.program, select.POLLOUT)
    stdout, stderr = bytearray(), bytearray()
    status: int | None = None
    ended = killed = False
    most = self._limits.max_output_bytes + len(python_server.FRESH_LINE)
    while not ended:
      left_s = deadline - time.monotonic()
      if not killed and (left_s <= 0 or len(stdout) > most):
        self._command(python_server.KILL, token)
        killed, deadline = True, time.monotonic() + _GRACE_S
        continue
      if left_s <= 0:
        raise _ServerHung
      for fd, _ in poll.poll(left_s * 1000 + 1):
        if fd == self._events:
          status = self._end_of(token, deadline)
          ended = True
        elif fd == ends.program:
          program = ends.feed(program)
          if not program:
            poll.unregister(fd)
            ends.close_program()
        elif not _take(fd, stdout if fd == ends.stdout else stderr):
          poll.unregister(fd)
        del stderr[:-_STDERR_BYTES]
    # It has ended: nobody writes any more.
    while _take(ends.stdout, stdout) and not killed:
      pass
    while _take(ends.stderr, stderr) and not killed:
      pass
    if not ends.started(stderr):
      # The program may still lie in the socket, where the next call's process
      # would take it.
      raise _ServerHung if killed else _ServerDied
    return _Run(None if killed else status, bytes(stdout), bytes(stderr))

  def _end_of(self, token: bytes, deadline: float) -> int:
    """Wait status of the program that runs.

    Raises:
      _ServerDied: the event is of something else.
    """
    kind, there, status, _ = self._event(deadline)
    if kind != python_server.DONE or there != token:
      raise _ServerDied
    return status

  def _command(self, kind: int, token: bytes) -> None:
    try:
      os.write(self._commands, python_server.COMMAND.pack(kind, token))
    except OSError as error:
      raise _ServerDied from error

  def _event(self, deadline: float) -> tuple[int, bytes, int, bytes]:
    """The next event.

    Raises:
      PythonWallError: it is that a layer could not be built.
      _ServerDied: the server has ended, or says nothing until the deadline.
    """
    header = self._read(python_server.EVENT.size, deadline)
    kind, token, status, size = python_server.EVENT.unpack(header)
    text = self._read(size, deadline)
    if kind == python_server.FAILED:
      raise PythonWallError(text.decode("utf-8", "replace"))
    return kind, token, status, text

  def _read(self, size: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(self._events, select.POLLIN)
    data = b""
    while len(data) < size:
      left_s = deadline - time.monotonic()
      if left_s <= 0 or not poll.poll(left_s * 1000):
        raise _ServerDied
      part = os.read(self._events, size - len(data))
      if not part:
        raise _ServerDied
      data += part
    return data

  def close(self, wait_s: float = 1.0) -> None:
    """Ends the server and whatever it runs."""
    self._control.close()
    for pipe in (self._process.stdin, self._process.stdout):
      assert pipe is not None
      pipe.close()
    try:
      self._process.wait(wait_s)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


class _Ends:
  """The pipes of one call: ends that the program gets, and ends kept here."""

  def __init__(self) -> None:
    self._open: set[int] = set()
    try:
      theirs_in, self.program = self._pipe()
      self.stdout, theirs_out = self._pipe()
      self.stderr, theirs_err = self._pipe()
    except OSError:
      self.close()  # This process has no descriptors left.
      raise
    for fd in (self.program, self.stdout, self.stderr):
      os.set_blocking(fd, False)
    self.theirs = [theirs_in, theirs_out, theirs_err]

  def _pipe(self) -> tuple[int, int]:
    pipe = os.pipe()
    self._open.update(pipe)
    return pipe

  def close_theirs(self) -> None:
    for fd in self.theirs:
      self._close(fd)

  def close_program(self) -> None:
    self._close(self.program)

  def close(self) -> None:
    for fd in list(self._open):
      self._close(fd)

  def _close(self, fd: int) -> None:
    if fd in self._open:
      self._open.remove(fd)
      os.close(fd)

  def feed(self, program: memoryview) -> memoryview:
    """Writes some of a program; what is left of it, nothing if nobody reads."""
    try:
      return program[os.write(self.program, program) :]
    except BlockingIOError:
      return program
    except BrokenPipeError:
      return program[:0]

  @staticmethod
  def started(stderr: bytearray) -> bool:
    """Whether a process took the program, as far as its messages are kept."""
    return len(stderr) >= _STDERR_BYTES or stderr.startswith(
      python_server.STARTED
    )


def _take(fd: int, kept: bytearray) -> bool:
  """Reads from a non-blocking pipe; False if there is nothing, or no more."""
  try:
    part = os.read(fd, _READ_BYTES)
  except BlockingIOError:
    return False
  kept += part
  return bool(part)


class _Worker:
  """What runs one program at a time: a server without packages, or with them.

  The one with packages starts with the first program that names one.
  """

  def __init__(self, limits: _Limits, server: _Server):
    """Takes over the server without packages."""
    self._limits = limits
    self._servers = {False: server}
    self._wall = server.wall

  def run(self, program: bytes, *, packages: bool) -> _Run:
    """Runs one program, up to its deadline.

    Args:
      program: its text.
      packages: whether it needs them.

    Raises:
      PythonWallError, _ServerDied: see `_Server`; another server takes the
        next program.
    """
    server = self._servers.get(packages)
    if server is None or not server.alive:
      if server is not None:
        server.close(wait_s=0.0)
      server = _Server(self._limits, wall=self._wall, packages=packages)
      self._servers[packages] = server
    try:
      server.wait_until_ready()
      return server.run(program)
    except _ServerDied:
      server.close(wait_s=0.0)
      raise

  def close(self) -> None:
    for server in self._servers.values():
      server.close()


class PythonTool:
  """Runs a program and answers what it printed.

  A program may import the standard library, NumPy and SymPy. Where its last
  statement is an expression, its `repr` is shown too unless it is None, as in
  a notebook. A program that raises answers with what it printed before, the
  error and its line, and status `error`. Standard error is shown where it
  fails, or prints nothing else. One without output answers `[no output]`.

  A program runs behind a wall of namespaces and a filter of system calls. It
  sees these libraries, read-only, and a folder of its own, which is empty and
  in memory. It has no network, no environment, no other process and no
  right. Its time, memory, threads, files and output are limited. It can start
  threads, and no process. It is the first process of its namespace, so that
  signals it sends itself do not end it. Nothing of it is left when its call
  ends, and it shares nothing with another call. Set order and `random` are
  seeded: a program's output depends on its text alone, as far as Python allows.

  Linux only. Close it, or use it in a `with` statement; its processes end with
  the calling process in any case.

  Attributes:
    name: "python".
    description: how to call it.
    example: a step that calls it.
    max_concurrency: programs that run at the same time. A caller that makes
      no more calls at once does not count waiting for a worker as running.
  """

  name = "python"
  description = (
    "<python> a program </python> runs a Python program, which has the "
    "standard library, numpy and sympy, and shows what it prints."
  )
  example = (
    "<think> Now the difference in years. </think>"
    "<python> print(1932 - 1889) </python>"
    "<result> 43 </result>"
  )
  batched = False

  def __init__(
    self,
    timeout_s: float = 5.0,
    memory_bytes: int = 512 * 2**20,
    max_output_bytes: int = 16 * 2**10,
    num_workers: int = 4,
    trust_code: bool = False,
  ):
    """Starts the servers.

    Args:
      timeout_s: seconds a program may run, > 0; waiting for a free worker
        does not count, so that load does not change results.
      memory_bytes: address space of a program, >= 64 MiB.
      max_output_bytes: bytes of output kept, >= 1. A program that prints more
        is ended there, with status `error`.
      num_workers: programs that run at the same time, >= 1.
      trust_code: run programs with limits alone where the wall cannot be built.
        They can then read what this user, or `nobody` under root, can read.

    Raises:
      InputError: for a value out of range.
      PythonWallError: the wall cannot be built on this machine; says why.
    """
    if not timeout_s > 0:
      raise InputError(f"timeout_s must be > 0, got {timeout_s}")
    if memory_bytes < 64 * 2**20:
      raise InputError(
        f"memory_bytes must be >= 64 MiB, which the interpreter itself "
        f"needs, got {memory_bytes}"
      )
    if max_output_bytes < 1 or num_workers < 1:
      raise InputError(
        "max_output_bytes and num_workers must be >= 1, got "
        f"{max_output_bytes} and {num_workers}"
      )
    self._limits = _Limits(timeout_s, memory_bytes, max_output_bytes)
    self.max_concurrency = num_workers
    self._closed = False
    self._lock = threading.Lock()
    # None after `close`.
    self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
    first = self._first_server(trust_code)
    self._idle.put(_Worker(self._limits, first))
    try:
      for _ in range(num_workers - 1):
        server = _Server(self._limits, wall=first.wall)
        self._idle.put(_Worker(self._limits, server))
    except OSError:
      while not self._idle.empty():
        self._end(self._idle.get())
      raise
    self._threads = ThreadPoolExecutor(
      num_workers, thread_name_prefix="python-tool"
    )

  def _first_server(self, trust_code: bool) -> _Server:
    """The server that shows which layers this machine has.

    Raises:
      PythonWallError: it cannot be built, and code is not trusted.
    """
    server = _Server(self._limits, wall=True)
    try:
      server.wait_until_ready()
    except (PythonWallError, _ServerDied) as error:
      server.close(wait_s=0.0)
      reason = str(error) or "its server ended without a word"
      if not trust_code:
        raise PythonWallError(
          "the python tool keeps programs in by namespaces and a filter of "
          f"system calls, and this machine does not let it: {reason}. Allow "
          "user namespaces (sysctl kernel.unprivileged_userns_clone=1, or an "
          "AppArmor profile), or, if every program may be trusted with this "
          "user's files, set tools.python.trust_code=true."
        ) from error
      _log.warning(
        "python tool: no wall around programs (%s), as trust_code allows; "
        "limits on time, memory, files and output alone",
        reason,
      )
      return _Server(self._limits, wall=False)
    _log.info(
      "python tool: programs have namespaces of their own (user, process ids, "
      "mounts, network, IPC, host name, cgroup), a read-only root with the "
      "standard library, NumPy and SymPy, no rights, a filter of system calls, "
      "and limits on time, memory, threads, files and output"
    )
    return server

  def call(self, argument: str) -> ToolResult:
    """Runs one program; waits while all workers are busy.

    Raises:
      RuntimeError: after `close`.
    """
    if self._closed:
      raise RuntimeError(_CLOSED)
    worker = self._idle.get()
    if worker is None:
      self._idle.put(None)  # For the next one that waits.
      raise RuntimeError(_CLOSED)
    packages = _NAMES_PACKAGE.search(argument) is not None
    try:
      run = worker.run(argument.encode("utf-8", "replace"), packages=packages)
    except _ServerHung:
      return ToolResult(self._late(), ToolStatus.TIMEOUT)
    except _ServerDied:
      return ToolResult("The interpreter was killed.", ToolStatus.FAILED)
    finally:
      self._idle.put(worker)
    return self._result(run)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Runs programs at the same time, results in order."""
    return list(self._threads.map(self.call, arguments))

  def close(self) -> None:
    """Ends all processes, after the calls that are still running."""
    with self._lock:
      if self._closed:
        return
      self._closed = True
    for _ in range(self.max_concurrency):
      self._end(self._idle.get())
    self._idle.put(None)
    self._threads.shutdown()

  @staticmethod
  def _end(worker: _Worker | None) -> None:
    assert worker is not None
    worker.close()

  def __enter__(self) -> PythonTool:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def _late(self) -> str:
    return (
      f"TimeoutError: the program ran longer than {self._limits.timeout_s:g} s."
    )

  def _result(self, run: _Run) -> ToolResult:
    limit = self._limits.max_output_bytes
    written = _with_fresh_line(run.stdout)
    cut = len(written) > limit
    # No character is cut in two.
    printed = _DECODER("replace").decode(written[:limit], not cut).rstrip()
    if cut:
      note = f"[cut: more than {limit} bytes of output]"
      return ToolResult(f"{printed}\n{note}", ToolStatus.ERROR)
    errors, report = _errors_of(run.stderr)
    if run.status is None or _ran_out_of_time(run.status):
      text = lines_of(printed, errors, self._late())
      return ToolResult(text, ToolStatus.TIMEOUT)
    if run.status != 0:
      reason = report or _reason(run.status)
      return ToolResult(lines_of(printed, errors, reason), ToolStatus.ERROR)
    return ToolResult(printed or errors or NO_OUTPUT, ToolStatus.OK)


def lines_of(*texts: str) -> str:
  """Texts below each other, without those that are empty."""
  return "\n".join(text for text in texts if text)


def end_of(errors: str) -> str:
  """What is shown of standard error: its end, which says most."""
  errors = errors.strip()
  if len(errors) <= _ERROR_CHARACTERS:
    return errors
  return f"[...]\n{errors[-_ERROR_CHARACTERS:]}"


def _with_fresh_line(written: bytes) -> bytes:
  """Output whose last value begins a line of its own."""
  before, found, value = written.rpartition(python_server.FRESH_LINE)
  if found and before and not before.endswith(b"\n"):
    before += b"\n"
  return before + value


def _errors_of(stderr: bytes) -> tuple[str, str]:
  """What a program wrote to standard error, and why it failed."""
  written, found, report = stderr.rpartition(python_server.REPORT)
  if not found:
    written, report = stderr, b""
  text = written.removeprefix(python_server.STARTED).decode("utf-8", "replace")
  return end_of(text), report.decode("utf-8", "replace").strip()


def _ran_out_of_time(status: int) -> bool:
  return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU


def _reason(status: int) -> str:
  """Why a program ended that does not say so itself."""
  if os.WIFSIGNALED(status):
    number = os.WTERMSIG(status)
    # Real-time signals have no names of their own.
    names = {known.value: known.name for known in signal.Signals}
    return f"the program was killed ({names.get(number, number)})"
  return f"exit status {os.WEXITSTATUS(status)}"
