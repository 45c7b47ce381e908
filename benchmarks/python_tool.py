"""Latency and leaks of calls of the python tool.

  python -m benchmarks.python_tool

One at a time, and with 16 callers at once, after a warm-up; then 10,000 calls
by 16 callers. No call may be lost, and nothing may have grown after them.
Run it on a machine that is otherwise idle. Target: a median of 20 ms with 16
callers on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from rapo_jax.tools import PythonTool, ToolStatus

CALLERS = 16
PROGRAM = "x = {n} * 23 % 97\nprint(x)"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--calls", type=int, default=500, help="to be timed")
  parser.add_argument("--soak", type=int, default=10_000, help="to be counted")
  known = parser.parse_args()
  began = time.perf_counter()
  with PythonTool() as tool, ThreadPoolExecutor(CALLERS) as pool:
    tool.call("1")
    start_ms = 1e3 * (time.perf_counter() - began)
    list(pool.map(tool.call, ["1"] * 8 * CALLERS))
    alone = [_timed(tool, n) for n in range(known.calls)]
    began = time.perf_counter()
    together = list(pool.map(lambda n: _timed(tool, n), range(known.calls)))
    each_ms = 1e3 * (time.perf_counter() - began) / known.calls
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
        "alone_ms": _quantiles(alone),
        "callers": CALLERS,
        "together_ms": _quantiles(together),
        "throughput_ms_a_call": round(each_ms, 2),
        "soak_calls": known.soak,
        "lost": lost,
        "growth": {name: after[name] - before[name] for name in before},
      }
    )
  )


def _timed(tool: PythonTool, n: int) -> float:
  start = time.perf_counter()
  tool.call(PROGRAM.format(n=n))
  return 1e3 * (time.perf_counter() - start)


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
