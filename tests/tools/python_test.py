from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rapo_jax import tools
from rapo_jax.tools import ToolStatus, python_server
from rapo_jax.tools.python import library_folders

TIMEOUT_S = 1.0
MAX_OUTPUT_BYTES = 2_000


@pytest.fixture(scope="module")
def tool() -> Iterator[tools.PythonTool]:
  with tools.PythonTool(
    # Room for a busy machine; tests of the deadline have a tool of their own.
    timeout_s=20,
    memory_bytes=256 * 2**20,
    max_output_bytes=MAX_OUTPUT_BYTES,
    num_workers=2,
  ) as made:
    yield made


@pytest.fixture
def hasty_tool() -> Iterator[tools.PythonTool]:
  with tools.PythonTool(timeout_s=TIMEOUT_S, num_workers=1) as made:
    yield made


@pytest.mark.parametrize(
  ("program", "text"),
  [
    ("print(17 * 23 % 97)", "3"),
    ("print(1)\nprint(2)", "1\n2"),
    (" a = 1\nprint(a) ", "1"),
    ("\n    for i in range(2):\n      print(i)\n  ", "0\n1"),
    # The last expression shows if nothing was printed.
    ("1 + 1", "2"),
    ("x = 'a'\nx", "'a'"),
    ("print(1)\n2", "1\n2"),
    # A value begins a line, whatever was printed before it.
    ("import sys\nsys.stdout.write('42')", "42\n2"),
    ("import sys\nsys.stdout.buffer.write(b'42')", "42\n2"),
    ("import os\nos.write(1, b'42')", "42\n2"),
    ("print('a', end='')\n5", "a\n5"),
    ("print('a', end='')\nprint('b')", "ab"),
    # What prints nothing says so.
    ("None", "[no output]"),
    ("x = 1", "[no output]"),
    ("# nothing", "[no output]"),
    ("for i in range(3): i", "[no output]"),
    # White space with a meaning stays.
    ("print('  1 0\\n  0 1')", "  1 0\n  0 1"),
    ("\n\tx = 6\n\tprint(x * 7)\n", "42"),
    ("x = 6\n    print(x * 7)", "42"),
    (" x = 6\n\n\n      print(x * 7)\n", "42"),
    ("\n  def f():\n    return 1\n  print(f())\n", "1"),
    # Spaces in a string of a program that is not indented.
    ('print(len("""a\n   \nb"""))', "7"),
    # Fences of Markdown.
    ("\n```python\nprint(42)\n```\n", "42"),
    ("```\nprint(42)\n```", "42"),
    ("``` py\n  print(42)\n", "42"),
    ("print('```')", "```"),
    ("~~~python\nprint(42)\n~~~", "42"),
    ("````\nprint('```')\n````", "```"),
    ("\n \n\x0c\n  a = 1\n  print(a)", "1"),
    ("def f(n):\n  return n and f(n - 1)\nf(5)", "0"),
    ("import math\nmath.pi > 3", "True"),
    ("print('東京 🙂')", "東京 🙂"),
    # The original stream is the same one.
    ("import sys; print('x', file=sys.__stdout__)", "x"),
    (
      "import sys; sys.stdout = None; sys.stdout = sys.__stdout__; print(1)",
      "1",
    ),
    ("import os; print('x', end=''); os._exit(0)", "x"),
    # Standard error, where there is nothing else.
    ("import sys; print('x', file=sys.stderr); print('y')", "y"),
    ("import sys; print('x', file=sys.stderr)", "x"),
    ("import sys; print('x', file=sys.stderr)\n5", "5"),
    ("import sys; _ = sys.stderr.write('é' * 3000)", "[...]\n" + "é" * 2000),
    ("import logging; logging.warning('hot')", "WARNING:root:hot"),
    (
      "import traceback\ntry:\n  1 / 0\nexcept Exception:\n"
      "  traceback.print_exc()",
      "Traceback (most recent call last):\n"
      '  File "<python>", line 3, in <module>\n'
      "ZeroDivisionError: division by zero",
    ),
    ("print(1); exit()", "1"),
    ("import sys; sys.exit(0)", "[no output]"),
    ("import __main__; print(vars(__main__) is globals())", "True"),
    ("import atexit; _ = atexit.register(print, 1)", "1"),
    ("print(__name__)", "__main__"),
    # No environment, no input, an empty folder.
    ("import os; print(dict(os.environ))", "{}"),
    ("import os; print(os.listdir())", "[]"),
    ("import sys; print(repr(sys.stdin.read()))", "''"),
  ],
)
def test_output(tool, program: str, text: str):
  assert tool.call(program) == tools.ToolResult(text, ToolStatus.OK)


@pytest.mark.parametrize(
  ("program", "text"),
  [
    ("1 / 0", "ZeroDivisionError: division by zero (line 1)"),
    ("a = 1\nb = 0\na / b", "ZeroDivisionError: division by zero (line 3)"),
    # What was printed before the error stays.
    ("print(1)\nprint(y)", "1\nNameError: name 'y' is not defined (line 2)"),
    ("if", "SyntaxError: invalid syntax (line 1)"),
    ("x = 1\ny = 2\nfoo(", "SyntaxError: '(' was never closed (line 3)"),
    (
      "if False:\n    x = 1\n  print('ran')",
      "IndentationError: unindent does not match any outer indentation level "
      "(line 3)",
    ),
    (
      "\n    x = 1\n# c\n    x / 0",
      "ZeroDivisionError: division by zero (line 3)",
    ),
    ("def f():\n  return {}['k']\n\nf()", "KeyError: 'k' (line 2)"),
    ("raise SystemExit('why')", "SystemExit: why"),
    ("exit(3)", "SystemExit: 3"),
    ("import os; os._exit(3)", "exit status 3"),
    ("import ctypes; ctypes.string_at(0)", "the program was killed (SIGSEGV)"),
    # Whatever ends it, what was printed stays.
    ("import os; print('x', end=''); os._exit(3)", "x\nexit status 3"),
    (
      "import os; print('x'); os.abort()",
      "x\nthe program was killed (SIGABRT)",
    ),
    (
      "import ctypes; print('x'); ctypes.string_at(0)",
      "x\nthe program was killed (SIGSEGV)",
    ),
    # Standard error stands before the error itself.
    (
      "import sys; print('usage', file=sys.stderr); print(1); sys.exit(2)",
      "1\nusage\nSystemExit: 2",
    ),
    ("x = 1\ny = 2\neval('1+')", "SyntaxError: invalid syntax (line 3)"),
    ("input()", "EOFError: EOF when reading a line (line 1)"),
    ("x = 'x' * 10**9", "MemoryError (line 1)"),
    ("raise ValueError('a\\nb')", "ValueError: a\nb (line 1)"),
    ("raise ValueError('a\\0b')", "ValueError: a\\x00b (line 1)"),
    ("import jax", "ModuleNotFoundError: No module named 'jax' (line 1)"),
    (
      "import numpy as np\na = np.ones(2)\na @ np.ones(3)",
      "ValueError: matmul: Input operand 1 has a mismatch in its core "
      "dimension 0, with gufunc signature (n?,k),(k,m?)->(n?,m?) (size 3 is "
      "different from 2) (line 3)",
    ),
  ],
)
def test_errors(tool, program: str, text: str):
  assert tool.call(program) == tools.ToolResult(text, ToolStatus.ERROR)


@pytest.mark.parametrize(
  ("program", "text"),
  [
    ("import numpy as np\nnp.arange(3) * 2", "array([0, 2, 4])"),
    # Whether or not the text says that it needs them.
    ("__import__('num' + 'py').arange(3)", "array([0, 1, 2])"),
    (
      "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 2, x))",
      "[-sqrt(2), sqrt(2)]",
    ),
    ("import mpmath\nprint(mpmath.nstr(mpmath.zeta(2), 8))", "1.6449341"),
    ("import numpy\nnumpy.linalg.det(numpy.eye(300))", "np.float64(1.0)"),
  ],
)
def test_packages(tool, program: str, text: str):
  assert tool.call(program) == tools.ToolResult(text, ToolStatus.OK)


def test_calls_share_no_package(tool):
  change = "import numpy, sympy\nnumpy.a = sympy.a = 1\nsympy.Symbol('y')"
  assert tool.call(change).text == "y"
  look = "import numpy, sympy\nhasattr(numpy, 'a'), hasattr(sympy, 'a')"
  assert tool.call(look).text == "(False, False)"
  draw = "import numpy\nnumpy.random.rand()"
  assert tool.call(draw) == tool.call(draw)


def test_a_program_finds_no_other_package(tool):
  # A package is found where the folder that holds it is.
  names = tool.call(
    "import os, numpy\n"
    "names = os.listdir(os.path.dirname(os.path.dirname(numpy.__file__)))\n"
    "print(*sorted(set(names) - {'numpy.libs'}))"
  )
  assert names.text == "mpmath numpy sympy"


def test_a_long_error_keeps_its_type_and_line(tool):
  text = tool.call("raise ValueError('x' * 10**5)").text
  assert text.startswith("ValueError: xxx")
  assert text.endswith("xxx (line 1)")
  assert len(text) < 3_000


def test_a_program_that_never_began_does_not_run_in_the_next_call():
  # Its process is stopped, so that the program waits in the socket.
  before = set(servers_of(os.getpid()))
  with tools.PythonTool(timeout_s=3, num_workers=1) as tool:
    tool.call("1")  # by now it has started
    (server,) = set(servers_of(os.getpid())) - before
    (zygote,) = servers_of(server)
    while not (waiting := servers_of(zygote)):
      time.sleep(0.01)  # It is forked behind the last call.
    os.kill(waiting[0], signal.SIGSTOP)
    assert tool.call("print('former')").status is ToolStatus.TIMEOUT
    results = [tool.call(f"print({n})").text for n in range(5)]
  assert results == [str(n) for n in range(5)]


def test_an_installation_that_others_may_not_read(monkeypatch, tmp_path):
  """Programs stay who the tool is, and get no threads if that is root."""
  copy = copied_installation(tmp_path)
  monkeypatch.setattr(sys, "executable", str(copy))
  library_folders.cache_clear()
  try:
    with tools.PythonTool(timeout_s=20, num_workers=1) as tool:
      assert tool.call("import difflib\nprint('ok')").text == "ok"
      place = tool.call("import os\nprint(os.__file__)").text
      assert place.startswith(str(tmp_path))
      attempt = "from threading import Thread\nThread(target=print).start()"
      text = tool.call(attempt).text
      assert ("can't start new thread" in text) == (os.getuid() == 0), text
      assert "PermissionError" in tool.call("import os; os.setuid(0)").text or (
        os.getuid() == 0
      )
      write = "open(__import__('os').__file__, 'a')"
      assert "Read-only file system" in tool.call(write).text
  finally:
    library_folders.cache_clear()


def copied_installation(folder: pathlib.Path) -> pathlib.Path:
  """A Python whose library is its owner's alone; its interpreter."""
  library = pathlib.Path(os.__file__).parent
  skipped = shutil.ignore_patterns(
    *("site-packages", "test", "tests", "config-*", "idlelib", "ensurepip")
  )
  shutil.copytree(
    library, folder / "lib" / library.name, ignore=skipped, symlinks=True
  )
  for shared in pathlib.Path(sys.base_prefix, "lib").glob("libpython*.so*"):
    shutil.copy(shared, folder / "lib" / shared.name)
  (folder / "bin").mkdir()
  binary = pathlib.Path(sys.executable).resolve()
  interpreter = folder / "bin" / binary.name
  shutil.copy(binary, interpreter)
  for path in (folder, *folder.rglob("*")):
    path.chmod(0o700)
  return interpreter


def test_a_program_shares_no_process_group_with_its_server(tool):
  # `kill(0, ...)` goes to the group, over the borders of namespaces.
  text = tool.call("import os\nprint(os.getpgid(0), os.getsid(0))").text
  assert text == "1 1"


def test_an_empty_program_is_an_error(tool):
  for argument in ("", " \n\t", "```python\n```"):
    empty = tools.ToolResult("The program is empty.", ToolStatus.ERROR)
    assert tool.call(argument) == empty


_IMPORT_ALL = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in {names!r}:
  try:
    importlib.import_module(name)
  except ImportError:
    print(name)
"""
# They print, or open a browser.
_LOUD = {"antigravity", "this"}


def test_the_whole_standard_library_is_there(tool):
  """All that this interpreter can import, whoever may read its files."""
  public = {n for n in sys.stdlib_module_names if not n.startswith("_")}
  program = _IMPORT_ALL.format(names=sorted(public - _LOUD))
  command = [sys.executable, "-S", "-s", "-P", "-c", program]
  outside = subprocess.run(
    command, capture_output=True, encoding="utf-8", check=True
  )
  missing = outside.stdout.split()
  assert len(public) - len(missing) > 150
  inside = tool.call(program).text
  assert inside == ("\n".join(missing) or "[no output]")


@pytest.mark.parametrize(
  "program",
  [
    "import os; os.fork()",
    "import os; os.system('true') and 1 / 0",
    "open('/file', 'w').write('x')",
    "open('file', 'w').write('x' * 10**8)",
    "import os; [os.open('/dev/null', 0) for _ in range(100)]",
    "import os; os.write(5, b'x')",
    "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
  ],
)
def test_limits(tool, program: str):
  assert tool.call(program).status is ToolStatus.ERROR
  assert tool.call("print(1)").text == "1"


def test_output_is_cut_and_said(tool):
  for program in ("print('x' * 10**6)", "while True: print('x' * 100)"):
    result = tool.call(program)
    assert result.status is ToolStatus.ERROR
    assert result.text.startswith("x" * 100)
    assert result.text.endswith("[cut: more than 2000 bytes of output]")
    assert len(result.text) < MAX_OUTPUT_BYTES + 100
  assert len(tool.call(f"print('x' * {MAX_OUTPUT_BYTES - 1})").text) == 1_999
  # The value's mark does not count.
  whole = f"print('x' * {MAX_OUTPUT_BYTES - 3})\n5"
  assert tool.call(whole).text == "x" * (MAX_OUTPUT_BYTES - 3) + "\n5"


def test_output_is_not_cut_within_a_character(tool):
  text = tool.call("print('x' + '東' * 10**4)").text
  assert text.startswith("x東")
  assert text.endswith("東\n[cut: more than 2000 bytes of output]")


@pytest.mark.parametrize(
  "program",
  [
    "while True: pass",
    "import time\nprint('early')\ntime.sleep(60)",
    "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass",
  ],
)
def test_deadline(hasty_tool, program: str):
  start = time.monotonic()
  result = hasty_tool.call(program)
  assert time.monotonic() - start < TIMEOUT_S + 3
  assert result.status is ToolStatus.TIMEOUT
  assert "longer than 1 s" in result.text
  assert hasty_tool.call("print(1)").text == "1"


def test_what_was_printed_before_the_deadline_stays(hasty_tool):
  text = hasty_tool.call("print('before')\nwhile True: pass").text
  late = "TimeoutError: the program ran longer than 1 s."
  assert text == f"before\n{late}"
  text = hasty_tool.call(
    "import sys, time\nprint('before', end='', flush=False)\n"
    "print('x', file=sys.stderr)\ntime.sleep(60)"
  ).text
  assert text == f"before\nx\n{late}"


def test_calls_share_nothing(tool):
  tool.call_batch(["import math\nmath.pi = 3\nx = 1"] * 4)
  results = tool.call_batch(
    ["import math\nprint(math.pi > 3, 'x' in dir())"] * 4
  )
  assert {r.text for r in results} == {"True False"}


def test_output_depends_on_the_program_alone(tool):
  program = "import random\nprint(random.random(), set('abcdef'), hash('a'))"
  assert len({r.text for r in tool.call_batch([program] * 8)}) == 1


def test_programs_run_at_the_same_time():
  with tools.PythonTool(timeout_s=20, num_workers=4) as tool:
    tool.call_batch(["1"] * 8)
    start = time.monotonic()
    tool.call_batch(["import time\ntime.sleep(1)"] * 4)
    assert time.monotonic() - start < 3


def read(path: str) -> str:
  """A file of /proc; nothing where its process or thread has ended."""
  try:
    return pathlib.Path(path).read_text(encoding="utf-8")
  except (FileNotFoundError, ProcessLookupError):
    return ""


def servers_of(pid: int) -> list[int]:
  children = [
    int(child)
    for task in os.listdir(f"/proc/{pid}/task")
    for child in read(f"/proc/{pid}/task/{task}/children").split()
  ]
  return [c for c in children if "python_server" in read(f"/proc/{c}/cmdline")]


def wait_until_gone(pids: list[int]) -> None:
  deadline = time.monotonic() + 10
  while any(pathlib.Path(f"/proc/{p}/cwd").exists() for p in pids):
    assert time.monotonic() < deadline, pids
    time.sleep(0.02)


def test_a_killed_server_is_replaced():
  before = set(servers_of(os.getpid()))
  with tools.PythonTool(timeout_s=20, num_workers=1) as tool:
    tool.call("1")  # by now it has started
    (server,) = set(servers_of(os.getpid())) - before
    os.kill(server, signal.SIGKILL)
    wait_until_gone([server])
    assert tool.call("print(1)").text == "1"

    (server,) = set(servers_of(os.getpid())) - before
    timer = threading.Timer(0.5, os.kill, (server, signal.SIGKILL))
    timer.start()
    result = tool.call("import time\ntime.sleep(10)")
    # The system's fault, and not the program's.
    assert result.status is ToolStatus.FAILED
    assert "killed" in result.text
    assert tool.call("print(2)").text == "2"
    (server,) = set(servers_of(os.getpid())) - before
  wait_until_gone([server])


def test_a_stopped_server_counts_as_a_timeout(monkeypatch):
  monkeypatch.setattr("rapo_jax.tools.python._GRACE_S", 0.1)
  before = set(servers_of(os.getpid()))
  with tools.PythonTool(timeout_s=0.5, num_workers=1) as tool:
    tool.call("1")  # by now it has started
    (server,) = set(servers_of(os.getpid())) - before
    (zygote,) = servers_of(server)
    os.kill(zygote, signal.SIGSTOP)
    assert tool.call("import time\ntime.sleep(9)").status is ToolStatus.TIMEOUT
    assert tool.call("print(1)").text == "1"
  wait_until_gone([server, zygote])


def test_programs_may_use_threads_and_a_folder(tool):
  assert tool.call("""
from concurrent.futures import ThreadPoolExecutor
with open("x", "w") as file:
  file.write("a")
with ThreadPoolExecutor(4) as pool:
  print(sum(pool.map(len, ["ab"] * 8)), open("/tmp/x").read())
""") == tools.ToolResult("16 a", ToolStatus.OK)


def test_without_a_wall_programs_are_refused_or_trusted(monkeypatch, caplog):
  def refused(pid: int) -> None:
    raise PermissionError(1, "Operation not permitted")

  monkeypatch.setattr("rapo_jax.tools.python_wall.map_ids", refused)
  with pytest.raises(tools.PythonWallError, match="trust_code=true"):
    tools.PythonTool(num_workers=1)
  with tools.PythonTool(num_workers=1, trust_code=True) as tool:
    assert tool.call("print(6 * 7)").text == "42"
    assert tool.call("import os; os.fork()").status is ToolStatus.ERROR
  (record,) = [r for r in caplog.records if "no wall" in r.message]
  assert record.levelname == "WARNING"


def test_the_active_layers_are_logged(caplog):
  with caplog.at_level("INFO"), tools.PythonTool(num_workers=1):
    (record,) = [r for r in caplog.records if "python tool" in r.message]
  for layer in ("namespaces", "read-only root", "filter", "limits"):
    assert layer in record.message


OWNER = """
import os, time
from rapo_jax.tools import PythonTool
tool = PythonTool(timeout_s=60, num_workers=2)
{fork}print(tool.call("print(1)").text, flush=True)
tool.call("import time\\ntime.sleep(60)")
"""


@pytest.mark.parametrize(
  "argument",
  ["\n" * 10**6 + "1", "```" + " " * 10**6 + "x y", " \x0b" * 10**6 + "1"],
  ids=["blank lines", "a long fence", "vertical tabs"],
)
def test_time_to_read_an_argument_grows_with_its_length(tool, argument: str):
  # A regular expression holds every thread of the trainer.
  start_s = time.thread_time()
  tool.call(argument)
  assert time.thread_time() - start_s < 2


SIGNALS = """
import signal, sys
from rapo_jax.tools import PythonTool
if sys.argv[1] == "ignored":
  for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGXCPU):
    signal.signal(number, signal.SIG_IGN)
else:
  signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
with PythonTool(timeout_s=20, num_workers=1) as tool:
  print([tool.call(f"print({n})").text for n in range(3)])
"""


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_signals_of_the_trainer_are_not_those_of_a_server(how: str):
  done = subprocess.run(
    [sys.executable, "-c", SIGNALS, how],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    encoding="utf-8",
    check=False,
  )
  assert done.stdout == "['0', '1', '2']\n", done.stderr


DESCRIPTORS = """
import os
held = []
for number in range(10_000):
  try:
    os.fstat(number)
    held.append(number)
  except OSError:
    pass
print(held)
"""


@pytest.fixture
def few_or_many_descriptors() -> Iterator[None]:
  before = resource.getrlimit(resource.RLIMIT_NOFILE)
  yield
  resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_or_many_descriptors")
def test_a_trainer_with_many_open_files_hands_none_of_them_on():
  hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
  if hard < 6_000:
    pytest.skip("this machine allows a process fewer than 6,000 files")
  resource.setrlimit(resource.RLIMIT_NOFILE, (6_000, hard))
  with contextlib.ExitStack() as stack:
    for _ in range(4_200):
      stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
    with tools.PythonTool(timeout_s=20, num_workers=1) as tool:
      assert tool.call(DESCRIPTORS).text == "[0, 1, 2]"


@pytest.mark.usefixtures("few_or_many_descriptors")
def test_a_trainer_without_descriptors_loses_none():
  hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
  with tools.PythonTool(timeout_s=20, num_workers=1) as tool:
    tool.call("1")
    before = len(os.listdir("/proc/self/fd"))
    next_free = os.dup(0)
    os.close(next_free)
    # Room for two pipes of the three.
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free + 4, hard))
    for _ in range(3):
      with pytest.raises(OSError, match="Too many open files"):
        tool.call("print(1)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert len(os.listdir("/proc/self/fd")) == before
    assert tool.call("print(1)").text == "1"


def test_a_program_begins_though_another_process_holds_its_pipe(monkeypatch):
  held = []

  def close_program(ends) -> None:
    held.append(os.dup(ends.program))  # As a fork of the trainer does.
    ends._close(ends.program)

  monkeypatch.setattr(
    "rapo_jax.tools.python._Ends.close_program", close_program
  )
  with tools.PythonTool(timeout_s=5, num_workers=1) as tool:
    assert tool.call("print(1)").text == "1"
  os.close(held.pop())


def test_processor_time_used_up_by_threads_is_a_timeout(monkeypatch):
  real = python_server.Settings

  def settings(**values):
    return real(**{**values, "cpu_s": 1})

  monkeypatch.setattr("rapo_jax.tools.python.python_server.Settings", settings)
  with tools.PythonTool(timeout_s=60, num_workers=1) as tool:
    result = tool.call("print(1, flush=True)\nwhile True: pass")
  assert result.status is ToolStatus.TIMEOUT
  assert result.text.startswith("1\nTimeoutError")


def test_a_program_has_as_many_threads_as_its_limit(tool):
  # An arena of 64 MiB for each would use up the address space.
  assert tool.call("""
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
barrier = Barrier(16)
with ThreadPoolExecutor(16) as pool:
  print(len(set(pool.map(lambda _: barrier.wait(10), range(16)))))
""") == tools.ToolResult("16", ToolStatus.OK)


@pytest.mark.parametrize("heir", [False, True])
def test_servers_die_with_their_parent(heir: bool):
  # A process that the trainer forked holds the pipes, too.
  fork = "if not os.fork(): time.sleep(12); os._exit(0)\n"
  owner = subprocess.Popen(
    [sys.executable, "-c", OWNER.format(fork=fork if heir else "")],
    cwd=pathlib.Path(__file__).parents[2],
    stdout=subprocess.PIPE,
  )
  assert owner.stdout is not None
  assert owner.stdout.readline() == b"1\n"
  servers = servers_of(owner.pid)
  assert len(servers) == 2
  time.sleep(0.2)
  owner.kill()
  owner.wait()
  owner.stdout.close()
  wait_until_gone(servers)


def test_close():
  tool = tools.PythonTool(num_workers=1)
  tool.close()
  tool.close()
  with pytest.raises(RuntimeError, match="closed"):
    tool.call("1")


def test_callers_that_wait_at_close_are_woken(monkeypatch):
  tool = tools.PythonTool(timeout_s=20, num_workers=1)
  ends = []

  def call() -> None:
    try:
      ends.append(tool.call("1").text)
    except RuntimeError as error:
      ends.append(str(error))

  threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
  server = tool._idle.get()  # A call that runs.
  for thread in threads:
    thread.start()
  while len(tool._idle.not_empty._waiters) < len(threads):
    time.sleep(0.01)
  # Its worker goes to `close` before it goes to those who wait.
  monkeypatch.setattr(tool._idle, "get", lambda: server)
  tool.close()
  for thread in threads:
    thread.join(10)
  assert len(ends) == 8
  assert all("closed" in end for end in ends)


@pytest.mark.parametrize(
  "settings",
  [
    {"timeout_s": 0},
    {"memory_bytes": 2**20},
    {"max_output_bytes": 0},
    {"num_workers": 0},
  ],
)
def test_settings_out_of_range(settings):
  with pytest.raises(ValueError, match=str(next(iter(settings)))):
    tools.PythonTool(**settings)
