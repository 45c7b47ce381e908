"""A sentence encoder's stand-in, and corpora built with it."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from rapo_jax import corpora
from rapo_jax.corpora.builder import build


class HashEncoder:
  """A text's vector depends on its digest; counts what it embeds."""

  def __init__(self, name: str = "hashes", dimension: int = 16):
    self.encoder_id = name
    self.sha256 = hashlib.sha256(name.encode()).hexdigest()
    self.max_tokens = 64
    self.dimension = dimension
    self.num_embedded = 0

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    self.num_embedded += len(texts)
    vectors = np.stack([self._vector(text) for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

  encode_queries = encode

  def _vector(self, text: str) -> np.ndarray:
    digest = hashlib.shake_128(text.encode()).digest(self.dimension)
    return np.frombuffer(digest, np.uint8).astype(np.float32) - 127.5


def write_rows(path: pathlib.Path, count: int) -> pathlib.Path:
  """Writes passages; each has a word that no other has, `thing<i>`."""
  rows = (
    {"id": f"p{i}", "contents": f'"Title {i}"\nthe thing{i} of group{i % 7}'}
    for i in range(count)
  )
  lines = (json.dumps(row) + "\n" for row in rows)
  path.write_text("".join(lines), encoding="utf-8")
  return path


def built(
  folder: pathlib.Path, count: int = 30, mode: corpora.Mode = "hybrid"
) -> pathlib.Path:
  """Builds a corpus below a folder."""
  path = write_rows(folder / "passages.jsonl", count)
  output = folder / "corpus"
  build(corpora.CorpusBuilder(path, output, HashEncoder(), mode=mode))
  return output
