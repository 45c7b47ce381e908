"""Mathematics: GSM8K, SVAMP, MATH, MATH500 and the AIME of two years."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from rapo_jax.datasets.base import (
  TRAIN,
  DataSet,
  Layout,
  Row,
  question_row,
  text_of,
)
from rapo_jax.datasets.solutions import annotated_steps
from rapo_jax.errors import InputError
from rapo_jax.rewards import last_boxed

# The rule of the authors' code.
_GSM8K = re.compile(r"#### (-?[0-9.,]+)")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox) +([^\s${}]+)")
_PROBLEM = ("problem", "question")


def gsm8k_row(row: Mapping[str, Any], where: str) -> Row:
  """The number behind `####`, without commas; the whole is the solution."""
  solution = text_of(row, ("answer",), where)
  found = _GSM8K.search(solution)
  number = found[1].replace(",", "").rstrip(".") if found else ""
  if not any(character.isdigit() for character in number):
    raise InputError(
      f"{where}: an answer must end with #### and a number, got "
      f"{row['answer'][-40:]!a}: get the file again."
    )
  return Row(
    "", text_of(row, ("question",), where), (number,), solution=solution
  )


def math_row(row: Mapping[str, Any], where: str) -> Row | None:
  """`answer`, or the last box of `solution`."""
  extra = [key for key in ("level", "type", "subject") if key in row]
  if row.get("answer") is not None:
    return question_row(row, where, question=_PROBLEM, extra=extra)
  solution = text_of(row, ("solution",), where)
  boxed = last_boxed(solution)
  if boxed is None:
    bare = _BARE_BOX.findall(solution)
    boxed = bare[-1] if bare else None
  if boxed is None:
    raise InputError(
      f"{where}: a solution must hold its answer in \\boxed{{}}, got "
      f"{solution[-60:]!a}: get the file again."
    )
  return question_row(
    {**row, "answer": boxed}, where, question=_PROBLEM, extra=extra
  )


def svamp_row(row: Mapping[str, Any], where: str) -> Row:
  """The story and its question as one text; a number without `.0`."""
  story = text_of(row, ("body",), where).strip()
  # Some stories end within the sentence that the question goes on with.
  between = " " if story.endswith((".", "!", "?")) else ", "
  number = row.get("answer")
  if isinstance(number, bool) or not isinstance(number, (int, float)):
    raise InputError(
      f"{where}: an answer must be a number, got {number!a:.40}: get the file "
      "again."
    )
  whole = int(number) if float(number).is_integer() else number
  question = f"{story}{between}{text_of(row, ('question',), where).strip()}"
  return Row(str(row.get("id") or ""), question, (str(whole),))


aime_row = functools.partial(question_row, question=_PROBLEM)

_GSM8K_URL = (
  "https://raw.githubusercontent.com/openai/grade-school-math/master/"
  "grade_school_math/data"
)
DATA_SETS = (
  DataSet(
    "gsm8k",
    "GSM8K",
    "github.com/openai/grade-school-math (grade_school_math/data)",
    (
      Layout("arpo_eval/gsm8k/test.jsonl", num_rows=1319),
      Layout("gsm8k*/test.jsonl", num_rows=1319),
      Layout("gsm8k*/train.jsonl", TRAIN, num_rows=7473),
    ),
    gsm8k_row,
    {
      f"gsm8k/{split}.jsonl": f"{_GSM8K_URL}/{split}.jsonl"
      for split in ("train", "test")
    },
    steps=annotated_steps,
  ),
  DataSet(
    "svamp",
    "SVAMP",
    "github.com/arkilpatel/SVAMP (SVAMP.json)",
    (Layout("SVAMP.json", num_rows=1000),),
    svamp_row,
    {
      "svamp/SVAMP.json": "https://raw.githubusercontent.com/arkilpatel/SVAMP/"
      "main/SVAMP.json"
    },
  ),
  DataSet(
    "math",
    "MATH",
    "github.com/hendrycks/math",
    (
      Layout("math/test.jsonl", num_rows=5000),
      Layout("MATH/test/*/*.json", num_rows=1),
      Layout("MATH/train/*/*.json", TRAIN, num_rows=1),
    ),
    math_row,
  ),
  DataSet(
    "math500",
    "MATH500",
    "github.com/openai/prm800k (prm800k/math_splits/test.jsonl)",
    (Layout("math500/test.jsonl", num_rows=500),),
    math_row,
  ),
  DataSet(
    "aime2024",
    "AIME 2024",
    "github.com/QwenLM/Qwen2.5-Math (evaluation/data/aime24)",
    (
      Layout("aime2024/test.jsonl", num_rows=30),
      Layout("aime24/test.jsonl", num_rows=30),
    ),
    aime_row,
  ),
  DataSet(
    "aime2025",
    "AIME 2025",
    "github.com/dongguanting/ARPO (evaluation/data/aime25)",
    (
      Layout("aime2025/test.jsonl", num_rows=30),
      Layout("aime25/test.jsonl", num_rows=30),
    ),
    aime_row,
  ),
)
