"""Runs the agent's Python programs in confined, pre-forked processes."""

from __future__ import annotations

import os
import pathlib
import queue
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rapo_jax.tools.base import ToolResult, ToolStatus

_SERVER = pathlib.Path(__file__).with_name("python_server.py")
# What a server may take beyond a program's deadline before it counts as hung.
_GRACE_S = 5.0
_OK, _ERROR, _TIMEOUT, _OUTPUT_LIMIT = range(4)


class _ServerDied(Exception):
  """The fork server ended before it answered."""


class _ServerHung(Exception):
  """The fork server did not answer in time."""


class _Server:
  """One fork server process and the pipes to it; used by one thread."""

  def __init__(
    self, timeout_s: float, memory_bytes: int, max_output_bytes: int
  ):
    folder = tempfile.mkdtemp(prefix="rapo-python-")
    # Readable, so that a program can list it; nobody's to write in.
    os.chmod(folder, 0o555)
    self._folder = folder
    self._deadline_s = timeout_s + _GRACE_S
    # -S: standard library only. Not -I, which would ignore the hash seed, and
    # with it the order of a set would differ between servers.
    self._process = subprocess.Popen(
      [
        *(sys.executable, "-S", "-s", "-P", "-B", str(_SERVER)),
        *(str(timeout_s), str(memory_bytes), str(max_output_bytes), folder),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
      bufsize=0,
      start_new_session=True,
    )

  @property
  def pid(self) -> int:
    return self._process.pid

  @property
  def alive(self) -> bool:
    return self._process.poll() is None

  def request(self, source: bytes) -> tuple[int, bytes]:
    """Runs one program.

    Returns:
      The server's outcome code and the program's output.

    Raises:
      _ServerDied: when it ended before it answered.
      _ServerHung: when it did not answer within the deadline and the grace.
    """
    deadline = time.monotonic() + self._deadline_s
    stdin = self._process.stdin
    assert stdin is not None
    try:
      view = memoryview(struct.pack("<I", len(source)) + source)
      while view:
        view = view[stdin.write(view) or 0 :]
    except BrokenPipeError as error:
      raise _ServerDied from error
    outcome, size = struct.unpack("<BI", self._read(5, deadline))
    return outcome, self._read(size, deadline)

  def _read(self, size: int, deadline: float) -> bytes:
    stdout = self._process.stdout
    assert stdout is not None
    poll = select.poll()
    poll.register(stdout, select.POLLIN)
    data = bytearray()
    while len(data) < size:
      left_s = deadline - time.monotonic()
      if left_s <= 0 or not poll.poll(left_s * 1000):
        raise _ServerHung
      part = os.read(stdout.fileno(), size - len(data))
      if not part:
        raise _ServerDied
      data += part
    return bytes(data)

  def close(self, wait_s: float = 1.0) -> None:
    """Ends the server and whatever it runs."""
    for pipe in (self._process.stdin, self._process.stdout):
      assert pipe is not None
      pipe.close()
    try:
      self._process.wait(wait_s)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    shutil.rmtree(self._folder, ignore_errors=True)


class PythonTool:
  """Runs a program and answers what it printed.

  A program that printed nothing and ends with an expression answers with that
  expression's `repr`, as a notebook does. A program that raises answers with
  the last line of the traceback and status `error`.

  Programs have the standard library only, no environment, no input, an empty
  folder that cannot be written to, no more processes or threads, and limits
  on time, memory and output. Under root they run as `nobody`, and where nobody
  may not read the Python installation, `import` finds what the server has
  loaded already and no more. They can still read world-readable files and open
  sockets: this keeps accidents in, it is no wall against an attacker. Set
  order and `random` are seeded: a program's output depends on nothing but its
  text, as far as Python allows.

  Linux only. Close it, or use it in a `with` statement; its processes end
  with the calling process in any case.

  Attributes:
    name: "python".
    max_concurrency: programs that run at the same time. A caller that makes
      no more calls at once does not count waiting for a worker as running.
  """

  name = "python"
  batched = False

  def __init__(
    self,
    timeout_s: float = 5.0,
    memory_bytes: int = 512 * 2**20,
    max_output_bytes: int = 16 * 2**10,
    num_workers: int = 4,
  ):
    """Starts the fork servers.

    Args:
      timeout_s: seconds a program may run, > 0; waiting for a free worker
        does not count, so that load does not change results.
      memory_bytes: address space of a program, >= 64 MiB.
      max_output_bytes: bytes of output kept, >= 1. A program that prints more
        is ended there, with status `error`.
      num_workers: programs that run at the same time, >= 1.

    Raises:
      ValueError: for a value out of range.
    """
    if timeout_s <= 0:
      raise ValueError(f"timeout_s must be > 0, got {timeout_s}")
    if memory_bytes < 64 * 2**20:
      raise ValueError(
        f"memory_bytes must be >= 64 MiB, which the interpreter itself "
        f"needs, got {memory_bytes}"
      )
    if max_output_bytes < 1 or num_workers < 1:
      raise ValueError(
        "max_output_bytes and num_workers must be >= 1, got "
        f"{max_output_bytes} and {num_workers}"
      )
    self._limits = (timeout_s, memory_bytes, max_output_bytes)
    self.max_concurrency = num_workers
    self._closed = False
    self._lock = threading.Lock()
    self._idle: queue.LifoQueue[_Server] = queue.LifoQueue()
    for _ in range(num_workers):
      self._idle.put(_Server(*self._limits))
    self._threads = ThreadPoolExecutor(
      num_workers, thread_name_prefix="python-tool"
    )

  def call(self, argument: str) -> ToolResult:
    """Runs one program; waits while all workers are busy.

    Raises:
      RuntimeError: after `close`.
    """
    if self._closed:
      raise RuntimeError("PythonTool is closed; make a new one")
    program = textwrap.dedent(argument).strip()
    if not program:
      return ToolResult("The program is empty.", ToolStatus.ERROR)
    server = self._idle.get()
    try:
      if not server.alive:
        server = self._restart(server)
      outcome, output = server.request(program.encode("utf-8", "replace"))
    except _ServerDied:
      server = self._restart(server)
      return ToolResult("The interpreter was killed.", ToolStatus.ERROR)
    except _ServerHung:
      server = self._restart(server)
      return self._timeout()
    finally:
      self._idle.put(server)
    return self._result(outcome, output.decode("utf-8", "replace").strip())

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
      self._idle.get().close()
    self._threads.shutdown()

  def __enter__(self) -> PythonTool:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()

  def _restart(self, server: _Server) -> _Server:
    server.close(wait_s=0.0)
    return _Server(*self._limits)

  def _timeout(self) -> ToolResult:
    return ToolResult(
      f"TimeoutError: the program ran longer than {self._limits[0]:g} s.",
      ToolStatus.TIMEOUT,
    )

  def _result(self, outcome: int, text: str) -> ToolResult:
    if outcome == _TIMEOUT:
      return self._timeout()
    if outcome == _OUTPUT_LIMIT:
      note = f"[cut: more than {self._limits[2]} bytes of output]"
      return ToolResult(f"{text}\n{note}", ToolStatus.ERROR)
    if outcome == _ERROR:
      return ToolResult(text, ToolStatus.ERROR)
    return ToolResult(text, ToolStatus.OK)
