"""Hostile programs against the python tool: none gets out, and none stays."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax import tools
from rapo_jax.tools import ToolStatus
from tests.tools import hostile_programs

SHARED_KEY = 0x5241504F
FORMER = "former-secret-7141"
CANARY = "canary_93a7"
ABSTRACT = "\0rapo-hostile-test"
WORKERS = 4
NAMES = sorted(
  f"{group}: {name}"
  for group, members in hostile_programs.GROUPS.items()
  for name in members
)


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory) -> Iterator[dict[str, object]]:
  """What a program must not reach: files, ports, names, processes, memory."""
  folder = tmp_path_factory.mktemp("run")
  secret = folder / "trajectories.jsonl"
  secret.write_text("the ground truth", encoding="utf-8")
  # As little in the way as can be: what keeps it is the wall.
  for path in (folder, *folder.parents):
    if path.stat().st_uid == os.getuid() and path != pathlib.Path("/"):
      with contextlib.suppress(OSError):
        path.chmod(path.stat().st_mode | 0o755)
  secret.chmod(0o666)
  os.environ["RAPO_HOSTILE_TEST"] = CANARY
  libc = ctypes.CDLL(None)
  segment = libc.shmget(SHARED_KEY, 16, 0o1666)
  with (
    socket.create_server(("127.0.0.1", 0)) as server,
    socket.socket(socket.AF_UNIX) as abstract,
    subprocess.Popen(["sleep", "600"]) as victim,
  ):
    abstract.bind(ABSTRACT)
    abstract.listen()
    yield {
      "secret": str(secret),
      "folder": str(folder),
      "canary": CANARY,
      "backwards": FORMER[::-1],
      "further": "".join(chr(ord(letter) + 1) for letter in FORMER),
      "abstract": ABSTRACT,
      "pid": victim.pid,
      "port": server.getsockname()[1],
      "host": socket.gethostname(),
      "key": SHARED_KEY,
    }
    assert victim.poll() is None, "a program has killed another process"
    victim.kill()
  libc.shmctl(segment, 0, None)
  del os.environ["RAPO_HOSTILE_TEST"]


@pytest.fixture(scope="module")
def tool(surroundings) -> Iterator[tools.PythonTool]:
  with tools.PythonTool(
    timeout_s=1.0,
    memory_bytes=192 * 2**20,
    max_output_bytes=4_000,
    num_workers=WORKERS,
  ) as made:
    yield made


@pytest.fixture(scope="module")
def results(tool, surroundings) -> dict[str, list[tools.ToolResult]]:
  """Every program's result, and that of a plain one right behind it."""
  texts = hostile_programs.programs(**surroundings)
  assert sorted(texts) == NAMES

  def attack(name: str) -> list[tools.ToolResult]:
    # By the same server.
    imports = "import numpy\n" if "numpy" in texts[name] else ""
    tool.call(f"{imports}x = {FORMER!r}\nprint(x)\n")
    after = (
      "import os, math\nprint(sorted(os.listdir('.')), math.pi > 3, 6 * 7)"
    )
    return [tool.call(texts[name]), tool.call(after)]

  with ThreadPoolExecutor(WORKERS) as pool:
    return dict(zip(NAMES, pool.map(attack, NAMES), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_nothing_and_leaves_nothing(results, name: str):
  attacked, after = results[name]
  assert "ESCAPED" not in attacked.text, attacked.text
  assert attacked.status in (
    ToolStatus.OK,
    ToolStatus.ERROR,
    ToolStatus.TIMEOUT,
  )
  # Neither a lost server nor a reply of the program's own making.
  assert "interpreter was killed" not in attacked.text
  assert after == tools.ToolResult("[] True 42", ToolStatus.OK)


def test_there_are_many():
  assert len(NAMES) >= 60


@pytest.mark.parametrize(
  "name",
  [
    "reads: the ground truth",
    "reads: passwords",
    "reads: the environment",
    "reads: the machine's name",
    "processes: sees the trainer",
    "network: the trainer's port",
    "network: an abstract socket",
    "kernel: rights",
  ],
)
def test_without_a_wall_they_do_reach_it(surroundings, name: str):
  """The control: the programs would find what is there."""
  text = hostile_programs.programs(**surroundings)[name]
  done = subprocess.run(
    [sys.executable, "-c", text],
    capture_output=True,
    encoding="utf-8",
    check=False,
  )
  assert "ESCAPED" in done.stdout, done


def test_nothing_is_left_over(tool, results):
  """Neither processes nor files nor descriptors; a worker has two servers."""
  deadline = time.monotonic() + 5
  while len(descendants(os.getpid(), "python_server")) > 6 * WORKERS:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  for folder in ("/tmp", "/var/tmp", "/dev/shm"):
    assert not (pathlib.Path(folder) / "left").exists()
  left = [p for p in pathlib.Path("/dev/shm").glob("*") if CANARY in p.name]
  assert not left
  text = pathlib.Path("/proc/sysvipc/shm").read_text(encoding="ascii")
  assert " 4242 " not in text


def descendants(pid: int, word: str) -> list[int]:
  """Processes below one that were started by a command with a word in it."""
  found = []
  for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
    with contextlib.suppress(OSError):
      for child in (task / "children").read_text(encoding="ascii").split():
        command = pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
        found += [int(child)] if word.encode() in command else []
        found += descendants(int(child), word)
  return found


_AS_NOBODY = """
import json, os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from concurrent.futures import ThreadPoolExecutor
from rapo_jax.tools.python import PythonTool
programs = json.load(sys.stdin)
with PythonTool(timeout_s=2.0, num_workers=4) as tool:
  with ThreadPoolExecutor(4) as pool:
    answers = pool.map(lambda p: (tool.call(p), tool.call("6 * 7")), programs)
    print(json.dumps([[r.text for r in pair] for pair in answers]))
"""
_MODULES = (
  "base",
  "python",
  "python_server",
  "python_source",
  "python_wall",
  "tags",
)


@pytest.mark.skipif(os.getuid() != 0, reason="root alone becomes another user")
def test_an_ordinary_user_has_the_same_wall(surroundings):
  """By a Python and a copy of the tool that others may read."""
  texts = hostile_programs.programs(**surroundings)
  names = [n for n in NAMES if not n.startswith("bombs")]
  with tempfile.TemporaryDirectory(dir="/tmp") as folder:
    package = pathlib.Path(folder) / "rapo_jax" / "tools"
    package.mkdir(parents=True)
    for at in (package.parent, package):
      (at / "__init__.py").touch()
    source = pathlib.Path(__file__).parents[2] / "rapo_jax" / "tools"
    for name in _MODULES:
      shutil.copy(source / f"{name}.py", package)
    shutil.copy(source.parent / "errors.py", package.parent)
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    done = subprocess.run(
      [_python_of_others(), "-c", _AS_NOBODY],
      cwd=folder,
      input=json.dumps([texts[name] for name in names]),
      capture_output=True,
      text=True,
      encoding="utf-8",
      check=False,
    )
  assert done.returncode == 0, done.stderr
  for name, (attacked, after) in zip(
    names, json.loads(done.stdout), strict=True
  ):
    assert "ESCAPED" not in attacked, (name, attacked)
    assert "interpreter was killed" not in attacked, name
    assert after == "42", name


def _python_of_others() -> str:
  """A Python from 3.11 on that every user may run."""
  check = "import sys; sys.exit(sys.version_info < (3, 11))"
  for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
    with contextlib.suppress(OSError):
      found = subprocess.run(
        [python, "-c", check], user=65534, group=65534, check=False
      )
      if found.returncode == 0:
        return python
  pytest.skip("no Python from 3.11 on that other users may run")


@pytest.mark.slow
def test_ten_thousand_calls_lose_nothing_and_nothing_grows():
  with tools.PythonTool() as tool, ThreadPoolExecutor(16) as pool:
    list(pool.map(tool.call, ["1"] * 64))
    before = _settled(os.getpid())
    texts = pool.map(
      lambda n: tool.call(f"open('x', 'w').write('y')\nprint({n} ** 2)").text,
      range(10_000),
    )
    assert list(texts) == [str(n**2) for n in range(10_000)]
    after = _settled(os.getpid())
  assert after["descriptors"] == before["descriptors"]
  assert after["processes"] == before["processes"]
  assert after["threads"] == before["threads"]
  assert after["memory"] < before["memory"] + 32 * 2**20


def _settled(pid: int) -> dict[str, int]:
  """`_size`, once the process that ran the last program is replaced."""
  seen: list[int] = []
  while len(seen) < 5 or len(set(seen[-5:])) > 1:
    time.sleep(0.1)
    seen.append(_size(pid)["processes"])
  return _size(pid)


def _size(pid: int) -> dict[str, int]:
  """What this process and its servers hold."""
  servers = descendants(pid, "python_server")
  status = [
    pathlib.Path(f"/proc/{p}/statm").read_text(encoding="ascii").split()
    for p in (pid, *servers)
  ]
  return {
    "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    "processes": len(servers),
    "threads": len(os.listdir(f"/proc/{pid}/task")),
    "memory": 4096 * sum(int(pages[1]) for pages in status),
  }
