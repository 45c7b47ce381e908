"""FAISS's HNSW, with the parameters that the comparison names."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from problem import serve

_PARAMETERS = {"M": 32, "efConstruction": 200, "efSearch": 128}
_FILE = "index.faiss"


class Faiss:
  """`IndexHNSWFlat` by inner product."""

  def __init__(self) -> None:
    faiss.omp_set_num_threads(1)
    self._index: Any = None

  def build(self, vectors: np.ndarray) -> None:
    self._index = faiss.IndexHNSWFlat(
      vectors.shape[1], _PARAMETERS["M"], faiss.METRIC_INNER_PRODUCT
    )
    self._index.hnsw.efConstruction = _PARAMETERS["efConstruction"]
    self._index.hnsw.efSearch = _PARAMETERS["efSearch"]
    self._index.add(vectors)

  def search(self, queries: np.ndarray) -> np.ndarray:
    return self._index.search(queries, 1)[1][:, 0]

  def save(self, folder: pathlib.Path) -> None:
    faiss.write_index(self._index, str(folder / _FILE))

  def load(self, folder: pathlib.Path) -> None:
    self._index = faiss.read_index(str(folder / _FILE))
    self._index.hnsw.efSearch = _PARAMETERS["efSearch"]

  def parameters(self) -> Mapping[str, Any]:
    return _PARAMETERS


if __name__ == "__main__":
  serve(Faiss, lambda: {"faiss": faiss.__version__, "numpy": np.__version__})
