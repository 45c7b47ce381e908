"""GSM8K (Cobbe et al., arXiv 2110.14168): school mathematics, with python."""

from __future__ import annotations

import dataclasses
import decimal
import pathlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from rapo_jax import text_files
from rapo_jax.data import Query, chat_messages
from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.ranges import check_numbers
from rapo_jax.rewards import Reward, Sample, Score, last_boxed, reward
from rapo_jax.tasks.base import Questions, Task
from rapo_jax.tasks.tools import PythonSpec, ToolSpec
from rapo_jax.tools import Tool

# The rule of the authors' code for reference answers.
_REFERENCE = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"[-+]?(\d[\d,]*(\.\d*)?|\.\d+)")


@reward
def same_number(sample: Sample) -> Score:
  """1 if the boxed answer is the number, else 0; units do not count."""
  boxed = last_boxed(sample.policy_text)
  if boxed is None:
    return Score(0.0, "no_answer", whole=False)
  (truth,) = sample.query.ground_truth
  right = _number(boxed) == _number(truth)
  return Score(float(right), "right" if right else "wrong", boxed, right)


def _number(text: str) -> decimal.Decimal | None:
  """The only number in a text; None if there are none or several."""
  found = [match.group() for match in _NUMBER.finditer(text)]
  return decimal.Decimal(found[0].replace(",", "")) if len(found) == 1 else None


@dataclasses.dataclass(frozen=True)
class Gsm8kTask(Task):
  """Training and test questions in the authors' files.

  Attributes:
    folder: holds train.jsonl and test.jsonl, from
      github.com/openai/grade-school-math (grade_school_math/data).
    limit: lines of each file that are read; None for all.
  """

  paths: ClassVar[Mapping[str, bool]] = {"folder": True}

  name: str = "gsm8k"
  _: dataclasses.KW_ONLY
  reward: Reward = same_number
  folder: str | None = None
  limit: int | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    check_numbers(self, "limit", at_least=1)

  def questions(self) -> Questions:
    """Reads both files; see `Task.questions`."""
    return Questions(self._read("train"), {"test": self._read("test")})

  def tool_specs(self) -> tuple[Tool | ToolSpec, ...]:
    """Python."""
    return (PythonSpec(),)

  def _read(self, split: str) -> list[Query]:
    path = pathlib.Path(self.folder or "") / f"{split}.jsonl"
    if self.folder is None or not path.is_file():
      raise MissingInputError(
        f"folder of the task {self.name} must hold train.jsonl and test.jsonl, "
        f"and {path} is not there: get them from "
        "github.com/openai/grade-school-math, grade_school_math/data."
      )
    queries: list[Query] = []
    for number, row in text_files.json_lines(path):
      if len(queries) == self.limit:
        break
      queries.append(self._query(row, f"{split}-{number}", f"{path}:{number}"))
    return queries

  def _query(self, row: Any, query_id: str, where: str) -> Query:
    if not isinstance(row, dict) or not all(
      isinstance(row.get(key), str) for key in ("question", "answer")
    ):
      raise InputError(
        f"{where}: a line must have the texts question and answer, got "
        f"{row!a:.80}: get the file again."
      )
    reference = _REFERENCE.search(row["answer"])
    number = reference and _number(reference[1])
    if not number and number != 0:
      raise InputError(
        f"{where}: an answer must end with #### and a number, got "
        f"{row['answer'][-40:]!a}: get the file again."
      )
    messages = chat_messages(row["question"], self.tool_specs())
    truth = f"{number.normalize():f}"
    return Query(query_id, row["question"], (truth,), messages, self.name)


TASK = Gsm8kTask()
