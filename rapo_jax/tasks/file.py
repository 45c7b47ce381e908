"""A task from a file of one's own: a question and its answer a row."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from rapo_jax import row_files, text_files
from rapo_jax.data import Query, chat_messages
from rapo_jax.dataset_rows import accepted_answers, check_text
from rapo_jax.discovery import KNOWN
from rapo_jax.errors import InputError, MissingInputError
from rapo_jax.ranges import check_numbers
from rapo_jax.tasks.base import HELD_OUT, Questions, Task
from rapo_jax.tasks.splits import split_by_question
from rapo_jax.tasks.tool_table import TOOLS
from rapo_jax.tasks.tools import ToolSpec
from rapo_jax.tools import Tool


@dataclasses.dataclass(frozen=True)
class FileTask(Task):
  """Questions from JSON, CSV or Parquet, with tools and a reward of one's own.

  Attributes:
    path: file of the training questions, which ends in one of
      `row_files.SUFFIXES`; None for a task that is evaluated alone.
    evaluation: files of evaluation sets; each set is named as its file.
    held_out: distinct questions of `path` that are kept for evaluation, the
      first ones, as a set of that name.
    limit: rows of each file that are read; None for all.
    question: column of the question.
    answer: column of the accepted answers, in any form that
      `dataset_rows.accepted_answers` reads.
    id: column of the question's id; None for `<file name>-<row>`.
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
  tools: tuple[Tool | ToolSpec, ...] = dataclasses.field(
    default=(), metadata={KNOWN: TOOLS}
  )

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
    file = pathlib.Path(path)
    if not file.is_file():
      raise MissingInputError(
        f"the task {self.name} reads {path}, and no such file exists: correct "
        "the path."
      )
    try:
      text_files.check_text(file.stem)
    except text_files.TextError as error:
      raise InputError(
        f"the file {path!a} names its questions: {error}. Rename it."
      ) from error
    queries: list[Query] = []
    names = (self.question, self.answer, *([self.id] if self.id else []))
    columns = tuple(name.lower() for name in names)
    for number, (where, row) in enumerate(
      row_files.read_rows(file, columns), 1
    ):
      if number - 1 == self.limit:
        break
      if not isinstance(row, Mapping):
        raise InputError(
          f"{where}: each row must be an object with {self.question!r} and "
          f"{self.answer!r}, got {row!a:.80}: correct it."
        )
      queries.append(self._query(row, f"{file.stem}-{number}", where))
    if not queries:
      raise InputError(f"{path} must hold questions, and is empty: add some.")
    return queries

  def _query(self, row: Mapping[str, Any], query_id: str, where: str) -> Query:
    question = self._value(row, self.question, where)
    if not isinstance(question, str) or not question.strip():
      raise InputError(
        f"{where}: {self.question!r} must be a text that is not blank, got "
        f"{question!r:.80}: correct the row."
      )
    value = self._value(row, self.answer, where)
    answers = accepted_answers(value, f"{where}, {self.answer!r}")
    if not answers:
      raise InputError(
        f"{where}: every question needs an answer, and that under "
        f"{self.answer!r} is blank: correct the row, or delete it."
      )
    for text in (question, *answers):
      check_text(text, where)
    if self.id is not None:
      query_id = self._id(row, self.id, where)
    messages = chat_messages(question, self.tools)
    return Query(query_id, question, answers, messages, self.name)

  def _id(self, row: Mapping[str, Any], column: str, where: str) -> str:
    value = self._value(row, column, where)
    if isinstance(value, bool) or not isinstance(value, str | int):
      raise InputError(
        f"{where}: {column!r} must be a text or a whole number, as it is the "
        f"question's id, got {value!r:.80}: correct the row."
      )
    return str(value)

  def _value(self, row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
      raise InputError(
        f"{where}: the column {column!r} is missing; the row has "
        f"{', '.join(map(repr, row)) or 'no column'}. Name the columns of your "
        f"file in question, answer and id of the task {self.name}."
      )
    return row[column]


TASK = FileTask("file")
