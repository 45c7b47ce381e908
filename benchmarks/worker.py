"""The other end of `benchmarks.peers`: runs what standard input asks for.

Imports nothing that is not in every peer's environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def serve(
  make_functions: Callable[[], Mapping[str, Callable[[], Any]]],
  versions: Mapping[str, str],
) -> None:
  """Answers until standard input ends: one run and one JSON line a line.

  Args:
    make_functions: sets up and returns what can be run, by the word that asks
      for it. A function waits for its device and returns what JSON can hold.
    versions: of what matters.
  """
  # Libraries print; the driver reads this stream alone.
  answers, sys.stdout = sys.stdout, sys.stderr
  functions = make_functions()
  for line in sys.stdin:
    began, cpu_began = time.perf_counter(), time.process_time()
    result = functions[line.strip()]()
    answer = {
      "seconds": time.perf_counter() - began,
      "cpu_seconds": time.process_time() - cpu_began,
      "result": result,
      "versions": versions,
    }
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
