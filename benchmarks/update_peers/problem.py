"""What the workers share: the problem, and how they serve an update.

Imports nothing of rapo_jax: peers run it in environments of their own.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import worker


class Problem:
  """The batch and the model that every worker trains on.

  Attributes:
    model: folder of the model, in Hugging Face's format.
    tokens: token ids, `[B, T]`.
    completion: how many of a row's last tokens are the policy's.
    advantages: of each row, `[B]`.
    old_log_probs: of the completions, `[B, completion]`.
    settings: learning rate, clip range, norm bound and AdamW's numbers.
  """

  def __init__(self, folder: pathlib.Path, completion: int):
    self.model = folder / "model"
    self.completion = completion
    with np.load(folder / "batch.npz") as batch:
      self.tokens = batch["tokens"]
      self.advantages = batch["advantages"]
      self.old_log_probs = batch["old_log_probs"][:, -completion:]
    self.settings = json.loads(
      (folder / "settings.json").read_text(encoding="utf-8")
    )

  @property
  def prompts(self) -> np.ndarray:
    """The rows' first tokens."""
    return self.tokens[:, : -self.completion]

  @property
  def completions(self) -> np.ndarray:
    """The rows' last tokens."""
    return self.tokens[:, -self.completion :]


def serve(
  make_update: Callable[[Problem], Callable[[], tuple[float, float]]],
  versions: dict[str, str],
  **others: Callable[[], Any],
) -> None:
  """Answers the driver until standard input ends.

  Args:
    make_update: from the problem to a function that runs one update, waits for
      it, and returns its loss and gradient norm.
    versions: of what matters.
    others: further functions to time, by the word that asks for one.
  """
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("completion", type=int)
  arguments = parser.parse_args()
  worker.serve(
    lambda: {
      "update": make_update(Problem(arguments.folder, arguments.completion)),
      **others,
    },
    versions,
  )
