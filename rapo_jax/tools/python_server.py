"""Fork server of the python tool; run as a program, never imported by us.

It runs in an interpreter of its own that has loaded nothing but the standard
library, so that a fork is cheap and copies no accelerator state. One child is
always forked ahead and confined already; it waits for its program, runs it and
ends. One request is served at a time:

  request (stdin):   uint32 length, UTF-8 source
  reply (stdout):    uint8 outcome, uint32 length, bytes of output

It ends when its stdin closes, that is when its parent closes it or dies, and
takes what still runs with it.

Arguments: timeout_s, memory_bytes, max_output_bytes, working folder.
"""

import ast
import builtins
import ctypes
import gc
import importlib
import io
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import time
import traceback
from typing import Any, NamedTuple

# Loaded once, so that a program's import of them costs nothing and works where
# `nobody` may not read the installation. Calculations import little else.
# Not threading, whose hook adds some 140 page faults to each fork: a program
# may start no thread anyway.
# fmt: off
PRELOADED = (
  "_strptime", "abc", "array", "base64", "bisect", "calendar", "cmath",
  "collections.abc", "contextlib", "copy", "csv", "dataclasses", "datetime",
  "decimal", "encodings.ascii", "encodings.latin_1", "enum", "fractions",
  "functools", "heapq", "inspect", "itertools", "json", "math", "numbers",
  "operator", "pprint", "random", "re", "statistics", "string", "textwrap",
  "time", "types", "typing", "unicodedata", "warnings", "zlib",
)
# fmt: on

OK, ERROR, TIMEOUT, OUTPUT_LIMIT = range(4)
NOBODY = 65534
LIBC = ctypes.CDLL(None)
STDERR_TAIL_BYTES = 4096
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38


class _CountingPipe(io.FileIO):
  """Raw standard output that knows whether anything was printed."""

  num_bytes = 0

  def write(self, data: Any) -> int:
    written = super().write(data)
    self.num_bytes += written
    return written


def _read_exactly(fd: int, size: int) -> bytes | None:
  parts = []
  while size:
    part = os.read(fd, min(size, 1 << 20))
    if not part:
      return None
    parts.append(part)
    size -= len(part)
  return b"".join(parts)


def _read_message(fd: int) -> bytes | None:
  """A length and that many bytes; None at the end of the stream."""
  header = _read_exactly(fd, 4)
  return header and _read_exactly(fd, struct.unpack("<I", header)[0])


def _write_all(fd: int, data: bytes) -> None:
  view = memoryview(data)
  while view:
    view = view[os.write(fd, view) :]


def _prctl(option: int, value: int) -> None:
  LIBC.prctl(option, value, 0, 0, 0)


def _limit(kind: int, value: int) -> None:
  hard = resource.getrlimit(kind)[1]
  if hard != resource.RLIM_INFINITY:
    value = min(value, hard)
  resource.setrlimit(kind, (value, value))


def _confine(timeout_s: float, memory_bytes: int) -> None:
  """Gives up, in the child, whatever a calculation does not need."""
  _limit(resource.RLIMIT_CPU, int(timeout_s) + 1)
  _limit(resource.RLIMIT_AS, memory_bytes)
  _limit(resource.RLIMIT_FSIZE, 0)
  _limit(resource.RLIMIT_NOFILE, 64)
  _limit(resource.RLIMIT_CORE, 0)
  _limit(resource.RLIMIT_NPROC, 0)
  if os.getuid() == 0:
    # Root is exempt from RLIMIT_NPROC and could signal any process.
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
  _prctl(PR_SET_NO_NEW_PRIVS, 1)
  # Only after setuid, which clears it.
  _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _execute(source: str) -> None:
  """Runs a program; a last expression is shown if nothing was printed."""
  raw = _CountingPipe(1, "wb", closefd=False)
  stdout = sys.stdout = io.TextIOWrapper(
    io.BufferedWriter(raw), encoding="utf-8", errors="replace"
  )
  tree = ast.parse(source, "<python>")
  last = tree.body.pop() if tree.body else None
  if last is not None and not isinstance(last, ast.Expr):
    tree.body.append(last)
    last = None
  namespace: dict[str, Any] = {"__name__": "__main__"}
  try:
    exec(compile(tree, "<python>", "exec"), namespace)
    if isinstance(last, ast.Expr):
      expression = ast.Expression(last.value)
      value = eval(compile(expression, "<python>", "eval"), namespace)
      stdout.flush()
      if value is not None and not raw.num_bytes:
        print(repr(value), file=stdout)
  finally:
    stdout.flush()


class _Child(NamedTuple):
  """A forked process that runs one program; this side's ends of its pipes."""

  pid: int
  source: int
  stdout: int
  stderr: int


def _fork(limits: tuple[float, int]) -> _Child:
  """Forks a child that confines itself and waits for its program."""
  source_read, source_write = os.pipe()
  out_read, out_write = os.pipe()
  err_read, err_write = os.pipe()
  pid = os.fork()
  if pid == 0:
    _live(source_read, out_write, err_write, limits)
  for fd in (source_read, out_write, err_write):
    os.close(fd)
  os.set_blocking(out_read, False)
  os.set_blocking(err_read, False)
  return _Child(pid, source_write, out_read, err_read)


def _live(
  source: int, stdout: int, stderr: int, limits: tuple[float, int]
) -> None:
  """Body of the forked child. Does not return."""
  exit_code = 1
  try:
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(source, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.closerange(3, 64)
    os.environ.clear()
    _confine(*limits)
    # A call's result depends on its program alone.
    random.seed(0)
    program = _read_message(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if program is not None:
      _execute(program.decode("utf-8"))
    exit_code = 0
  except SystemExit as error:
    if error.code is None or error.code == 0:
      exit_code = 0
    else:
      os.write(2, f"SystemExit: {error.code}\n".encode())
  except BaseException as error:
    # The one place where anything at all may arrive: it is user code.
    lines = traceback.format_exception_only(error)
    os.write(2, lines[-1].encode("utf-8", errors="replace"))
  finally:
    os._exit(exit_code)


def _kill_children() -> None:
  """Kills and reaps every process below this one, however it hid."""
  path = f"/proc/self/task/{os.getpid()}/children"
  try:
    while True:
      if os.waitpid(-1, os.WNOHANG) == (0, 0):
        with open(path, "rb") as file:
          for pid in file.read().split():
            os.kill(int(pid), signal.SIGKILL)
        os.waitpid(-1, 0)
  except ChildProcessError:
    return


def _drain(fd: int, kept: bytearray) -> None:
  """Reads what is left in a non-blocking pipe."""
  try:
    while part := os.read(fd, 1 << 16):
      kept += part
  except BlockingIOError:
    pass


def _describe(status: int, stderr: bytes) -> str:
  """Why a program failed, in one line."""
  if os.WIFSIGNALED(status):
    name = signal.Signals(os.WTERMSIG(status)).name
    return f"the program was killed ({name})"
  lines = stderr.decode("utf-8", errors="replace").strip().splitlines()
  return lines[-1] if lines else f"exit status {os.WEXITSTATUS(status)}"


def _serve(
  child: _Child,
  program: bytes,
  timeout_s: float,
  max_output_bytes: int,
  wakeup: int,
) -> tuple[int, bytes]:
  """Has a child run one program, up to its deadline, and ends it."""
  deadline = time.monotonic() + timeout_s
  _write_all(child.source, struct.pack("<I", len(program)) + program)
  poll = select.poll()
  for fd in (0, child.stdout, child.stderr, wakeup):
    poll.register(fd, select.POLLIN)
  stdout, stderr = bytearray(), bytearray()
  status: int | None = None
  while status is None and len(stdout) <= max_output_bytes:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
      break
    for fd, _ in poll.poll(left_s * 1000 + 1):
      if fd == 0:
        # One request at a time: this is the parent's end, not a request.
        sys.exit()
      part = os.read(fd, 1 << 16)
      if fd == child.stdout:
        stdout += part
      elif fd == child.stderr:
        stderr = (stderr + part)[-STDERR_TAIL_BYTES:]
      if not part:
        poll.unregister(fd)
    done, code = os.waitpid(child.pid, os.WNOHANG)
    status = code if done else None
  _kill_children()
  if status is not None:
    _drain(child.stdout, stdout)
    _drain(child.stderr, stderr)
  return _reply(status, bytes(stdout), bytes(stderr), max_output_bytes)


def _reply(
  status: int | None, stdout: bytes, stderr: bytes, max_output_bytes: int
) -> tuple[int, bytes]:
  if len(stdout) > max_output_bytes:
    return OUTPUT_LIMIT, stdout[:max_output_bytes]
  if status is None or (
    os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
  ):
    return TIMEOUT, stdout
  if status != 0:
    return ERROR, _describe(status, stderr).encode("utf-8")
  return OK, stdout


def _clean(folder: str) -> None:
  """Empties the working folder, in case that a program could write there."""
  for entry in os.scandir(folder):
    if entry.is_dir(follow_symlinks=False):
      shutil.rmtree(entry.path, ignore_errors=True)
    else:
      os.unlink(entry.path)


def main() -> None:
  timeout_s, memory_bytes, max_output_bytes = (
    float(sys.argv[1]),
    int(sys.argv[2]),
    int(sys.argv[3]),
  )
  folder = sys.argv[4]
  os.chdir(folder)
  builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
  wakeup, wakeup_write = os.pipe()
  os.set_blocking(wakeup, False)
  os.set_blocking(wakeup_write, False)
  signal.signal(signal.SIGCHLD, lambda *_: None)
  signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
  _prctl(PR_SET_CHILD_SUBREAPER, 1)
  for module in PRELOADED:
    importlib.import_module(module)
  gc.collect()
  gc.freeze()
  try:
    while True:
      child = _fork((timeout_s, memory_bytes))
      program = _read_message(0)
      if program is None:
        break
      outcome, output = _serve(
        child, program, timeout_s, max_output_bytes, wakeup
      )
      _write_all(1, struct.pack("<BI", outcome, len(output)) + output)
      for fd in (child.source, child.stdout, child.stderr):
        os.close(fd)
      _clean(folder)
  finally:
    _kill_children()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
  main()
