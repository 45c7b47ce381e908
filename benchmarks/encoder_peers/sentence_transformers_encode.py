"""sentence-transformers on torch, by its `encode`."""

from __future__ import annotations

import pathlib

import sentence_transformers
import torch
from problem import Encode, serve


def make_encode(model: pathlib.Path) -> Encode:
  torch.set_num_threads(1)
  encoder = sentence_transformers.SentenceTransformer(str(model), device="cpu")
  # It sorts a call's texts by length and takes 32 at a time.
  return lambda texts: encoder.encode(list(texts), show_progress_bar=False)


if __name__ == "__main__":
  serve(
    make_encode,
    lambda: {
      "torch": torch.__version__,
      "sentence_transformers": sentence_transformers.__version__,
    },
  )
