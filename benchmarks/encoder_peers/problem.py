"""What the workers share: texts, and how they serve their vectors.

Imports nothing of rapo_jax: peers run it in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import worker

Encode = Callable[[Sequence[str]], np.ndarray]
"""Unit vectors of a batch of texts."""


def serve(
  make_encode: Callable[[pathlib.Path], Encode],
  versions: Callable[[], dict[str, str]],
) -> None:
  """Answers the driver until standard input ends.

  `encode` encodes all batches, one after another; `vectors` answers with the
  vectors of the first.

  Args:
    make_encode: from the model's folder to what encodes a batch.
    versions: of what matters.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument("model", type=pathlib.Path)
  parser.add_argument("batches", type=pathlib.Path)
  arguments = parser.parse_args()
  batches: list[list[str]] = json.loads(
    arguments.batches.read_text(encoding="utf-8")
  )

  def make_functions() -> dict[str, Callable[[], object]]:
    encode = make_encode(arguments.model)

    def encode_all() -> None:
      for texts in batches:
        encode(texts)

    return {
      "encode": encode_all,
      "vectors": lambda: encode(batches[0]).tolist(),
    }

  worker.serve(make_functions, versions())
