"""The paper's data sets as tasks."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import ClassVar

from rapo_jax.data import Query, chat_messages
from rapo_jax.datasets import DATA_SETS, Row, check_prepared, prepare
from rapo_jax.discovery import KNOWN
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.rewards import GAIA, MATH, OUTCOME, QA, Reward
from rapo_jax.tasks.base import HELD_OUT, Questions, Task
from rapo_jax.tasks.splits import split_by_question
from rapo_jax.tasks.tool_table import TOOLS
from rapo_jax.tasks.tools import PythonSpec, SearchSpec, ToolSpec
from rapo_jax.tools import Tool

_log = logging.getLogger(__name__)
_REWARDS: Mapping[str, Reward] = {
  "gaia": GAIA,
  **dict.fromkeys(
    ("gsm8k", "svamp", "math", "math500", "aime2024", "aime2025"), MATH
  ),
  **dict.fromkeys(("hotpotqa", "2wikimultihopqa", "musique", "bamboogle"), QA),
}

# Their files hold no test set, or one that is rarely beside them.
_FOR_TRAINING = (
  "tool_star",
  "hard_search",
  "search_r1",
  "webdancer",
  "websailor",
)


@dataclasses.dataclass(frozen=True)
class DataSetTask(Task):
  """A data set of `rapo_jax.datasets`, with search and python.

  Its test split is the evaluation set `test`. The data set is prepared once,
  as ArrayRecord, and prepared anew where its files have changed.

  Attributes:
    data_set: its name there; None for that of the task.
    path: the publisher's file, or a folder with the publisher's files. None for
      what is prepared already (`python -m experiments.data prepare`).
    data_dir: folder of what is prepared; None for the default.
    limit: rows of each split that are read; None for all.
    held_out: distinct training questions that are kept for evaluation, the
      first ones, as a set of that name.
    evaluate_on: names of other data sets. The test split of each is a further
      evaluation set of that name, with this task's tools and reward. They are
      prepared already, or can be downloaded.
    tools: the agent's tools, or specs of tools. Search without a corpus
      answers that nothing was found.
  """

  paths: ClassVar[Mapping[str, bool]] = {
    "path": False,
    "data_dir": False,
  }

  _: dataclasses.KW_ONLY
  data_set: str | None = None
  path: str | None = None
  data_dir: str | None = None
  limit: int | None = None
  held_out: int = 0
  evaluate_on: tuple[str, ...] = ()
  tools: tuple[Tool | ToolSpec, ...] = dataclasses.field(
    default=(SearchSpec(), PythonSpec()), metadata={KNOWN: TOOLS}
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    check_numbers(self, "limit", at_least=1)
    check_numbers(self, "held_out", at_least=0)
    if self.set_name not in DATA_SETS:
      raise InputError(
        f"data_set must be one of {', '.join(DATA_SETS)}, got "
        f"{self.set_name!r}: correct it."
      )
    others = [name for name in DATA_SETS if name != self.set_name]
    named = self.evaluate_on
    if len(set(named)) < len(named) or not set(named) <= set(others):
      raise InputError(
        f"evaluate_on may name each of {', '.join(others)} once, got {named}: "
        "correct it."
      )

  @property
  def set_name(self) -> str:
    """Name of the data set."""
    return self.name if self.data_set is None else self.data_set

  def check(self) -> None:
    """Checks that the data sets are there, or can be downloaded."""
    own = (self.set_name,) if self.path is None else ()
    for name in (*own, *self.evaluate_on):
      check_prepared(name, self._data_dir)

  @property
  def _data_dir(self) -> pathlib.Path | None:
    return None if self.data_dir is None else pathlib.Path(self.data_dir)

  def questions(self) -> Questions:
    """Prepares the data set where needed; see `Task.questions`."""
    train, test = (
      [self._query(row) for row in self._rows(split)]
      for split in ("train", "test")
    )
    sets: dict[str, list[Query]] = {"test": test} if test else {}
    if self.held_out:
      train, sets[HELD_OUT] = split_by_question(train, self.held_out)
    return Questions(train, sets | dict(map(self._other, self.evaluate_on)))

  def _other(self, name: str) -> tuple[str, list[Query]]:
    """Another data set's test questions, whose ids begin with its name."""
    prepared = prepare(name, None, self._data_dir)
    if "test" not in prepared.sources:
      raise InputError(
        f"evaluate_on must name data sets with a test split, and {name} is "
        "prepared without one: prepare it from a folder that holds it, or "
        "leave it out."
      )
    queries = map(self._query, prepared.rows("test", self.limit))
    return name, [
      dataclasses.replace(query, query_id=f"{name}/{query.query_id}")
      for query in queries
    ]

  def solutions(self) -> Mapping[str, tuple[str, ...]]:
    """Those of the publisher that can be used; the others are counted."""
    steps_of = DATA_SETS[self.set_name].steps
    if steps_of is None:
      return {}
    rows = self._rows("train")
    queries = [self._query(row) for row in rows]
    if self.held_out:
      queries, _ = split_by_question(queries, self.held_out)
    train = {query.query_id for query in queries}
    given = {
      row.row_id: row.solution
      for row in rows
      if row.solution and row.row_id in train
    }
    found = {name: steps_of(solution) for name, solution in given.items()}
    usable = {name: steps for name, steps in found.items() if steps}
    if len(usable) < len(given):
      _log.warning(
        "%s: %d of %d solutions cannot be used as steps",
        *(self.name, len(given) - len(usable), len(given)),
      )
    return usable

  def tool_specs(self) -> tuple[Tool | ToolSpec, ...]:
    """The tools that were given."""
    return self.tools

  def _rows(self, split: str) -> list[Row]:
    """Rows of a split; none if the files have no such split."""
    prepared = prepare(
      self.set_name,
      None if self.path is None else pathlib.Path(self.path),
      self._data_dir,
    )
    if split not in prepared.sources:
      return []
    return prepared.rows(split, self.limit)

  def _query(self, row: Row) -> Query:
    messages = chat_messages(row.question, self.tool_specs())
    return Query(row.row_id, row.question, row.answers, messages, self.name)


TASKS = tuple(
  DataSetTask(
    name,
    reward=_REWARDS.get(name, OUTCOME),
    held_out=32 if name in _FOR_TRAINING else 0,
  )
  for name in DATA_SETS
)
