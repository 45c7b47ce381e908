"""Latency and leaks of calls of the python tool.

  python -m benchmarks.python_tool

Plain programs, programs that use NumPy and programs that use SymPy: one at a
time, and with 16 callers at once, after a warm-up. The peer runs the same
programs by `python -c`, as many at once; nothing is kept in there. Then 10,000
calls by 16 callers: none may be lost, and nothing may have grown after them.
Run it on a machine that is otherwise idle. Targets: a median of 20 ms with 16
callers on two cores, and a tenth of the peer's.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rapo_jax.tools import PythonTool, ToolStatus

CALLERS = 16
PROGRAM = "x = {n} * 23 % 97\nprint(x)"
PROGRAMS = {
  "plain": PROGRAM,
  "numpy": (
    "import numpy as np\na = np.arange(9.0).reshape(3, 3) + {n} * np.eye(3)\n"
    "print(np.linalg.det(a))"
  ),
  "sympy": (
    "from sympy import symbols, solve\nx = symbols('x')\n"
    "print(solve(x**2 - {n} * x + 2, x))"
  ),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--calls", type=int, default=500, help="to be timed")
  parser.add_argument("--soak", type=int, default=10_000, help="to be counted")
  known = parser.parse_args()
  began = time.perf_counter()
  with PythonTool() as tool, ThreadPoolExecutor(CALLERS) as pool:
    tool.call("1")
    start_ms = 1e3 * (time.perf_counter() - began)
    measured = {
      kind: _measured(tool, pool, program, known.calls)
      for kind, program in PROGRAMS.items()
    }
    before = _held()
    answers = list(
      pool.map(lambda n: tool.call(PROGRAM.format(n=n)), range(known.soak))
    )
    after = _held()
  lost = sum(
    answer.status is not ToolStatus.OK or answer.text != str(n * 23 % 97)
    for n, answer in enumerate(answers)
  )
  print(
    json.dumps(
      {
        "benchmark": "python_tool",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "start_ms": round(start_ms, 1),
        "callers": CALLERS,
        **measured,
        "soak_calls": known.soak,
        "lost": lost,
        "growth": {name: after[name] - before[name] for name in before},
      }
    )
  )


def _measured(
  tool: PythonTool, pool: ThreadPoolExecutor, program: str, calls: int
) -> dict[str, Any]:
  """Milliseconds of calls of one kind, and of the peer's."""

  def ours(n: int) -> float:
    began = time.perf_counter()
    result = tool.call(program.format(n=n))
    assert result.status is ToolStatus.OK, result
    return 1e3 * (time.perf_counter() - began)

  def peer(n: int) -> float:
    began = time.perf_counter()
    subprocess.run(
      [sys.executable, "-c", program.format(n=n)],
      stdout=subprocess.DEVNULL,
      check=True,
    )
    return 1e3 * (time.perf_counter() - began)

  list(pool.map(ours, range(8 * CALLERS)))
  alone = [ours(n) for n in range(calls)]
  began = time.perf_counter()
  together = list(pool.map(ours, range(calls)))
  each_ms = 1e3 * (time.perf_counter() - began) / calls
  beside = list(pool.map(peer, range(max(2 * CALLERS, calls // 5))))
  return {
    "alone_ms": _quantiles(alone),
    "together_ms": _quantiles(together),
    "a_call_ms": round(each_ms, 2),
    "python_c_together_ms": _quantiles(beside),
    "times_faster": round(
      statistics.median(beside) / statistics.median(together), 1
    ),
  }


def _quantiles(values: list[float]) -> dict[str, float]:
  cuts = statistics.quantiles(values, n=100)
  return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2)}


def _held() -> dict[str, int]:
  """What this process and those below it hold."""
  pids = [os.getpid()]
  for pid in pids:
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
      pids += [int(p) for p in task.read_text(encoding="ascii").split()]
  pages = [
    int(pathlib.Path(f"/proc/{p}/statm").read_text(encoding="ascii").split()[1])
    for p in pids
  ]
  return {
    "processes": len(pids),
    "descriptors": len(os.listdir("/proc/self/fd")),
    "resident_mb": round(sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20),
  }


if __name__ == "__main__":
  main()
