"""Round trip of a call of the python tool.

  python -m benchmarks.python_tool

Run it on a machine that is otherwise idle. Targets: 3 ms a call.
"""

from __future__ import annotations

import json
import os
import platform
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
  print(
    json.dumps(
      {
        "benchmark": "python_tool",
        "unit": "ms a call",
        "calls": NUM_CALLS,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "one_at_a_time_p50": round(cuts[49], 2),
        "one_at_a_time_p99": round(cuts[98], 2),
        "in_a_batch": round(batch_ms, 2),
      }
    )
  )


if __name__ == "__main__":
  main()
