"""Vectors like those of a Step-Trace Buffer's keys.

Step traces come in bundles: the same question and history in the words of
several trajectories. So a vector is one of a few thousand keys, moved in a
random direction to a fixed cosine. That cosine is the median between a key of
real text and the same history in other words.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

COSINE = 0.97
"""Of MiniLM's vectors of a key and the same history reworded, the median."""
_ROWS = 2**14


def made_up_keys(
  count: int, dimension: int, rng: np.random.Generator
) -> np.ndarray:
  """Random directions of which the first dimensions have the most.

  Their effective dimension is about that of keys of real text.
  """
  spread = (np.arange(dimension) + 10.0) ** -0.5
  return _unit(rng.standard_normal((count, dimension)) * spread)


def moved(
  keys: np.ndarray, count: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  """`count` vectors at a cosine of about `COSINE` to a key, in chunks."""
  tangent = np.sqrt(COSINE**-2 - 1)
  for start in range(0, count, _ROWS):
    rows = min(_ROWS, count - start)
    step = rng.standard_normal((rows, keys.shape[1]), dtype=np.float32)
    chosen = keys[rng.integers(len(keys), size=rows)]
    yield _unit(chosen + tangent * _unit(step))


def _unit(vectors: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / norms).astype(np.float32)
