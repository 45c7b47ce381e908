"""The index beside FAISS's HNSW, and its recall on real text.

    .venv/bin/python -m benchmarks.index --data ../shared/data
    .venv/bin/python -m benchmarks.index --data ../shared/data --text
    .venv/bin/python -m benchmarks.index --workers ours --vectors 1000000

The 169,489 vectors are as many as the paper's buffer has step traces. They lie
in bundles around 10,000 keys of real text (see `index_vectors`). Queries lie
around the same keys and differ from all vectors. The keys are made from the
data sets in the folder (see `index_texts`) and embedded by MiniLM; their
vectors are kept under `.cache`. Without a folder random ones take their place.

Ours and FAISS (M 32, efConstruction 200, efSearch 128) run in turns, one
process each, on one core. Recall is against exact search. `held_mb` is the
index's memory that no file backs. `peak_mb` is the most while it was built,
pages of the file of vectors included. `loaded` is a process that has only read
the index back.

With `--text` the index holds 20,000 of 21,000 keys as they are, and the queries
are 1,000 waiting histories: keys of the 21,000 in other words.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import random
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks import index_texts, index_vectors, peers
from rapo_jax import retrieval

_WORKERS = pathlib.Path(__file__).resolve().parent / "index_peers"
_SCRIPTS = {peers.OURS: "ours.py", "faiss": "faiss_hnsw.py"}
_TARGETS = {
  "recall_at_1": 0.99,
  "queries_per_s_over_faiss": 2.0,
  "build_over_faiss": 0.25,
}
_TEXT_TARGET = 0.97
_CACHE = peers.ROOT / ".cache" / "benchmarks" / "index"
_DIMENSION = 384
_CHUNK = 1_000
_HISTORIES = 21_000
_ROWS = 2**14
_TEXT_QUERIES = 1_000
_HISTORY_SEED, _KEY_SEED, _QUERY_SEED, _ROWS_SEED = range(4)


def _embedded(
  encoder: retrieval.SentenceEncoder, texts: list[str]
) -> np.ndarray:
  """Vectors of texts, in chunks that are kept for the next run."""
  _CACHE.mkdir(parents=True, exist_ok=True)
  chunks = []
  for start in range(0, len(texts), _CHUNK):
    chunk = texts[start : start + _CHUNK]
    digest = hashlib.sha256(encoder.sha256.encode())
    digest.update("\0".join(chunk).encode())
    path = _CACHE / f"{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
      print(f"embedding {start} of {len(texts)}", file=sys.stderr)
      np.save(path, encoder.encode(chunk))
    chunks.append(np.load(path))
  return np.concatenate(chunks)


def _texts(
  histories: list[index_texts.History],
  seed: int,
  encoder: retrieval.SentenceEncoder,
) -> list[str]:
  """What is embedded of histories, in words drawn from a seed."""
  rng = random.Random(seed)
  return [
    retrieval.key_text(h.source.question, h.steps(rng), encoder)
    for h in histories
  ]


def _histories(arguments: argparse.Namespace) -> list[index_texts.History]:
  rng = random.Random(_HISTORY_SEED)
  return index_texts.read_histories(arguments.data, _HISTORIES, rng)


def _write_moved(
  path: pathlib.Path, keys: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
  """Writes vectors of bundles around the keys; maps the file."""
  vectors = np.lib.format.open_memmap(
    path, "w+", np.float32, (count, _DIMENSION)
  )
  start = 0
  for chunk in index_vectors.moved(keys, count, rng):
    vectors[start : start + len(chunk)] = chunk
    start += len(chunk)
  return vectors


def _nearest(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
  """Exact search, in chunks. Returns [Q]."""
  best = np.full(len(queries), -np.inf, np.float32)
  ids = np.zeros(len(queries), np.int64)
  for start in range(0, len(vectors), _ROWS):
    scores = queries @ vectors[start : start + _ROWS].T
    at = scores.argmax(axis=1)
    found = scores[np.arange(len(queries)), at]
    ids = np.where(found > best, at + start, ids)
    best = np.maximum(best, found)
  return ids


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
  """Ours beside FAISS's."""
  rng = np.random.default_rng(0)
  if arguments.data is None:
    keys = index_vectors.made_up_keys(arguments.bundles, _DIMENSION, rng)
  else:
    encoder = retrieval.SentenceEncoder.from_pretrained(cache_size=0)
    texts = _texts(_histories(arguments), _KEY_SEED, encoder)
    keys = _embedded(encoder, texts[: arguments.bundles])
  with tempfile.TemporaryDirectory() as path:
    folder = pathlib.Path(path)
    nearest = _nearest(
      *(
        _write_moved(folder / f"{name}.npy", keys, count, rng)
        for name, count in (
          ("vectors", arguments.vectors),
          ("queries", arguments.queries),
        )
      )
    )

    def start(name: str) -> peers.Worker:
      script = _WORKERS / _SCRIPTS[name]
      return peers.Worker(
        name, script, folder, *arguments.batches, cores=[arguments.core]
      )

    workers = {name: start(name) for name in arguments.workers}
    built = {name: _run(worker, "build") for name, worker in workers.items()}
    found = {n: worker.run("nearest") for n, worker in workers.items()}
    turns: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for rows in arguments.batches:
      turns[rows] = {name: [] for name in workers}
      for _ in range(arguments.repeats):
        for name, worker in workers.items():
          turns[rows][name].append(_run(worker, str(rows)))
    saved = {name: _run(worker, "save") for name, worker in workers.items()}
    for worker in workers.values():
      worker.close()
    loaded = {}
    for name in workers:
      worker = start(name)
      loaded[name] = _run(worker, "load")
      worker.close()
  results = {}
  for name in workers:
    recall = np.mean(np.asarray(found[name]["result"]) == nearest)
    results[name] = {
      "recall_at_1": round(float(recall), 4),
      "build_s": round(built[name]["seconds"], 1),
      "build_cpu_s": round(built[name]["cpu_seconds"], 1),
      **built[name]["result"],
      "queries_per_s": _per_second(arguments, turns, name, "seconds"),
      "queries_per_cpu_s": _per_second(arguments, turns, name, "cpu_seconds"),
      "file_mb": round(saved[name]["result"] / 2**20),
      "loaded": {
        "seconds": round(loaded[name]["seconds"], 3),
        "held_mb": loaded[name]["result"]["held_mb"],
      },
      "versions": found[name]["versions"],
    }
  return {
    "vectors": [arguments.vectors, _DIMENSION],
    "bundles": arguments.bundles,
    "made_from": "random" if arguments.data is None else "texts",
    "queries": arguments.queries,
    "targets": _TARGETS,
    "results": results,
    "ours_over_faiss": _ratios(results),
  }


def _run(worker: peers.Worker, what: str) -> dict[str, Any]:
  answer = worker.run(what)
  print(what, answer["seconds"], answer["result"], file=sys.stderr)
  return answer


def _per_second(
  arguments: argparse.Namespace,
  turns: dict[int, dict[str, list[dict[str, Any]]]],
  name: str,
  clock: str,
) -> dict[str, int]:
  """Queries a second by the median of the turns, for each batch size."""
  return {
    str(rows): round(arguments.queries / peers.medians(runs, clock)[name])
    for rows, runs in turns.items()
  }


def _ratios(results: dict[str, Any]) -> dict[str, Any]:
  """Ours over FAISS's, by the process's own time."""
  if results.keys() != _SCRIPTS.keys():
    return {}
  ours, faiss = results[peers.OURS], results["faiss"]
  return {
    "build_cpu_s": round(ours["build_cpu_s"] / faiss["build_cpu_s"], 3),
    "queries_per_cpu_s": {
      rows: round(count / faiss["queries_per_cpu_s"][rows], 2)
      for rows, count in ours["queries_per_cpu_s"].items()
    },
  }


def text_recall(arguments: argparse.Namespace) -> dict[str, Any]:
  """Recall of waiting histories among keys of real text."""
  encoder = retrieval.SentenceEncoder.from_pretrained(cache_size=0)
  histories = _histories(arguments)
  rows = np.array(
    random.Random(_ROWS_SEED).sample(range(len(histories)), _TEXT_QUERIES)
  )
  keys = _embedded(
    encoder, _texts(histories, _KEY_SEED, encoder)[: arguments.keys]
  )
  reworded = _texts([histories[i] for i in rows], _QUERY_SEED, encoder)
  queries = _embedded(encoder, reworded)
  index = retrieval.ScannIndex.build(keys)
  found = index.search(queries, 1).ids[:, 0]
  exact = retrieval.ExactIndex.build(keys).search(queries, 1).ids[:, 0]
  known = rows < len(keys)
  cosines = (keys[rows[known]] * queries[known]).sum(axis=1)
  return {
    "keys": len(keys),
    "queries": len(queries),
    "recall_at_1": round(float(np.mean(found == exact)), 4),
    "target": _TEXT_TARGET,
    # By exact search, of those whose history is among the keys.
    "same_history": round(float(np.mean((exact == rows)[known])), 4),
    "median_cosine": round(float(np.median(cosines)), 3),
    "parameters": dict(index.parameters),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--data",
    type=pathlib.Path,
    help="folder with hotpotqa, 2wikimultihopqa, musique and rl_train",
  )
  parser.add_argument("--text", action="store_true", help="recall on text")
  parser.add_argument("--keys", type=int, default=20_000)
  parser.add_argument("--bundles", type=int, default=10_000)
  parser.add_argument("--vectors", type=int, default=169_489)
  parser.add_argument("--queries", type=int, default=4_096)
  parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--core", type=int, default=0)
  parser.add_argument(
    "--workers", nargs="+", default=list(_SCRIPTS), choices=list(_SCRIPTS)
  )
  arguments = parser.parse_args()
  if arguments.text and arguments.data is None:
    parser.error("--text needs --data, a folder of data sets to make keys from")
  report = text_recall(arguments) if arguments.text else compare(arguments)
  print(json.dumps({"benchmark": "index", "unit": "queries/s", **report}))


if __name__ == "__main__":
  main()
