"""What the workers share: vectors, queries, and how they serve an index.

Imports nothing of rapo_jax: peers run it in environments of their own.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from benchmarks import worker


class Peer(Protocol):
  """An index of one library."""

  def build(self, vectors: np.ndarray) -> None:
    """Builds it from vectors in a mapped file."""

  def search(self, queries: np.ndarray) -> np.ndarray:
    """Row number of each query's nearest vector, [Q]."""

  def save(self, folder: pathlib.Path) -> None:
    """Writes it into an empty folder."""

  def load(self, folder: pathlib.Path) -> None:
    """Reads it back."""

  def parameters(self) -> Mapping[str, Any]:
    """What was chosen, as JSON holds it."""


def _memory_mb() -> dict[str, float]:
  """Of this process: all that is resident, and what no file backs."""
  fields = {}
  for line in (
    pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
  ):
    name, _, value = line.partition(":")
    if name in ("VmRSS", "VmHWM", "RssAnon"):
      fields[name] = int(value.split()[0]) / 1024
  return fields


def serve(
  make_peer: Callable[[], Peer], versions: Callable[[], dict[str, str]]
) -> None:
  """Answers the driver until standard input ends.

  `build` and `load` make an index and answer with the memory that it took;
  a number searches all queries in batches of so many; `nearest` answers with
  what is found.

  Args:
    make_peer: gives an index that is to be built or loaded.
    versions: of what matters.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("batches", type=int, nargs="+")
  arguments = parser.parse_args()
  folder = arguments.folder

  def make_functions() -> dict[str, Callable[[], Any]]:
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    peer = make_peer()
    # The library is loaded, which is no memory of the index's.
    before = _memory_mb()

    def grown() -> dict[str, Any]:
      now = _memory_mb()
      return {
        "held_mb": round(now["RssAnon"] - before["RssAnon"]),
        "peak_mb": round(now["VmHWM"] - before["VmRSS"]),
        "parameters": dict(peer.parameters()),
      }

    def build() -> dict[str, Any]:
      peer.build(vectors)
      return grown()

    def save() -> int:
      saved = folder / type(peer).__name__
      saved.mkdir()
      peer.save(saved)
      return sum(f.stat().st_size for f in saved.rglob("*") if f.is_file())

    def load() -> dict[str, Any]:
      peer.load(folder / type(peer).__name__)
      return grown()

    def in_batches(rows: int) -> Callable[[], None]:
      def search() -> None:
        for start in range(0, len(queries), rows):
          peer.search(queries[start : start + rows])

      return search

    return {
      "build": build,
      "save": save,
      "load": load,
      "nearest": lambda: peer.search(queries).tolist(),
      **{str(rows): in_batches(rows) for rows in arguments.batches},
    }

  worker.serve(make_functions, versions())
