"""Tool-Star: the paper's training questions, with search and python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from rapo_jax.data import load_tool_star
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.tasks.base import HELD_OUT, Questions, Task
from rapo_jax.tasks.splits import split_by_question
from rapo_jax.tasks.tools import PythonSpec, SearchSpec, ToolSpec
from rapo_jax.tools import Tool


@dataclasses.dataclass(frozen=True)
class ToolStarTask(Task):
  """The Tool-Star training file, of which some questions are held out.

  Attributes:
    path: its Parquet file, such as train_10k.parquet.
    limit: rows that are read; None for all.
    held_out: distinct questions that are kept for evaluation, the first ones.
    corpus: JSONL file (`id`, `contents`) that the search tool reads; without
      one it answers that nothing was found.
  """

  paths: ClassVar[Mapping[str, bool]] = {"path": True, "corpus": False}

  name: str = "tool_star"
  _: dataclasses.KW_ONLY
  path: str | None = None
  limit: int | None = None
  held_out: int = 32
  corpus: str | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    check_numbers(self, "limit", "held_out", at_least=1)

  def questions(self) -> Questions:
    """Reads the file; see `Task.questions`."""
    if self.path is None:
      raise InputError(
        f"path of the task {self.name} must name a Parquet file, got None: "
        "set it."
      )
    queries = load_tool_star(
      self.path, tools=self.tool_specs(), limit=self.limit
    )
    train, held_out = split_by_question(queries, self.held_out)
    return Questions(train, {HELD_OUT: held_out})

  def tool_specs(self) -> tuple[Tool | ToolSpec, ...]:
    """Search and python."""
    return SearchSpec(self.corpus), PythonSpec()


TASK = ToolStarTask()
