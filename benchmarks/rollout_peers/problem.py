"""What the workers share: weights, prompts, and how they serve generations.

Imports nothing of rapo_jax: peers run it in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import worker

_COMPARED_TOKENS = 8


class Problem:
  """What every worker generates from.

  Attributes:
    model: folder of the model, in Hugging Face's format.
    prompts: token ids, `[B, P]`, no two rows alike.
    new_tokens: to generate in every row, no more and no less.
    shape: names and sizes of the model's configuration.
  """

  def __init__(self, folder: pathlib.Path):
    self.model = folder / "model"
    self.prompts = np.load(folder / "prompts.npy")
    settings = json.loads(
      (folder / "settings.json").read_text(encoding="utf-8")
    )
    self.new_tokens: int = settings["new_tokens"]
    self.shape: dict[str, Any] = settings["shape"]


Generate = Callable[[bool], Sequence[Sequence[int]]]
"""From whether to take the likeliest tokens to the new ids of each row."""


def serve(
  make_generate: Callable[[Problem], Generate], versions: dict[str, str]
) -> None:
  """Answers the driver until standard input ends.

  `sample` generates and answers with the number of tokens, `greedy` with the
  first of each row.

  Args:
    make_generate: from the problem to a function that generates.
    versions: of what matters.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  problem = Problem(parser.parse_args().folder)

  def make_functions() -> dict[str, Callable[[], Any]]:
    generate = make_generate(problem)

    def checked(greedy: bool) -> np.ndarray:
      rows = [np.asarray(row) for row in generate(greedy)]
      lengths = {len(row) for row in rows}
      if len(rows) != len(problem.prompts) or lengths != {problem.new_tokens}:
        raise ValueError(
          f"a worker has to generate {problem.new_tokens} tokens in each of "
          f"{len(problem.prompts)} rows, got {lengths} in {len(rows)}."
        )
      return np.stack(rows)

    return {
      "sample": lambda: checked(False).size,
      "greedy": lambda: checked(True)[:, :_COMPARED_TOKENS].tolist(),
    }

  worker.serve(make_functions, versions)
