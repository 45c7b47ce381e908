"""Texts embedded a second, beside sentence-transformers on torch.

    .venv/bin/python -m benchmarks.encoder

MiniLM-L6-v2, float32, one core. A batch has 64 texts of English words of one
wordpiece each. Their lengths are spread evenly from 8 to 256 wordpieces, like
keys of histories from the first step to the last. Both run in turns, one
process each, with nothing in a cache; compiling does not count.

`largest_difference` is that of any element of a vector of either.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import peers
from rapo_jax.retrieval.encoder import sentence_folder

_WORKERS = pathlib.Path(__file__).resolve().parent / "encoder_peers"
_PEER = "sentence_transformers"
_SCRIPTS = {
  peers.OURS: "ours.py",
  _PEER: "sentence_transformers_encode.py",
}
_TARGET = 1.0
_MIN_TOKENS, _MAX_TOKENS = 8, 256
_SPECIAL_TOKENS = 2


def make_batches(model: pathlib.Path, batches: int, rows: int) -> list:
  """Texts of the wanted lengths, no two alike."""
  tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
  words = [
    w for w in tokenizer["model"]["vocab"] if w.isalpha() and w.isascii()
  ]
  rng = np.random.default_rng(0)
  lengths = np.linspace(_MIN_TOKENS, _MAX_TOKENS, rows).astype(int)
  return [
    [
      " ".join(rng.choice(words, size=length - _SPECIAL_TOKENS))
      for length in rng.permutation(lengths)
    ]
    for _ in range(batches)
  ]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batches", type=int, default=4)
  parser.add_argument("--rows", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--core", type=int, default=0)
  arguments = parser.parse_args()
  model = sentence_folder.default_path()
  with tempfile.TemporaryDirectory() as path:
    batches = pathlib.Path(path) / "batches.json"
    batches.write_text(
      json.dumps(make_batches(model, arguments.batches, arguments.rows)),
      encoding="utf-8",
    )
    workers = {
      name: peers.Worker(
        name, _WORKERS / script, model, batches, cores=[arguments.core]
      )
      for name, script in _SCRIPTS.items()
    }
    first = {name: worker.run("vectors") for name, worker in workers.items()}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for worker in workers.values():
      worker.run("encode")
    for turn in range(arguments.repeats):
      for name, worker in workers.items():
        turns[name].append(worker.run("encode"))
        print(turn, name, turns[name][-1], file=sys.stderr)
    for worker in workers.values():
      worker.close()
  ours, theirs = (np.asarray(first[n]["result"]) for n in _SCRIPTS)
  texts = arguments.batches * arguments.rows
  report = {
    "benchmark": "encoder",
    "unit": "texts/s",
    "batch": arguments.rows,
    "tokens": [_MIN_TOKENS, _MAX_TOKENS],
    "target": _TARGET,
    "largest_difference": float(np.abs(ours - theirs).max()),
    # Of the process, which another process on the core does not lengthen.
    "by_cpu_time": _figures(turns, texts, "cpu_seconds"),
    "by_wall_time": _figures(turns, texts, "seconds"),
    "versions": {n: answer["versions"] for n, answer in first.items()},
  }
  print(json.dumps(report))


def _figures(
  turns: dict[str, list[dict[str, Any]]], texts: int, clock: str
) -> dict[str, Any]:
  medians = peers.medians(turns, clock)
  seconds = [[run[clock] for run in runs] for runs in turns.values()]
  return {
    "texts_per_s": {n: round(texts / s, 1) for n, s in medians.items()},
    "ours_over": round(medians[_PEER] / medians[peers.OURS], 3),
    "spread": [round(max(s) / min(s) - 1, 3) for s in seconds],
  }


if __name__ == "__main__":
  main()
