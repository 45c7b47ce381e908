"""Our sentence encoder, with nothing in its cache."""

from __future__ import annotations

import importlib.metadata
import pathlib

from problem import Encode, serve

from rapo_jax import retrieval


def make_encode(model: pathlib.Path) -> Encode:
  encoder = retrieval.SentenceEncoder.from_pretrained(model, cache_size=0)
  encoder.compile()
  return encoder.encode


if __name__ == "__main__":
  serve(
    make_encode,
    lambda: {n: importlib.metadata.version(n) for n in ("jax", "flax")},
  )
