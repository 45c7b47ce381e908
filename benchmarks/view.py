"""The viewer over a large log: opening it, searching a word, opening one.

  python -m benchmarks.view

Writes 100,000 trajectories of about 10 KB, 1 GB in all, into the logs of eight
runs, starts `experiments.view` in a process of its own, and asks over HTTP for
what its page asks for. Prints one JSON line, times in seconds:

- `index`: the first start, until all logs are indexed;
- `first_list_while_indexing`: the first start, from the process to a list;
- `first_view`: a later start, from the process to page, state, and list;
- `first_curves`: the same, to the runs and their curves;
- `list`, `filter`, `search_*`, `open`: medians and the slowest of repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np

from experiments.metrics import METRICS_FILE
from experiments.report import methods
from experiments.viewer.index import INDEX_FILE
from experiments.workdir import TRAJECTORIES_FILE, write_json

_RUNS = tuple(
  (task, method, seed)
  for task in ("math", "search")
  for method in ("grpo", "rapo")
  for seed in (0, 1)
)
_GROUP = 16
_QUESTIONS = 8
_VOCABULARY = 20_000
_RARE = "needle"
_EVERY = 1000
"""Trajectories of which one holds the rare word."""


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--trajectories", type=int, default=100_000)
  parser.add_argument("--words", type=int, default=1350)
  parser.add_argument("--repeats", type=int, default=9)
  known = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    log_bytes = write_logs(root, known.trajectories, known.words)
    print(f"wrote {log_bytes / 1e9:.2f} GB", file=sys.stderr)
    report = {
      "benchmark": "view",
      "trajectories": known.trajectories,
      "log_bytes": log_bytes,
      "repeats": known.repeats,
      **_measure(root, known.trajectories, known.repeats),
      "index_bytes": (root / INDEX_FILE).stat().st_size,
      "sqlite": sqlite3.sqlite_version,
      "machine": platform.processor() or platform.machine(),
    }
  print(json.dumps(report))


def write_logs(root: pathlib.Path, trajectories: int, words: int) -> int:
  """Writes made-up runs; returns the bytes of their logs.

  Args:
    root: work folder.
    trajectories: in all runs together.
    words: of each.
  """
  rng = np.random.default_rng(0)
  letters = np.array([*"abcdefghijklmnopqrstuvwxyz"])
  vocabulary = np.array(
    [
      "".join(rng.choice(letters, rng.integers(2, 10)))
      for _ in range(_VOCABULARY)
    ]
  )
  # Words are as frequent as in a language (Zipf).
  weights = 1 / np.arange(1, _VOCABULARY + 1)
  weights /= weights.sum()
  each = trajectories // len(_RUNS)
  size = 0
  for task, method, seed in _RUNS:
    folder = root / "train" / task / f"{method}-seed{seed}"
    folder.mkdir(parents=True)
    shown = methods.Shown(method.upper(), retrieves=method == "rapo")
    write_json(folder / methods.METHOD_FILE, shown._asdict())
    path = folder / TRAJECTORIES_FILE
    with path.open("w", encoding="utf-8") as file:
      for number in range(each):
        text = rng.choice(vocabulary, words, p=weights).tolist()
        file.write(json.dumps(_trajectory(task, number, text)) + "\n")
    size += path.stat().st_size
    updates = each // (_GROUP * _QUESTIONS) + 1
    with (folder / METRICS_FILE).open("w", encoding="utf-8") as file:
      for update in range(1, updates + 1):
        values = {f"rollout/number_{n}": rng.normal() for n in range(80)}
        row = {"update": update, "seconds": update, "reward/mean": 0.5}
        file.write(json.dumps(row | values) + "\n")
  return size


def _trajectory(task: str, number: int, words: list[str]) -> dict[str, Any]:
  update, place = divmod(number, _GROUP * _QUESTIONS)
  question, index = divmod(place, _GROUP)
  if number % _EVERY == 0:
    words[-1] = _RARE
  parts = [" ".join(part) for part in np.array_split(np.array(words), 8)]
  right = number % 3 == 0
  return {
    "version": 1,
    "update": update + 1,
    "hybrid": index >= _GROUP // 2,
    "policy_version": update,
    "advantage": 0.5,
    "retrieval_reward": 0.0,
    "retrieved_fraction": 0.0,
    "query_id": f"{task}-{(update * _QUESTIONS + question) % 512}",
    "question": f"Question {(update * _QUESTIONS + question) % 512} of {task}?",
    "ground_truth": ["42"],
    "index": index,
    "finish_reason": "answer" if number % 7 else "length",
    "score": {
      "value": float(right),
      "status": "ok",
      "answer": "42",
      "correct": right,
      "whole": True,
      "parts": {"f1": float(right)},
    },
    "segments": [
      {
        "kind": "observation" if place % 2 else "policy",
        "step_id": place // 2,
        "text": part,
        "num_tokens": len(words) // 8,
        "entropy": 0.3,
        "log_prob": -0.4,
      }
      for place, part in enumerate(parts)
    ],
    "events": [
      {
        "type": "tool",
        "step_id": step,
        "tool": "search",
        "argument": "what",
        "result": "that",
        "status": "ok" if number % 11 else "error",
        "seconds": 0.1,
      }
      for step in range(3)
    ],
  }


def _measure(
  root: pathlib.Path, trajectories: int, repeats: int
) -> dict[str, Any]:
  report: dict[str, Any] = {}
  each = trajectories // len(_RUNS) * len(_RUNS)
  with _viewer(root) as (client, began):
    while not client.get("api/trajectories").json()["rows"]:
      time.sleep(0.05)
    report["first_list_while_indexing"] = _since(began)
    while client.get("api/state").json()["trajectories"] < each:
      time.sleep(0.5)
    report["index"] = _since(began)
    print(f"indexed: {report}", file=sys.stderr)
  first, curves = [], []
  for _ in range(repeats):
    with _viewer(root) as (client, began):
      for path in ("", "view.css", "view.js", "api/state", "api/trajectories"):
        client.get(path).raise_for_status()
      first.append(_since(began))
      client.get("api/runs").raise_for_status()
      asked = {"name": [f"rollout/number_{n}" for n in range(16)]}
      client.get("api/curves", params=asked).raise_for_status()
      curves.append(_since(began))
  report["first_view"] = _figures(first)
  report["first_curves"] = _figures(curves)
  with _viewer(root) as (client, _):
    for name, parameters in {
      "list": {},
      "filter": {"method": "rapo", "reward_class": "right", "tool_error": "1"},
      "search_rare_word": {"text": _RARE},
      "search_frequent_word": {"text": _frequent(client)},
      "search_two_words": {"text": f"{_frequent(client)} {_RARE}"},
    }.items():
      report[name] = _times(client, "api/trajectories", parameters, repeats)
    rows = client.get("api/trajectories", params={"text": _RARE}).json()["rows"]
    report["found"] = len(rows)
    key = {"key": rows[len(rows) // 2]["key"]}
    report["open"] = _times(client, "api/trajectory", key, repeats)
  return report


def _frequent(client: httpx2.Client) -> str:
  """A word that nearly every trajectory holds."""
  row = client.get("api/trajectories").json()["rows"][0]
  opened = client.get("api/trajectory", params={"key": row["key"]}).json()
  words = " ".join(step["text"] for step in opened["steps"]).split()
  return max(set(words), key=words.count)


@contextlib.contextmanager
def _viewer(root: pathlib.Path) -> Iterator[tuple[httpx2.Client, float]]:
  """Starts a viewer; gives a client, and when the process began."""
  began = time.perf_counter()
  with subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.view"),
      *(f"--workdir={root}", "--port=0"),
    ],
    stdout=subprocess.PIPE,
    encoding="utf-8",
  ) as process:
    try:
      assert process.stdout is not None
      url = process.stdout.readline().split()[-1]
      with httpx2.Client(base_url=url, timeout=600, trust_env=False) as client:
        yield client, began
    finally:
      process.terminate()


def _times(
  client: httpx2.Client, path: str, parameters: dict[str, str], repeats: int
) -> dict[str, float]:
  def ask() -> None:
    client.get(path, params=parameters).raise_for_status()

  return _figures([_timed(ask) for _ in range(repeats)])


def _timed(call: Callable[[], None]) -> float:
  began = time.perf_counter()
  call()
  return _since(began)


def _since(began: float) -> float:
  return round(time.perf_counter() - began, 4)


def _figures(seconds: list[float]) -> dict[str, float]:
  return {"median": statistics.median(seconds), "slowest": max(seconds)}


if __name__ == "__main__":
  main()
