"""Round trip of a call of the python tool.

  python -m benchmarks.python_tool

Run it on a machine that is otherwise idle. Targets: 3 ms a call.
"""

from __future__ import annotations

import statistics
import time

from rapo_jax.tools import PythonTool

NUM_CALLS = 500
PROGRAM = "x = 17 * 23 % 97\nprint(x)"


def main() -> None:
  with PythonTool() as tool:
    tool.call_batch([PROGRAM] * 40)
    latencies_ms = []
    for _ in range(NUM_CALLS):
      start = time.perf_counter()
      tool.call(PROGRAM)
      latencies_ms.append(1e3 * (time.perf_counter() - start))
    start = time.perf_counter()
    tool.call_batch([PROGRAM] * NUM_CALLS)
    batch_ms = 1e3 * (time.perf_counter() - start) / NUM_CALLS
  cuts = statistics.quantiles(latencies_ms, n=100)
  print(f"one at a time: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms a call")
  print(f"in a batch:    {batch_ms:.2f} ms a call")


if __name__ == "__main__":
  main()
