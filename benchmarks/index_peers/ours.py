"""Our index over ScaNN, with the parameters that it chooses."""

from __future__ import annotations

import importlib.metadata
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from problem import serve

from rapo_jax import retrieval


class Ours:
  """`ScannIndex` as training has it."""

  def __init__(self) -> None:
    # Imports ScaNN and starts JAX.
    retrieval.ScannIndex.build(np.eye(2, dtype=np.float32))
    self._index: retrieval.Index

  def build(self, vectors: np.ndarray) -> None:
    self._index = retrieval.ScannIndex.build(vectors)

  def search(self, queries: np.ndarray) -> np.ndarray:
    return self._index.search(queries, 1).ids[:, 0]

  def save(self, folder: pathlib.Path) -> None:
    self._index.save(folder)

  def load(self, folder: pathlib.Path) -> None:
    self._index = retrieval.load_index(folder)

  def parameters(self) -> Mapping[str, Any]:
    return self._index.parameters


if __name__ == "__main__":
  serve(
    Ours,
    lambda: {n: importlib.metadata.version(n) for n in ("scann", "numpy")},
  )
