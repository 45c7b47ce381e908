"""What building a corpus will take: time, memory and disk.

The rate of embedding is measured before each build. The other rates were
measured once, with a million passages of 100 words on two cores
(`benchmarks.corpus_search`), and grow in proportion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rapo_jax.errors import InputError
from rapo_jax.retrieval.index.scann_index import MAX_SHARD_VECTORS

PAPER_PASSAGES = 21_015_324
"""Of the Wikipedia of 2018 that Search-R1 searches."""

READ_BYTES_S = 15e6
INDEXED_S = 6_500.0
"""Vectors of dimension 384 a second."""
WORDS_S = 0.6e6
"""Words of passages that are counted and scored a second."""
BM25_BYTES = 42
"""Memory for each distinct word of each passage while scores are built."""
BM25_DISK_BYTES = 8
HASH_BYTES = 0.28
"""Memory of the index for each dimension of each vector."""
HASH_DISK_BYTES = 0.52
INDEX_BYTES = 3.0e9
"""Memory while a tree of the index is built over 500,000 vectors."""
BASE_BYTES = 1.0e9
"""Memory of the encoder and the libraries."""


@dataclasses.dataclass(frozen=True)
class Rates:
  """How fast this machine is.

  Attributes:
    embedded_s: passages embedded a second; None where none is embedded.
    cores: that the build will have, over those that `embedded_s` was measured
      with. Embedding takes all of them, each other stage no more than two.
  """

  embedded_s: float | None
  cores: float = 1.0

  def __post_init__(self) -> None:
    if not 0 < self.cores < math.inf:
      raise InputError(f"cores must be above 0, got {self.cores}: correct it.")


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a build takes.

  Attributes:
    passages: chunks, where passages are cut.
    seconds: by stage.
    memory_bytes: the most that is held at a time.
    disk_bytes: of the finished corpus, by folder.
    peak_disk_bytes: the most that it takes while it is built.
  """

  passages: int
  seconds: dict[str, float]
  memory_bytes: float
  disk_bytes: dict[str, float]
  peak_disk_bytes: float

  @classmethod
  def of(
    cls,
    sample: Sequence[str],
    passages: int,
    rates: Rates,
    dimension: int,
    *,
    words: bool = True,
  ) -> Plan:
    """The plan for a corpus like a sample.

    Args:
      sample: contents of some passages.
      passages: of the corpus.
      rates: of the machine.
      dimension: of a vector.
      words: whether passages are found by words.
    """
    scale = passages / len(sample)
    text_bytes = scale * sum(len(text.encode()) for text in sample)
    split = [text.split() for text in sample]
    num_words = scale * sum(map(len, split))
    distinct = scale * sum(len(set(found)) for found in split)
    seconds = {"read": text_bytes / READ_BYTES_S}
    disk = {"texts": text_bytes + 24 * passages}
    memory = [BASE_BYTES + 8 * passages]
    peak = sum(disk.values())
    if rates.embedded_s is not None:
      floats = passages * dimension
      seconds["embed"] = passages / rates.embedded_s / rates.cores
      seconds["index"] = floats / 384 / INDEXED_S
      disk["index"] = (2 + HASH_DISK_BYTES) * floats
      # Trees are built one by one.
      tree = INDEX_BYTES * min(1.0, passages / MAX_SHARD_VECTORS)
      memory.append(BASE_BYTES + tree + HASH_BYTES * floats)
      peak += (3 * 2 + HASH_DISK_BYTES) * floats
    if words:
      seconds["words"] = num_words / WORDS_S
      disk["bm25"] = BM25_DISK_BYTES * distinct
      memory.append(BASE_BYTES + BM25_BYTES * distinct)
      temporary = 4 * num_words
      peak = max(peak, sum(disk.values()) + temporary)
    return cls(passages, seconds, max(memory), disk, peak)

  def lines(self) -> list[str]:
    """The plan for people."""
    times = ", ".join(
      f"{name} {_duration(value)}" for name, value in self.seconds.items()
    )
    sizes = ", ".join(
      f"{name} {_size(value)}" for name, value in self.disk_bytes.items()
    )
    return [
      f"passages: about {self.passages:,}",
      f"time: {_duration(sum(self.seconds.values()))} ({times})",
      f"memory: {_size(self.memory_bytes)} at most",
      f"disk: {_size(sum(self.disk_bytes.values()))} ({sizes}), "
      f"{_size(self.peak_disk_bytes)} while it is built",
    ]

  def as_json(self) -> dict[str, Any]:
    """The plan in hours and GB."""
    return {
      "passages": self.passages,
      "hours": {k: round(v / 3600, 2) for k, v in self.seconds.items()},
      "memory_gb": round(self.memory_bytes / 1e9, 1),
      "disk_gb": {k: round(v / 1e9, 1) for k, v in self.disk_bytes.items()},
      "peak_disk_gb": round(self.peak_disk_bytes / 1e9, 1),
    }


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} s"
  if seconds < 5400:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"


def _size(num_bytes: float) -> str:
  if num_bytes < 1e9:
    return f"{num_bytes / 1e6:.0f} MB"
  return f"{num_bytes / 1e9:.1f} GB"
