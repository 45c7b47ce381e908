"""A corpus of a million passages: building, opening and searching it.

    .venv/bin/python -m benchmarks.corpus_search
    .venv/bin/python -m benchmarks.corpus_search --data ../shared/data

Passages, vectors and queries are made up (see `corpus_passages`): MiniLM takes
hours for a million. Its rate is measured on 256 texts of 100 words, real ones
with `--data`. Searches take the vectors of their queries as given.

Each mode is opened and searched in a process of its own. `open_s` is without
the imports. `held_mb` is the memory that no file backs, `resident_mb` all of
it, both without what the process had before: after opening, and after 1,000
queries. Recall is the share of the three best passages of exact search that
are found. For the hybrid mode the exact search is exact for its vectors.
Queries a second are the median of the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import corpus_passages, index_texts
from rapo_jax import corpora, retrieval
from rapo_jax.corpora.plan import PAPER_PASSAGES, Plan, Rates
from rapo_jax.corpora.retrievers import FUSED, fused

_TOP = 3
_TARGETS = {"recall_at_3": 0.95, "open_s": 5.0}
_ROWS = 2**14
_RATE_TEXTS = 256
_SAMPLED = 2**10


class _Given:
  """Stands in for the sentence encoder: gives vectors that are made up.

  Passages are embedded once, in the order of the corpus.
  """

  encoder_id = "made up"
  sha256 = hashlib.sha256(b"made up").hexdigest()
  max_tokens = 256
  dimension = corpus_passages.DIMENSION

  def __init__(
    self,
    passages: np.ndarray | None = None,
    queries: dict[str, np.ndarray] | None = None,
  ):
    self._passages = passages
    self._queries = queries or {}
    self._done = 0

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    assert self._passages is not None
    self._done += len(texts)
    return self._passages[self._done - len(texts) : self._done]

  def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
    return np.stack([self._queries[text] for text in texts])


def _build(
  folder: pathlib.Path, vectors: np.ndarray
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
  """Seconds and most memory of each stage, each in turn."""
  seconds, peaks = {}, {}
  builder = corpora.CorpusBuilder(
    folder / "passages.jsonl", folder / "corpus", _Given(vectors)
  )

  def report(done: int, total: int, text: str) -> None:
    print(f"\r{text}", end="", file=sys.stderr)

  for name, stage in (
    ("read", lambda: builder.read(report)),
    ("store_vectors", lambda: builder.embed(report)),
    ("index", builder.index),
    ("words", lambda: builder.words(report)),
    ("finish", builder.finish),
  ):
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    began, cpu_began = time.perf_counter(), time.process_time()
    stage()
    seconds[name] = {
      "wall": round(time.perf_counter() - began, 1),
      "cpu": round(time.process_time() - cpu_began, 1),
    }
    peaks[name] = round(_memory()["VmHWM"])
    print(f"\n{name}", seconds[name], _memory(), file=sys.stderr)
  return seconds, peaks


def _memory() -> dict[str, float]:
  """Memory of this process in MB, by the kernel's names."""
  found = {}
  status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
  for line in status.splitlines():
    name, _, value = line.partition(":")
    if name in ("VmRSS", "VmHWM", "RssAnon", "RssFile"):
      found[name] = int(value.split()[0]) / 1024
  return found


def _serve(folder: pathlib.Path, mode: corpora.Mode, batch: int, rounds: int):
  """Opens and searches the corpus in this process; prints one JSON line."""
  texts = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
  vectors = np.load(folder / "queries.npy")
  encoder = _Given(queries=dict(zip(texts, vectors, strict=True)))
  # Imports ScaNN and bm25s, and starts JAX.
  retrieval.ScannIndex.build(np.eye(2, dtype=np.float32)).search(
    np.eye(2, dtype=np.float32), 1
  )
  corpora.retriever_over(["one text"], "bm25", encoder, retrieval.ExactIndex)
  before = _memory()
  began = time.perf_counter()
  corpus = corpora.open_corpus(folder / "corpus")
  retriever = corpus.retriever(mode, encoder)
  open_s = time.perf_counter() - began
  opened = _memory()
  times, ids = [], np.empty((0, _TOP), np.int64)
  for number in range(rounds):
    found = []
    began = time.perf_counter()
    for start in range(0, len(texts), batch):
      rows = retriever.search(texts[start : start + batch], _TOP)
      # What the search tool does with them.
      for row in rows.tolist():
        assert all(corpus.documents[i] for i in row if i >= 0)
      found.append(rows)
    times.append(time.perf_counter() - began)
    ids = np.concatenate(found)
    if not number:
      searched = _memory()
  print(
    json.dumps(
      {
        "open_s": round(open_s, 2),
        "queries_per_s": round(len(texts) / float(np.median(times)), 1),
        "queries_per_s_range": [
          round(len(texts) / t, 1) for t in (max(times), min(times))
        ],
        "opened": _held(opened, before),
        "searched": _held(searched, before),
        "ids": ids.tolist(),
      }
    )
  )


def _held(now: dict[str, float], before: dict[str, float]) -> dict[str, int]:
  return {
    "held_mb": round(now["RssAnon"] - before["RssAnon"]),
    "resident_mb": round(now["VmRSS"] - before["VmRSS"]),
  }


def _nearest(vectors: np.ndarray, queries: np.ndarray, top: int) -> np.ndarray:
  """Exact search: the best rows of each query, ties by lower row."""
  best = np.full((len(queries), top), -np.inf, np.float32)
  ids = np.zeros((len(queries), top), np.int64)
  for start in range(0, len(vectors), _ROWS):
    scores = queries @ vectors[start : start + _ROWS].T
    own = np.broadcast_to(
      np.arange(start, start + scores.shape[1]), scores.shape
    )
    scores, own = np.hstack([best, scores]), np.hstack([ids, own])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(scores, order, axis=1)
    ids = np.take_along_axis(own, order, axis=1)
  return ids


def _recall(found: np.ndarray, exact: np.ndarray) -> float:
  """Share of what exact search finds that is found; -1 is nothing."""
  hits = sum(
    len((set(a) & set(b)) - {-1})
    for a, b in zip(found.tolist(), exact.tolist(), strict=True)
  )
  return round(hits / int((exact >= 0).sum()), 4)


def _exact(
  folder: pathlib.Path, vectors: np.ndarray, queries: Sequence[str]
) -> dict[str, np.ndarray]:
  """What exact search finds, by mode; words are always searched exactly."""
  corpus = corpora.open_corpus(folder / "corpus")
  nearest = _nearest(vectors, np.load(folder / "queries.npy"), FUSED)
  by_words = corpus.retriever("bm25").search(queries, FUSED)
  both = [fused(pair, _TOP) for pair in zip(nearest, by_words, strict=True)]
  return {
    "dense": nearest[:, :_TOP],
    "bm25": by_words[:, :_TOP],
    "hybrid": np.stack(both),
  }


def _embedding_rate(data: pathlib.Path | None, folder: pathlib.Path) -> float:
  """Texts of 100 words that MiniLM embeds a second on this machine."""
  if data is None:
    sample = list(corpora.read_passages(folder / "passages.jsonl"))
    texts = [passage.contents for _, passage in sample[: 2 * _RATE_TEXTS]]
  else:
    texts = list(_real_texts(data))
  encoder = retrieval.SentenceEncoder.from_pretrained(cache_size=0)
  encoder.encode(texts[:_RATE_TEXTS])
  began = time.perf_counter()
  encoder.encode(texts[_RATE_TEXTS : 2 * _RATE_TEXTS])
  return _RATE_TEXTS / (time.perf_counter() - began)


def _real_texts(data: pathlib.Path) -> Iterator[str]:
  """Paragraphs of question answering sets, cut to 100 words each."""
  words = index_texts.paragraph_words(data)
  for start in range(0, 2 * _RATE_TEXTS * corpus_passages.WORDS, 100):
    yield '"Title"\n' + " ".join(words[start : start + 100])


def measure(
  arguments: argparse.Namespace, folder: pathlib.Path
) -> dict[str, Any]:
  """Everything; files go to the folder."""
  rng = np.random.default_rng(0)
  count = arguments.passages
  print("making passages", file=sys.stderr)
  corpus_passages.write_passages(folder / "passages.jsonl", count, rng)
  vectors = np.lib.format.open_memmap(
    folder / "vectors.npy", "w+", np.float32, (count, _Given.dimension)
  )
  start = 0
  for chunk in corpus_passages.passage_vectors(count, rng):
    vectors[start : start + len(chunk)] = chunk
    start += len(chunk)
  vectors.flush()
  vectors = np.load(folder / "vectors.npy", mmap_mode="r")
  seconds, peaks = _build(folder, vectors)
  corpus = corpora.open_corpus(folder / "corpus")
  rows = rng.integers(count, size=arguments.queries)
  texts = corpus_passages.query_texts([corpus.documents[i] for i in rows], rng)
  np.save(
    folder / "queries.npy", corpus_passages.query_vectors(vectors, rows, rng)
  )
  (folder / "queries.json").write_text(json.dumps(texts), encoding="utf-8")
  exact = _exact(folder, vectors, texts)
  modes = {}
  for mode in corpora.MODES:
    command = [sys.executable, "-m", "benchmarks.corpus_search"]
    command += ["--serve", str(folder), "--mode", mode]
    command += ["--batch", str(arguments.batch)]
    command += ["--rounds", str(arguments.rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer = json.loads(done.stdout)
    recall = _recall(np.array(answer.pop("ids")), exact[mode])
    modes[mode] = {"recall_at_3": recall, **answer}
    print(mode, modes[mode], file=sys.stderr)
  sizes: dict[str, int] = {}
  for name, info in corpus.manifest.files.items():
    part = name.partition("/")[0]
    sizes[part] = sizes.get(part, 0) + info.bytes
  rate = _embedding_rate(arguments.data, folder)
  sample = corpus.documents[:_SAMPLED]
  plan = Plan.of(sample, PAPER_PASSAGES, Rates(rate), _Given.dimension)
  return {
    "passages": [count, _Given.dimension],
    "queries": arguments.queries,
    "batch": arguments.batch,
    "targets": _TARGETS,
    "modes": modes,
    "build_s": seconds,
    "build_peak_mb": peaks,
    "disk_mb": {name: round(size / 1e6) for name, size in sizes.items()},
    "index": dict(corpus.manifest.index or {}),
    "embedded_per_s": round(rate, 1),
    "plan": plan.as_json(),
    "cores": len(os.sched_getaffinity(0)),
    "versions": {
      name: importlib.metadata.version(name)
      for name in ("scann", "bm25s", "numpy", "jax")
    },
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data", type=pathlib.Path, help="see benchmarks.index")
  parser.add_argument("--passages", type=int, default=1_000_000)
  parser.add_argument("--queries", type=int, default=1_000)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--folder", type=pathlib.Path, help="keeps the files")
  parser.add_argument("--serve", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("--mode", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve is not None:
    _serve(arguments.serve, arguments.mode, arguments.batch, arguments.rounds)
    return
  with tempfile.TemporaryDirectory() as temporary:
    folder = arguments.folder or pathlib.Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    report = measure(arguments, folder)
  print(
    json.dumps({"benchmark": "corpus_search", "unit": "queries/s", **report})
  )


if __name__ == "__main__":
  main()
