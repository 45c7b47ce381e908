"""Opening a Step-Trace Buffer of the paper's size: time and memory.

    .venv/bin/python -m benchmarks.buffer_open

Writes a buffer of 169,489 traces, once, to `.cache/benchmarks`: questions of 18
words with five trajectories of 3 or 4 steps each, steps of some 90 wordpieces,
one agent. Embedding is not measured, so the keys' vectors are made up: those of
one question lie close together. Then processes of their own open it one after
another, each with the real encoder, and read:

- `open_s`: `StepTraceBuffer.load`, checksums of all files included;
  `open_without_checksums_s` compares sizes alone. The files are in the page
  cache.
- `resident_mb`: of the whole process after that, and what of it was there
  `before_mb`: Python, JAX, ScaNN and the encoder's weights.
- `step_ms`: to read the text of a trace that no other is near to, the median of
  200; `hit_ms` to read one again.

Targets: opened in at most 2 s with at most 500 MB resident.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from rapo_jax import retrieval
from rapo_jax.retrieval.buffer import store

_CACHE = pathlib.Path(".cache/benchmarks")
_TARGET_S = 2.0
_TARGET_MB = 500
_LOOKS = 200
_TRAJECTORIES = 5


class _MadeUpVectors(retrieval.SentenceEncoder):
  """The encoder, but for its vectors."""

  parts = np.random.default_rng(0).standard_normal((2, 8192, 384), np.float32)

  def words(self) -> list[str]:
    """Words of the tokenizer's vocabulary."""
    vocabulary = self._tokenizer.get_vocab()
    return sorted(w for w in vocabulary if len(w) > 2 and w.isalpha())

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    centres = [zlib.crc32(t.partition("\n")[0].encode()) % 8192 for t in texts]
    own = [zlib.crc32(t.encode()) % 8192 for t in texts]
    vectors = self.parts[0, centres] + 0.5 * self.parts[1, own]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_traces(
  num_traces: int, words: Sequence[str]
) -> Iterator[retrieval.StepTrace]:
  """Steps of random words, cut into trajectories."""
  rng = random.Random(0)
  made = trajectories = 0
  while made < num_traces:
    if trajectories % _TRAJECTORIES == 0:
      question = " ".join(rng.choices(words, k=18)) + "?"
    steps = [
      f"<think> {' '.join(rng.choices(words, k=30))} </think><search>"
      f" {' '.join(rng.choices(words, k=6))} </search><result>"
      f" {' '.join(rng.choices(words, k=50))} </result>"
      for _ in range(3 + (rng.random() < 0.39))
    ][: num_traces - made]
    yield from retrieval.step_traces(
      question,
      steps,
      reward=rng.random(),
      source="made_up",
      query_id=f"q{trajectories // _TRAJECTORIES}",
      first_trace_id=made,
    )
    made += len(steps)
    trajectories += 1


def make_buffer(directory: pathlib.Path, num_traces: int) -> None:
  """Writes the buffer, unless it is there."""
  if directory.exists():
    return
  print(f"writing {directory}", file=sys.stderr)
  encoder = _MadeUpVectors.from_pretrained()
  directory.parent.mkdir(parents=True, exist_ok=True)
  writer = retrieval.BufferWriter(directory, encoder, resume=True)
  traces = list(make_traces(num_traces, encoder.words()))
  writer.add(traces[writer.num_traces :])
  writer.finish(lambda share, text: print(text, file=sys.stderr))


def resident_mb() -> float:
  """Resident memory of this process, mapped files included."""
  for line in (
    pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
  ):
    if line.startswith("VmRSS"):
      return int(line.split()[1]) / 1024
  raise RuntimeError("/proc/self/status has no VmRSS; this needs Linux.")


def open_once(directory: pathlib.Path, checksums: bool) -> dict[str, float]:
  """Opens the buffer in this process; returns what it took."""
  encoder = retrieval.SentenceEncoder.from_pretrained()
  # The first index, however small, loads all that ScaNN needs.
  retrieval.index_class().build(np.eye(2, dtype=np.float32))
  before = resident_mb()
  began = time.perf_counter()
  buffer = retrieval.StepTraceBuffer.load(
    directory, encoder, checksums=checksums
  )
  seconds = time.perf_counter() - began
  after = resident_mb()
  rng = np.random.default_rng(0)
  rows = rng.choice(len(buffer), size=_LOOKS, replace=False).tolist()

  def look(row: int) -> float:
    began = time.perf_counter()
    assert buffer.traces[row].step
    return 1e3 * (time.perf_counter() - began)

  return {
    "open_s": seconds,
    "before_mb": before,
    "resident_mb": after,
    "step_ms": statistics.median(look(row) for row in rows),
    "hit_ms": statistics.median(look(rows[-1]) for _ in range(_LOOKS)),
    "resident_after_looks_mb": resident_mb(),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--traces", type=int, default=169_489)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--child", choices=("checksums", "sizes"))
  arguments = parser.parse_args()
  directory = _CACHE / f"buffer_open_{arguments.traces}"
  if arguments.child:
    print(json.dumps(open_once(directory, arguments.child == "checksums")))
    return
  make_buffer(directory, arguments.traces)
  manifest = store.read_manifest(directory)

  def opened(how: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.buffer_open", "--child", how]
    done = subprocess.run(
      [*command, "--traces", str(arguments.traces)],
      check=True,
      stdout=subprocess.PIPE,
      encoding="utf-8",
    )
    return json.loads(done.stdout)

  runs: dict[str, list[dict[str, float]]] = {"checksums": [], "sizes": []}
  for number in range(arguments.repeats + 1):
    for how, results in runs.items():
      result = opened(how)
      if number:  # The first one brings the files into the page cache.
        results.append(result)

  def median(name: str, how: str = "checksums") -> float:
    return round(statistics.median(r[name] for r in runs[how]), 2)

  seconds = [r["open_s"] for r in runs["checksums"]]
  print(
    json.dumps(
      {
        "benchmark": "buffer_open",
        "unit": "s and MB",
        "traces": manifest.num_traces,
        "keys": manifest.num_keys,
        "index": manifest.index["kind"],
        "files_mb": {
          name: round(file.bytes / 1e6, 1)
          for name, file in manifest.files.items()
        },
        "open_s": median("open_s"),
        "open_s_range": [round(min(seconds), 2), round(max(seconds), 2)],
        "open_without_checksums_s": median("open_s", "sizes"),
        "before_mb": median("before_mb"),
        "resident_mb": median("resident_mb"),
        "resident_after_looks_mb": median("resident_after_looks_mb"),
        "step_ms": median("step_ms"),
        "hit_ms": median("hit_ms"),
        "target_s": _TARGET_S,
        "target_mb": _TARGET_MB,
        "repeats": arguments.repeats,
        "python": platform.python_version(),
      }
    )
  )


if __name__ == "__main__":
  main()
