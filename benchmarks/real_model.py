"""What the benchmarks of real models share: the model, and its questions."""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from experiments import pretrained
from rapo_jax.datasets import DATA_SETS

DEFAULT = "smollm2-135m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --model and --data, which say what is measured."""
  parser.add_argument(
    "--model",
    default=DEFAULT,
    help="folder, or a name that experiments.pretrained knows",
  )
  parser.add_argument(
    "--data", type=pathlib.Path, help="folder with GSM8K's train.jsonl"
  )


def folder_of(name: str) -> pathlib.Path:
  """The folder of a model, made where a known model is meant.

  Args:
    name: a folder, or a key of `pretrained.MODELS`.
  """
  folder = pathlib.Path(name)
  if folder.is_dir():
    return folder
  cache = pretrained.default_cache()
  file = pretrained.fetch(name, cache)
  folder = cache / name
  if not (folder / "config.json").is_file():
    pretrained.convert(file, folder, known=pretrained.MODELS[name])
  return folder


def read_questions(folder: pathlib.Path | None) -> list[tuple[str, str]]:
  """Questions with a number as their answer: GSM8K's, or sums.

  Args:
    folder: with GSM8K's train.jsonl; None for sums that are written here.
  """
  if folder is not None:
    rows, _ = DATA_SETS["gsm8k"].read(folder / "train.jsonl")
    return [(row.question, row.answers[0]) for row in rows]
  numbers = np.random.default_rng(0).integers(2, 100, (1000, 3)).tolist()
  return [
    (
      f"Anna has {a} apples and buys {b} more. Then she buys {c} boxes with "
      f"{a} apples each. How many apples does she have? Think step by step.",
      str(a + b + a * c),
    )
    for a, b, c in numbers
  ]
