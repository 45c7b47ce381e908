"""Ways to find passages: by vectors, by words, and by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int64

from rapo_jax.corpora.bm25 import Bm25
from rapo_jax.errors import InputError
from rapo_jax.retrieval.index.base import Index

Mode = Literal["dense", "bm25", "hybrid"]
MODES: tuple[Mode, ...] = get_args(Mode)

RANK_CONSTANT = 60
"""k of reciprocal rank fusion, as in the paper."""
FUSED = 24
"""Passages that each way gives to the fusion, at least."""


@runtime_checkable
class Encoder(Protocol):
  """Turns passages and queries into vectors, e.g. a sentence encoder."""

  encoder_id: str
  sha256: str
  max_tokens: int
  dimension: int

  def encode(self, texts: Sequence[str], /) -> Float[np.ndarray, "N D"]:
    """Unit vectors of what is found."""

  def encode_queries(self, texts: Sequence[str], /) -> Float[np.ndarray, "N D"]:
    """Unit vectors of what is looked up."""


@runtime_checkable
class Retriever(Protocol):
  """Finds passages for queries."""

  def search(
    self, queries: Sequence[str], num_passages: int, /
  ) -> Int64[np.ndarray, "Q k"]:
    """Row numbers, best first, ties by lower number; -1 for no further one."""


class Dense:
  """Finds passages whose vectors have the largest inner products."""

  def __init__(self, encoder: Encoder, index: Index):
    self._encoder = encoder
    self._index = index

  def search(
    self, queries: Sequence[str], num_passages: int, /
  ) -> Int64[np.ndarray, "Q k"]:
    """Embeds all queries at once and searches once; see `Retriever`."""
    vectors = self._encoder.encode_queries(list(queries))
    return self._index.search(vectors, num_passages).ids


class ByWords:
  """Finds passages by their words."""

  def __init__(self, bm25: Bm25):
    self._bm25 = bm25

  def search(
    self, queries: Sequence[str], num_passages: int, /
  ) -> Int64[np.ndarray, "Q k"]:
    """See `Retriever`."""
    return self._bm25.search(queries, num_passages)[0]


class Hybrid:
  """Fuses two ways by reciprocal ranks.

  A passage scores the sum of 1 / (60 + rank) over the ways that find it.
  Cormack et al., "Reciprocal Rank Fusion outperforms Condorcet and individual
  Rank Learning Methods", SIGIR 2009.
  """

  def __init__(self, retrievers: Sequence[Retriever]):
    self._retrievers = retrievers

  def search(
    self, queries: Sequence[str], num_passages: int, /
  ) -> Int64[np.ndarray, "Q k"]:
    """See `Retriever`."""
    depth = max(num_passages, FUSED)
    ranked = [one.search(queries, depth) for one in self._retrievers]
    return np.stack(
      [
        fused([ids[row] for ids in ranked], num_passages)
        for row in range(len(queries))
      ]
    )


def fused(
  rankings: Sequence[Int[np.ndarray, " _"]], count: int
) -> Int64[np.ndarray, " k"]:
  """Fuses rankings by reciprocal ranks.

  Args:
    rankings: row numbers, best first; -1 for none.
    count: k.

  Returns:
    The best k rows, ties by lower number, -1 where there are no more.
  """
  scores: dict[int, float] = {}
  for ranking in rankings:
    for rank, row in enumerate(ranking.tolist(), 1):
      if row >= 0:
        scores[row] = scores.get(row, 0.0) + 1 / (RANK_CONSTANT + rank)
  best = sorted(scores, key=lambda row: (-scores[row], row))[:count]
  return np.array(best + [-1] * (count - len(best)), np.int64)


def check_mode(mode: str) -> None:
  """Refuses an unknown way to search.

  Raises:
    InputError: names those that there are.
  """
  if mode not in MODES:
    raise InputError(
      f"mode must be one of {', '.join(MODES)}, got {mode!r}: correct it."
    )
