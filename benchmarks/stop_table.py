"""Memory and build time of the table that recognises stop strings.

  python -m benchmarks.stop_table

Builds the table of the tags that end a step with all tools. The vocabularies
have Llama 2's and Qwen2.5-7B's size. Token lengths are geometric with a mean of
5.5 bytes, and one token has 128 bytes. An eighth of all tokens begin with a
part of a tag. Prints one JSON line: bytes of the table, and medians of the
seconds that it took.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import numpy as np

from rapo_jax.rollout import automaton
from rapo_jax.tools import TagSet

VOCABULARIES = (32_000, 152_064)
STOP_STRINGS = TagSet(("search", "python", "open")).stop_strings


def vocabulary(size: int) -> list[bytes]:
  """Random printable tokens, some of which begin with a part of a tag."""
  rng = np.random.default_rng(0)
  lengths = np.minimum(rng.geometric(1 / 5.5, size), 64)
  tokens = [
    rng.integers(32, 127, n).astype(np.uint8).tobytes() for n in lengths
  ]
  for index in range(0, size, 8):
    stop = STOP_STRINGS[index // 8 % len(STOP_STRINGS)].encode()
    begin, end = sorted(rng.integers(0, len(stop) + 1, 2))
    tokens[index] = stop[begin:end] + tokens[index]
  tokens[-1] = b" " * 128
  return tokens


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--repeats", type=int, default=5)
  known = parser.parse_args()
  report = {}
  for size in VOCABULARIES:
    tokens = vocabulary(size)
    seconds = []
    for _ in range(known.repeats + 1):
      began = time.perf_counter()
      built = automaton.stop_automaton(STOP_STRINGS, tokens)
      seconds.append(time.perf_counter() - began)
    report[str(size)] = {
      "table_bytes": built.num_bytes,
      "states": len(built.table),
      "state_dtype": str(built.table.dtype),
      "build_seconds": round(statistics.median(seconds[1:]), 4),
      "build_seconds_slowest": round(max(seconds[1:]), 4),
    }
  print(
    json.dumps(
      {
        "benchmark": "stop_table",
        "stop_strings": STOP_STRINGS,
        "repeats": known.repeats,
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "vocabularies": report,
      }
    )
  )


if __name__ == "__main__":
  main()
