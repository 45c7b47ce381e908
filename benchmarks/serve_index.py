"""The server of a Step-Trace Buffer under 512 requests at a time.

    .venv/bin/python -m benchmarks.serve_index

Starts `experiments.serve_index` in its own process with a buffer of 20,000
traces. This process asks it over loopback on 512 connections. Each sends its
next request when it has the answer to the last. A request is one query, a
question with its history, and wants three documents with scores. Queries have
16 to 200 English words, each of which is one wordpiece to the encoder. All are
new, so no vector is found in its cache. Keys in the buffer are random unit
vectors of the encoder's dimension. The real encoder embeds the queries.

- `load`: that.
- `again`: the same queries once more, whose vectors the server's encoder has in
  its cache: what HTTP, batching and the search take.
- `latency_s`: from sending a request to having read its answer.
- `errors`: answers that are not three documents for each query.
- `one_request`: all 512 queries in one request, as Search-R1's trainer sends
  those of a batch of trajectories.
- `in_process`: the same search without a server, in batches as large as the
  server's. It runs in this process while the server is idle. The server's loss
  beside it is the cost of HTTP, and of sharing the cores with this client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks import rollout_setup as setup
from rapo_jax import retrieval
from rapo_jax.retrieval.serving.config import ServerConfig

_STEP_WORDS = 64
_TOPK = 3
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def make_buffer(
  size: int, words: Sequence[str], encoder: retrieval.SentenceEncoder
) -> retrieval.StepTraceBuffer:
  """A buffer of random keys, and steps of random words."""
  rng = np.random.default_rng(0)
  vectors = rng.standard_normal((size, encoder.dimension), dtype=np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  index = retrieval.index_class().build(vectors, encoder_sha256=encoder.sha256)
  chosen = rng.integers(len(words), size=(size, _STEP_WORDS))
  traces = [
    retrieval.StepTrace(
      question=f"question {i}",
      history=(),
      step=" ".join(words[w] for w in row),
      reward=1.0,
      source="random",
      trace_id=i,
      query_id=f"q{i}",
      step_index=0,
      answers=False,
    )
    for i, row in enumerate(chosen)
  ]
  return retrieval.StepTraceBuffer(traces, range(size), index, encoder)


def make_queries(
  number: int,
  words: Sequence[str],
  lengths: tuple[int, int],
  rng: np.random.Generator,
) -> list[str]:
  """Questions of eight words, and histories of various lengths."""
  queries = []
  for length in rng.integers(*lengths, size=number, endpoint=True):
    chosen = [words[i] for i in rng.integers(len(words), size=length)]
    queries.append(" ".join(chosen[:8]) + "\n" + " ".join(chosen[8:]))
  return queries


class Server:
  """`experiments.serve_index` in a process of its own.

  Args:
    folder: of the buffer.
    core: on which it runs, or None for any.
  """

  def __init__(self, folder: pathlib.Path, core: int | None):
    self._process = subprocess.Popen(
      [
        *(sys.executable, "-m", "experiments.serve_index"),
        *("--buffer", str(folder), "--port", "0"),
        # This measures how long it takes.
        *("--timeout_s", "3600"),
      ],
      cwd=_ROOT,
      stdout=subprocess.PIPE,
      encoding="utf-8",
      preexec_fn=None
      if core is None
      else lambda: os.sched_setaffinity(0, {core}),
    )
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    found = re.search(r" at (http://\S+)", line)
    if found is None:
      raise RuntimeError(f"the server did not start, it said {line!r}.")
    self.address = urllib.parse.urlsplit(found[1])

  def end(self) -> None:
    """Ends it in good order."""
    self._process.terminate()
    if self._process.wait(timeout=60):
      raise RuntimeError(f"the server ended with {self._process.returncode}.")


class Connection:
  """One connection to the server, kept open.

  HTTP by hand, as little of it as needed: what a client library does for each
  of hundreds of connections would be measured too.
  """

  def __init__(self, address: urllib.parse.SplitResult):
    self._address = address

  async def __aenter__(self) -> Connection:
    self._reader, self._writer = await asyncio.open_connection(
      self._address.hostname, self._address.port, limit=2**24
    )
    return self

  async def __aexit__(self, *_: object) -> None:
    self._writer.close()

  async def is_answered(self, queries: Sequence[str]) -> bool:
    """Sends a request; whether its answer has all documents."""
    body = json.dumps(
      {"queries": list(queries), "topk": _TOPK, "return_scores": True}
    ).encode()
    head = (
      f"POST /retrieve HTTP/1.1\r\nhost: {self._address.netloc}\r\n"
      f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    self._writer.write(head.encode() + body)
    head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = re.search(r"content-length: (\d+)", head)
    if length is None:
      return False
    content = await self._reader.readexactly(int(length[1]))
    if head.split(" ", 2)[1] != "200":
      return False
    result = json.loads(content)["result"]
    return [len(found) for found in result] == [_TOPK] * len(queries)


async def _load(
  address: urllib.parse.SplitResult,
  waiting: list[str],
  in_flight: int,
  latencies: list[float],
) -> int:
  """Sends all queries, one a request; returns the number of errors."""

  async def work() -> int:
    errors = 0
    async with Connection(address) as connection:
      while waiting:
        query = waiting.pop()
        began = time.perf_counter()
        try:
          errors += not await connection.is_answered([query])
        except (OSError, EOFError):
          return errors + 1
        latencies.append(time.perf_counter() - began)
    return errors

  return sum(await asyncio.gather(*(work() for _ in range(in_flight))))


async def _one_request(
  address: urllib.parse.SplitResult, queries: Sequence[str]
) -> int:
  async with Connection(address) as connection:
    return 0 if await connection.is_answered(queries) else 1


def main() -> None:
  arguments = _arguments()
  words = setup.english_words()
  encoder = retrieval.SentenceEncoder.from_pretrained()
  rng = np.random.default_rng(1)
  print("building the buffer", file=sys.stderr)
  buffer = make_buffer(arguments.traces, words, encoder)
  encoder.compile()
  with tempfile.TemporaryDirectory() as folder:
    buffer.save(pathlib.Path(folder) / "buffer")
    server = Server(pathlib.Path(folder) / "buffer", arguments.core)
    latencies: dict[str, list[float]] = {"load": [], "again": []}
    asked: list[str] = []

    def load() -> int:
      asked[:] = make_queries(arguments.requests, words, arguments.words, rng)
      return send("load")

    def again() -> int:
      return send("again")

    def send(name: str) -> int:
      return asyncio.run(
        _load(server.address, list(asked), arguments.in_flight, latencies[name])
      )

    def one_request() -> int:
      queries = make_queries(arguments.in_flight, words, arguments.words, rng)
      return asyncio.run(_one_request(server.address, queries))

    def in_process() -> int:
      queries = make_queries(arguments.requests, words, arguments.words, rng)
      for first in range(0, len(queries), ServerConfig.max_batch):
        lines = [
          query.split("\n")
          for query in queries[first : first + ServerConfig.max_batch]
        ]
        questions, histories = zip(*lines, strict=True)
        buffer.neighbors(questions, [(h,) for h in histories], _TOPK)
      return 0

    ways: dict[str, Callable[[], int]] = {
      "load": load,
      "again": again,
      "one_request": one_request,
      "in_process": in_process,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors = dict.fromkeys(ways, 0)
    for repeat in range(arguments.repeats + 1):
      for name, way in ways.items():
        print(f"repeat {repeat}: {name}", file=sys.stderr)
        began = time.perf_counter()
        failed = way()
        if repeat:  # The first is to warm up.
          seconds[name].append(time.perf_counter() - began)
          errors[name] += failed
        else:
          latencies.get(name, []).clear()
    server.end()
  _print(arguments, seconds, latencies, errors)


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--traces", type=int, default=20_000)
  parser.add_argument("--in_flight", type=int, default=512)
  parser.add_argument(
    "--requests", type=int, default=1024, help="of each repeat"
  )
  parser.add_argument(
    "--words",
    type=int,
    nargs=2,
    default=(16, 200),
    help="least and most of a query",
  )
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument(
    "--core", type=int, help="pins the server here; this process is not pinned"
  )
  return parser.parse_args()


def _print(
  arguments: argparse.Namespace,
  seconds: Mapping[str, Sequence[float]],
  latencies: Mapping[str, Sequence[float]],
  errors: Mapping[str, int],
) -> None:
  """Prints the figures as one JSON line.

  Args:
    arguments: of the command.
    seconds: of each repeat, by way.
    latencies: of each request in seconds, by way.
    errors: failed requests, by way.
  """
  rates = {
    name: [
      (arguments.in_flight if name == "one_request" else arguments.requests) / s
      for s in values
    ]
    for name, values in seconds.items()
  }
  print(
    json.dumps(
      {
        "benchmark": "serve_index",
        "unit": "s, requests/s and queries/s",
        "sizes": {
          **vars(arguments),
          "topk": _TOPK,
          "max_batch": ServerConfig.max_batch,
        },
        "errors": errors,
        "requests": arguments.requests * arguments.repeats,
        "latency_s": {
          name: {
            f"p{p}": round(float(np.percentile(values, p)), 3)
            for p in (50, 95, 99)
          }
          for name, values in latencies.items()
        },
        # A request of `load` and `again` is one query.
        "queries_a_second": {
          name: _median_and_spread(values) for name, values in rates.items()
        },
        "load_over_in_process": round(
          statistics.median(rates["load"])
          / statistics.median(rates["in_process"]),
          3,
        ),
        "targets": {"errors": 0},
        **setup.about_this_machine(),
      }
    )
  )


def _median_and_spread(values: Sequence[float]) -> dict[str, float]:
  return {
    "median": round(statistics.median(values), 1),
    "least": round(min(values), 1),
    "most": round(max(values), 1),
  }


if __name__ == "__main__":
  main()
