"""A task from JSON lines: one question and its answer a line."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from rapo_jax import text_files
from rapo_jax.data import Query, chat_messages
from rapo_jax.dataset_rows import accepted_answers
from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.ranges import check_numbers
from rapo_jax.tasks.base import HELD_OUT, Questions, Task
from rapo_jax.tasks.splits import split_by_question
from rapo_jax.tasks.tools import ToolSpec
from rapo_jax.tools import Tool


@dataclasses.dataclass(frozen=True)
class JsonlTask(Task):
  """Questions from JSON lines, with tools and a reward of one's own.

  Attributes:
    path: file of the training questions; None for a task that is evaluated
      alone.
    evaluation: files of evaluation sets; each set is named as its file.
    held_out: distinct questions of `path` that are kept for evaluation, the
      first ones, as a set of that name.
    limit: lines of each file that are read; None for all.
    question: key of the question.
    answer: key of the accepted answers, in any form that
      `dataset_rows.accepted_answers` reads.
    id: key of the question's id; None for `<file name>-<line>`.
    tools: the agent's tools, or specs of tools.
  """

  paths: ClassVar[Mapping[str, bool]] = {"path": False, "evaluation": False}

  _: dataclasses.KW_ONLY
  path: str | None = None
  evaluation: tuple[str, ...] = ()
  held_out: int = 0
  limit: int | None = None
  question: str = "question"
  answer: str = "answer"
  id: str | None = None
  tools: tuple[Tool | ToolSpec, ...] = ()

  def __post_init__(self) -> None:
    super().__post_init__()
    check_numbers(self, "limit", at_least=1)
    check_numbers(self, "held_out", at_least=0)

  def questions(self) -> Questions:
    """Reads the files; see `Task.questions`."""
    train: list[Query] = []
    sets: dict[str, list[Query]] = {}
    if self.path is not None:
      train = self._read(self.path)
    if self.held_out:
      try:
        train, sets[HELD_OUT] = split_by_question(train, self.held_out)
      except InputError as error:
        raise InputError(f"{self.path}: {error}") from error
    for path in self.evaluation:
      name = pathlib.Path(path).stem
      if name in sets:
        raise InputError(
          f"evaluation sets need names of their own, and two of the task "
          f"{self.name} are called {name!r}: rename {path}."
        )
      sets[name] = self._read(path)
    return Questions(train, sets)

  def tool_specs(self) -> tuple[Tool | ToolSpec, ...]:
    """The tools that were given."""
    return self.tools

  def _read(self, path: str) -> list[Query]:
    queries = []
    for number, row in self._rows(pathlib.Path(path)):
      where = f"{path}:{number}"
      question = self._text(row, self.question, where)
      if self.answer not in row:
        raise self._missing(row, self.answer, where)
      answers = accepted_answers(row[self.answer], f"{where}, {self.answer!r}")
      if not answers:
        raise InputError(
          f"{where}: every question needs an answer, and that under "
          f"{self.answer!r} is blank: correct the line, or delete it."
        )
      query_id = f"{pathlib.Path(path).stem}-{number}"
      if self.id is not None:
        query_id = str(row.get(self.id) or "")
        if not query_id:
          raise self._missing(row, self.id, where)
      queries.append(
        Query(
          query_id,
          question,
          answers,
          chat_messages(question, self.tools),
          self.name,
        )
      )
    return queries

  def _rows(self, path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
      raise MissingInputError(
        f"the task {self.name} reads {path}, and no such file exists: correct "
        "the path."
      )
    count = 0
    for number, row in text_files.json_lines(path):
      if count == self.limit:
        return
      if not isinstance(row, dict):
        raise InputError(
          f"{path}:{number}: each line must be an object with "
          f"{self.question!r} and {self.answer!r}, got {row!a:.80}: correct it."
        )
      yield number, row
      count += 1
    if not count:
      raise InputError(f"{path} must hold questions, and is empty: add some.")

  def _text(self, row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
      raise self._missing(row, key, where)
    text = row[key]
    if not isinstance(text, str) or not text.strip():
      raise InputError(
        f"{where}: {key!r} must be a text that is not blank, got "
        f"{text!r:.80}: correct the line."
      )
    return text

  def _missing(self, row: dict[str, Any], key: str, where: str) -> InputError:
    return InputError(
      f"{where}: the key {key!r} is missing; the line has "
      f"{', '.join(map(repr, row)) or 'no key'}. Name the keys of your file in "
      f"question, answer and id of the task {self.name}."
    )
