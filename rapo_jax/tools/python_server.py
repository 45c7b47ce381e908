"""Server of the python tool's programs; run as a program, never imported by us.

It runs in an interpreter of its own that has loaded nothing but the standard
library. So a fork is cheap and copies no accelerator state. Its child
(`_Zygote`) lives behind the wall (`python_wall`). It always has one process
forked ahead, confined already, which waits for its program.

The zygote never sees a program or its output. The process that waits receives
three descriptors over a socket: the program, standard output, standard error.
The tool holds their other ends. The zygote says when that process has ended:

  command (stdin):   uint8 kind, 16 bytes: GO or KILL, and the call's token
  event (stdout):    uint8 kind, 16 bytes, int32, uint32, bytes: NEW and READY
                     while it starts, DONE with the token and a wait status, or
                     FAILED with a text

A program has neither of these descriptors, and no way to reopen them. All ends
with stdin, that is when the tool closes it or its process dies.

Arguments: a JSON object, see `Settings`.
"""

import ast
import atexit
import builtins
import functools
import gc
import importlib
import io
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

# Loaded once, so that a program's import of them costs nothing.
# Not threading, whose hook adds some 140 page faults to each fork.
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

COMMAND = struct.Struct("<B16s")
EVENT = struct.Struct("<B16siI")
SIZE = struct.Struct("<Q")
"""What a program begins with: its bytes."""
GO, KILL = b"GK"
NEW, READY, DONE, FAILED = b"NRDF"
NO_TOKEN = bytes(16)
STARTED = b"\x01"
"""First byte of standard error: the program was taken by its process."""
REPORT = b"\x00"
"""In standard error: the reason why the program failed follows."""
FRESH_LINE = b"\x00\x1e\x00"
"""In standard output: what follows begins a line of its own.

The tool sees all that was written, past `sys.stdout` too. A program that writes
it itself gets a line's end.
"""

# Two of the kernel's accounts of processor time: the limit counts ticks, also
# those of which a busy machine gave a program a part only.
_LEAST_OF_LIMIT = 0.7
MAX_FILES = 64
MAX_THREADS = 64
MAX_FOLDER_FILES = 512
MAX_REPORT_CHARACTERS = 2048


class Settings(NamedTuple):
  """What the tool asks for.

  Attributes:
    control: descriptor of the socket over which programs come.
    wall: whether to build the namespaces and the filter.
    cpu_s: processor time of a program.
    memory_bytes: address space of a program.
    folder_bytes: what a program may write, in all and in one file.
    libraries: folders of shared objects that the standard library loads.
    packages: folders of further packages that a program may import.
    preload: whether they are loaded before it starts.
  """

  control: int
  wall: bool
  cpu_s: int
  memory_bytes: int
  folder_bytes: int
  libraries: list[str]
  packages: list[str]
  preload: bool


def _load(name: str) -> Any:
  """A module beside this file, which programs are not to find."""
  folder = os.path.dirname(os.path.abspath(__file__))
  sys.path.insert(0, folder)
  try:
    module = importlib.import_module(name)
  finally:
    sys.path.remove(folder)
  del sys.modules[name]
  return module


def _read_exactly(fd: int, size: int) -> bytes:
  """That many bytes; fewer at the end of the stream."""
  parts = []
  while size and (part := os.read(fd, min(size, 1 << 16))):
    parts.append(part)
    size -= len(part)
  return b"".join(parts)


def _tell(
  kind: int, token: bytes = NO_TOKEN, status: int = 0, text: bytes = b""
) -> None:
  view = memoryview(EVENT.pack(kind, token, status, len(text)) + text)
  while view:
    view = view[os.write(1, view) :]


def _limit(kind: int, value: int) -> None:
  hard = resource.getrlimit(kind)[1]
  if hard != resource.RLIM_INFINITY:
    value = min(value, hard)
  resource.setrlimit(kind, (value, value))


def _set_limits(settings: Settings) -> None:
  _limit(resource.RLIMIT_CPU, settings.cpu_s)
  _limit(resource.RLIMIT_AS, settings.memory_bytes)
  _limit(resource.RLIMIT_FSIZE, settings.folder_bytes if settings.wall else 0)
  _limit(resource.RLIMIT_NOFILE, MAX_FILES)
  _limit(resource.RLIMIT_NPROC, MAX_THREADS if settings.wall else 0)
  for kind in (
    resource.RLIMIT_CORE,
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_MSGQUEUE,
    resource.RLIMIT_RTPRIO,
  ):
    _limit(kind, 0)
  # Timers, too, which all programs of a user share a number of.
  _limit(resource.RLIMIT_SIGPENDING, MAX_THREADS)


def _execute(source: str) -> None:
  """Runs a program and shows the value of a last expression."""
  stdout = sys.stdout = sys.__stdout__ = _stream(1)  # type: ignore[misc]
  stderr = sys.stderr = sys.__stderr__ = _stream(2)  # type: ignore[misc]
  main = sys.modules["__main__"] = types.ModuleType("__main__")
  main.__dict__["__builtins__"] = builtins
  try:
    tree = ast.parse(source, "<python>")
    last = tree.body.pop() if tree.body else None
    if last is not None and not isinstance(last, ast.Expr):
      tree.body.append(last)
      last = None
    exec(compile(tree, "<python>", "exec"), main.__dict__)
    if isinstance(last, ast.Expr):
      expression = ast.Expression(last.value)
      value = eval(compile(expression, "<python>", "eval"), main.__dict__)
      if value is not None:
        text = repr(value)
        stdout.flush()
        os.write(1, FRESH_LINE)
        print(text, file=stdout)
    _end_threads()
  finally:
    stdout.flush()
    stderr.flush()


def _stream(fd: int) -> io.TextIOWrapper:
  """A stream that keeps nothing back: a program may end at any moment."""
  raw = io.FileIO(fd, "wb", closefd=False)
  return io.TextIOWrapper(
    raw,  # type: ignore[arg-type]
    encoding="utf-8",
    errors="replace",
    write_through=True,
  )


def _end_threads() -> None:
  """Does what an interpreter does at the end of a program."""
  threading: Any = sys.modules.get("threading")
  if threading is not None:
    threading._shutdown()
  atexit._run_exitfuncs()


def _describe(error: BaseException) -> str:
  """An error's type and message, and the program's line."""
  text = "".join(traceback.format_exception_only(error)).rstrip()
  if isinstance(error, SyntaxError):
    text = f"{type(error).__name__}: {error.msg}"
  lines = [
    number
    for frame, number in traceback.walk_tb(error.__traceback__)
    if frame.f_code.co_filename == "<python>"
  ]
  line = lines[-1] if lines else None
  if line is None and isinstance(error, SyntaxError):
    line = error.lineno  # The program's own; it has not begun.
  return text if line is None else f"{text} (line {line})"


def _live(confine: Callable[[], socket.socket], reader: Any) -> NoReturn:
  """Body of the process that waits for a program and runs it."""
  exit_code = 1
  try:
    control = confine()
    _, fds, _, _ = socket.recv_fds(control, 1, 3)
    if len(fds) < 3:
      os._exit(0)  # The tool has gone.
    control.close()
    for target, fd in enumerate(fds):
      os.dup2(fd, target)
    os.closerange(3, MAX_FILES)
    os.write(2, STARTED)
    # Its size comes first: a process that the trainer forked meanwhile may keep
    # the other end open.
    (size,) = SIZE.unpack(_read_exactly(0, SIZE.size))
    argument = _read_exactly(0, size).decode("utf-8", errors="replace")
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    # A call's result depends on its program alone.
    random.seed(0)
    source = reader.read(argument)
    if source:
      _execute(source)
      exit_code = 0
    else:
      _report(reader.EMPTY)
  except SystemExit as error:
    if error.code is None or error.code == 0:
      exit_code = 0
    else:
      _report(f"SystemExit: {error.code}")
  except BaseException as error:
    # The one place where anything at all may arrive: it is user code.
    _report(_describe(error))
  finally:
    os._exit(exit_code)


def _confine(
  settings: Settings, wall: Any, user: int, filter_: Any, folder: str
) -> socket.socket:
  """Gives up whatever a program does not need.

  Returns:
    Where the program will come from; no other descriptor of the zygote is left.
  """
  try:
    # Process groups reach over namespaces: in ours, `kill(0, ...)` of an
    # ordinary user's program would end the zygote.
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control = socket.socket(fileno=os.dup(settings.control))
    if settings.wall:
      size = settings.folder_bytes
      wall.make_program_folder(folder, size, MAX_FOLDER_FILES)
    _set_limits(settings)
    wall.drop_rights(user)
    if filter_ is not None:
      filter_.install()
  except (wall.WallError, OSError, ValueError) as error:
    _tell(FAILED, text=str(error).encode())
    os._exit(1)
  null = os.open("/dev/null", os.O_RDWR)
  for fd in range(3):
    os.dup2(null, fd)
  os.closerange(3, control.fileno())
  os.closerange(control.fileno() + 1, 4096)
  return control


def _abort() -> NoReturn:
  """`os.abort`, whose signal does not end the first process of a namespace."""
  _report("the program was killed (SIGABRT)")
  os._exit(1)


def _report(text: str) -> None:
  """Says why a program failed; keeps both ends of a long text."""
  text = text.replace("\0", "\\x00")  # REPORT marks the beginning alone.
  if len(text) > MAX_REPORT_CHARACTERS:
    half = MAX_REPORT_CHARACTERS // 2
    text = f"{text[:half]}\n[...]\n{text[-half:]}"
  os.write(2, REPORT + text.encode("utf-8", errors="replace"))


class _Zygote:
  """The process behind the wall that forks one process a program."""

  def __init__(self, settings: Settings, wall: Any, reader: Any):
    self._settings = settings
    self._wall = wall
    self._reader = reader
    self._own_namespace = -1
    self._folder = ""
    self._user = os.getuid()
    self._filter: Any = None
    self._child = 0
    self._token = NO_TOKEN
    self._poll = select.poll()

  def prepare(self) -> None:
    """Builds what all programs share."""
    if self._settings.wall:
      self._own_namespace = self._wall.open_process_namespace()
      # Extension modules may lie apart, and Python ones in an archive.
      paths = [path for path in sys.path if os.path.exists(path)]
      paths += self._settings.libraries
      self._folder = self._wall.build_root(
        os.path.dirname(os.__file__), paths, self._settings.packages
      )
      self._wall.bound_rights()
      sys.path.append(self._wall.PACKAGES)
    else:
      os.chdir("/")
      # Nothing hides what else is there.
      sys.path += _parents(self._settings.packages)
    names = {os.path.basename(folder) for folder in self._settings.packages}
    if self._settings.preload:
      _preload(names)
    nobody = self._wall.NOBODY
    if os.getuid() == 0 and self._can_read_as(nobody):
      self._user = nobody
    # The kernel counts no processes of root: it gets no threads at all.
    self._filter = self._wall.Filter(threads=self._user != 0)

  def _can_read_as(self, user: int) -> bool:
    """Whether another user may read the libraries."""
    pid = os.fork()
    if pid == 0:
      readable = False
      try:
        # As a program does: a change of user alone would keep the right to
        # read everything.
        self._wall.drop_rights(user)
        with open(os.__file__, "rb"):
          pass
        if self._settings.wall:
          for name in os.listdir(self._wall.PACKAGES):
            os.listdir(os.path.join(self._wall.PACKAGES, name))
        readable = True
      finally:
        os._exit(0 if readable else 1)
    return os.waitpid(pid, 0)[1] == 0

  def serve(self) -> None:
    """Forks ahead, passes commands on and tells of ends, until stdin closes."""
    wakeup, wakeup_write = os.pipe()
    for fd in (wakeup, wakeup_write):
      os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    for fd in (0, wakeup):
      self._poll.register(fd, select.POLLIN)
    self._fork()
    _tell(READY)
    serving = True
    while serving:
      ready = [fd for fd, _ in self._poll.poll()]
      if 0 in ready:
        serving = self._obey()
      if wakeup in ready:
        os.read(wakeup, 1 << 10)
        serving = serving and self._reap()

  def _obey(self) -> bool:
    """Carries out a command; False at the end of the stream."""
    data = _read_exactly(0, COMMAND.size)
    if len(data) < COMMAND.size:
      return False
    kind, token = COMMAND.unpack(data)
    if kind == GO:
      self._token = token
    elif token == self._token and self._child:
      os.kill(self._child, signal.SIGKILL)
    return True

  def _reap(self) -> bool:
    """Tells of the end of a program and forks the process of the next.

    Returns:
      Whether to go on: not if a process ended before it was given a program.
    """
    try:
      pid, status, usage = os.wait4(-1, os.WNOHANG)
    except ChildProcessError:
      return True
    if pid == 0:
      return True
    used_s = usage.ru_utime + usage.ru_stime
    least_s = _LEAST_OF_LIMIT * self._settings.cpu_s
    if status == signal.SIGKILL and used_s > least_s:
      # Several threads use up the time sooner. The kernel ends a process with
      # this signal where there is no room above the limit for another.
      status = signal.SIGXCPU
    self._child = 0
    # The command to begin was given before the program: it is here by now.
    while any(fd == 0 for fd, _ in self._poll.poll(0)):
      if not self._obey():
        return False
    token, self._token = self._token, NO_TOKEN
    if token == NO_TOKEN:
      return False
    _tell(DONE, token, status)
    self._fork()
    return True

  def _fork(self) -> None:
    if self._settings.wall:
      self._wall.next_child_in_own_namespace(self._own_namespace)
    pid = os.fork()
    if pid == 0:
      confined = (self._settings, self._wall, self._user, self._filter)
      confine = functools.partial(_confine, *confined, self._folder)
      _live(confine, self._reader)
    self._child = pid


def _parents(folders: Sequence[str]) -> list[str]:
  return list(dict.fromkeys(os.path.dirname(folder) for folder in folders))


def _preload(names: set[str]) -> None:
  """Loads packages, and what their functions load when first called.

  They are seeded as `random` is: a call's result depends on its program alone.
  """
  if "numpy" in names:
    importlib.import_module("numpy.random").seed(0)
  if "sympy" in names:
    sympy: Any = importlib.import_module("sympy")
    x = sympy.Symbol("x", real=True)
    sympy.solve(x**2 - 3 * x + 2, x)
    sympy.integrate(sympy.sin(x) ** 2, x)
    sympy.simplify(sympy.sin(x) ** 2 + sympy.cos(x) ** 2)
    importlib.import_module("sympy.core.random").seed(0)


def _library_folders() -> list[str]:
  """Folders of the shared objects that the standard library can load."""
  folder = os.path.join(os.path.dirname(os.__file__), "lib-dynload")
  names = os.listdir(folder) if os.path.isdir(folder) else []
  for name in sorted(names):
    try:
      importlib.import_module(name.partition(".")[0])
    except ImportError:
      continue  # Of a library that this machine lacks.
  found = set()
  with open("/proc/self/maps", encoding="utf-8") as maps:
    for line in maps:
      path = line.rstrip("\n").partition("/")[1:]
      if path[0] and ".so" in path[1]:
        found.add(os.path.dirname("/" + path[1].removesuffix(" (deleted)")))
  return sorted(found)


def _wait_for_either(*processes: int) -> None:
  """Waits for the end of one of several processes, by their descriptors.

  The zygote's stdin does not close with the tool's process where that has
  forked others.
  """
  poll = select.poll()
  for process in processes:
    poll.register(process, select.POLLIN)
  poll.poll()


def _enter_wall(wall: Any) -> None:
  """Becomes the first process of new namespaces; this one waits for it."""
  tool = os.pidfd_open(os.getppid())
  wall.leave_namespaces()
  _tell(NEW)
  # The tool maps the ids from outside and then says go.
  if len(_read_exactly(0, COMMAND.size)) < COMMAND.size:
    os._exit(0)
  pid = os.fork()
  if pid:
    os.close(0)
    os.close(1)
    _wait_for_either(os.pidfd_open(pid), tool)
    os._exit(0)
  os.close(tool)
  wall.die_with_parent(signal.SIGKILL)


def _start_afresh(settings: Settings) -> Settings:
  """Leaves what came from the calling process and is not to go on.

  These are signals that it ignores or holds back, and the number of its
  descriptor. That number may lie above those that are closed for a program.
  """
  # Python itself ignores two: writing to no reader, or too much, is an error.
  kept = {signal.SIGPIPE, signal.SIGXFSZ}
  for number in signal.valid_signals() - kept:
    if signal.getsignal(number) == signal.SIG_IGN:
      signal.signal(number, signal.SIG_DFL)
  signal.pthread_sigmask(signal.SIG_SETMASK, ())
  control = os.dup(settings.control)
  os.close(settings.control)
  return settings._replace(control=control)


def main() -> None:
  if sys.argv[1] == "libraries":
    print(json.dumps(_library_folders()))
    return
  settings = Settings(**json.loads(sys.argv[1]))
  settings = _start_afresh(settings)
  wall, reader = _load("python_wall"), _load("python_source")
  reader.ignore_warnings()
  builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
  os.abort = _abort
  sys.argv[:] = sys.orig_argv[:] = ["<python>"]
  os.environ.clear()
  # Programs do not see it. More threads than one would be no help on a machine
  # that runs several programs, and would count against their limit.
  os.putenv("OPENBLAS_NUM_THREADS", "1")
  for module in PRELOADED:
    importlib.import_module(module)
  try:
    if settings.wall:
      _enter_wall(wall)
    zygote = _Zygote(settings, wall, reader)
    zygote.prepare()
  except (wall.WallError, OSError) as error:
    _tell(FAILED, text=str(error).encode())
    return
  gc.collect()
  gc.freeze()
  zygote.serve()


if __name__ == "__main__":
  main()
