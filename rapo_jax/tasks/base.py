"""A task: questions, evaluation sets, tools and a reward."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from rapo_jax import models, text_files
from rapo_jax.data import Query, check_query_ids, fill_system_prompt
from rapo_jax.discovery import KNOWN
from rapo_jax.errors import InputError
from rapo_jax.rewards import OUTCOME, REWARDS, Reward, check_reward
from rapo_jax.tasks.tools import ToolSpec
from rapo_jax.tools import TagSet, Tool, check_description, check_tools

Report = Callable[[float, str], None]

HELD_OUT = "held_out"
"""Name of the evaluation set that is split from the training file."""
# It names a folder, a metric and a field of a config.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Questions(NamedTuple):
  """The questions of a task.

  Attributes:
    train: to train on; empty if the task is for evaluation alone.
    evaluation: evaluation sets by name, in the order of the report.
  """

  train: Sequence[Query]
  evaluation: Mapping[str, Sequence[Query]]


class OwnAgents(Protocol):
  """Agents that a task trains itself, where a run names none."""

  def tokenizer(self) -> Any:
    """A Hugging Face tokenizer with a chat template."""

  def shape(self) -> models.DecoderConfig:
    """Shape of both agents."""

  def train(self, folder: pathlib.Path, *, report: Report) -> None:
    """Writes `base` and `off_policy`, two Hugging Face folders.

    Args:
      folder: gets both.
      report: called with the share done, 0 to 1, and a word on it.
    """


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
  """A task. Subclasses are frozen dataclasses, and give the questions.

  Attributes:
    name: names folders, metrics and fields of a config: letters, digits, `_`
      and `-`.
    reward: scores trajectories, and says which answers are correct.
    evaluation_reward: the same in evaluations; None for `reward`.
    prompt: text file with the system prompt of all questions, see
      `rapo_jax.data.fill_system_prompt`; None for that of each question.

  Raises:
    InputError: the name is of another form, or the reward is no `Reward`.
  """

  paths: ClassVar[Mapping[str, bool]] = {"prompt": False}
  """Fields that name files, and whether the task needs them.

  A subclass names its own; those of its bases stay.
  """

  name: str
  _: dataclasses.KW_ONLY
  reward: Reward = dataclasses.field(default=OUTCOME, metadata={KNOWN: REWARDS})
  evaluation_reward: Reward | None = dataclasses.field(
    default=None, metadata={KNOWN: REWARDS}
  )
  prompt: str | None = None

  def __init_subclass__(cls) -> None:
    super().__init_subclass__()
    named = [getattr(kind, "paths", {}) for kind in (*cls.__bases__, cls)]
    cls.paths = {
      field: needed for paths in named for field, needed in paths.items()
    }

  def __post_init__(self) -> None:
    check_name("the name of a task", self.name)
    check_reward(self.reward)
    check_reward(self.reported_reward)

  @property
  def reported_reward(self) -> Reward:
    """The reward that evaluations report."""
    reward = self.evaluation_reward
    return self.reward if reward is None else reward

  def check(self) -> None:  # noqa: B027 - a task may need no check
    """Checks what costs nothing to check, before anything is written.

    Raises:
      InputError: the questions cannot be read as the task stands.
    """

  @abc.abstractmethod
  def questions(self) -> Questions:
    """Reads the questions.

    Raises:
      InputError: a file is missing or broken.
    """

  def tool_specs(self) -> tuple[Tool | ToolSpec, ...]:
    """Its tools; those that need a service are specs."""
    return ()

  def solutions(self) -> Mapping[str, tuple[str, ...]]:
    """Worked solutions of training questions, in the agent's format.

    Returns:
      By query id, the texts of the steps: thought, call and `<result>`; the
      last one has the answer. A question need not have any.

    Raises:
      InputError: a file is missing or broken.
    """
    return {}

  def own_agents(self) -> OwnAgents | None:
    """Agents that the task trains itself; None if it has none."""
    return None


def check_name(what: str, name: str) -> None:
  """Refuses a name that can be no folder or field.

  Raises:
    InputError: it holds other characters.
  """
  if not isinstance(name, str) or not _NAME.fullmatch(name):
    raise InputError(
      f"{what} must be letters, digits, _ and -, got {name!r}: rename it."
    )


def by_name(tasks: Iterable[Task]) -> dict[str, Task]:
  """Tasks by name.

  Raises:
    InputError: `tasks` is empty, one is no task, or two share a name.
  """
  found: dict[str, Task] = {}
  for task in tasks:
    if not isinstance(task, Task):
      raise InputError(
        f"a task must be a value of a subclass of rapo_jax.tasks.Task, got "
        f"{task!r:.80}: hand one in."
      )
    if task.name in found:
      raise InputError(
        f"tasks need names of their own, got two that are called "
        f"{task.name!r}: rename one."
      )
    found[task.name] = task
  if not found:
    raise InputError("tasks must hold at least one task, got (): add one.")
  return found


def load_questions(task: Task) -> Questions:
  """Reads a task's questions and checks them.

  Raises:
    InputError: a file, such as that of the prompt, is missing or broken; there
      is no evaluation set, or one without questions; something is no `Query`;
      or two questions share an id. The message names the task.
  """
  questions = task.questions()
  check_questions(task, questions)
  if task.prompt is None:
    return questions
  system = _system_prompt(task, pathlib.Path(task.prompt))
  return Questions(
    [_with_system(query, system) for query in questions.train],
    {
      name: [_with_system(query, system) for query in queries]
      for name, queries in questions.evaluation.items()
    },
  )


def _system_prompt(task: Task, file: pathlib.Path) -> str:
  """The system prompt in a file, for the tools of a task."""
  try:
    text = text_files.whole_text(file)
    return fill_system_prompt(text, task.tool_specs())
  except InputError as error:
    raise InputError(f"the prompt of the task {task.name}: {error}") from error


def _with_system(query: Query, system: str) -> Query:
  """The question with another system prompt."""
  rest = [m for m in query.messages if m["role"] != "system"]
  messages = ({"role": "system", "content": system}, *rest)
  return dataclasses.replace(query, messages=messages)


def check_questions(task: Task, questions: Questions) -> None:
  """Checks what `Task.questions` gave.

  Raises:
    InputError: see `load_questions`.
  """
  if not isinstance(questions, Questions):
    raise InputError(
      f"questions() of the task {task.name} must return "
      f"rapo_jax.tasks.Questions, got {type(questions).__name__}: return "
      "Questions(train, {name: queries})."
    )
  if not questions.evaluation:
    raise InputError(
      f"the task {task.name} must have at least one evaluation set, and has "
      "none: give it questions to evaluate on."
    )
  for name, queries in questions.evaluation.items():
    check_name(f"the name of an evaluation set of {task.name}", name)
    if not queries:
      raise InputError(
        f"an evaluation set must have questions, and {name} of the task "
        f"{task.name} has none: add some, or leave the set out."
      )
  every = [
    query
    for queries in (questions.train, *questions.evaluation.values())
    for query in queries
  ]
  for query in every:
    if not isinstance(query, Query):
      raise InputError(
        f"questions must be rapo_jax.data.Query, and the task {task.name} has "
        f"{query!r:.80}: make one of it."
      )
  try:
    check_query_ids(every)
  except InputError as error:
    raise InputError(f"the task {task.name}: {error}") from error


def load_solutions(
  task: Task, queries: Iterable[Query]
) -> dict[str, tuple[str, ...]]:
  """Reads a task's worked solutions of some questions and checks them.

  Raises:
    InputError: they cannot be read, or a solution is no sequence of steps, none
      of which is blank; names task and question.
  """
  wanted = dict.fromkeys(query.query_id for query in queries)
  given: Mapping[str, Any] = task.solutions()
  for query_id, steps in given.items():
    if (
      isinstance(steps, str)
      or not steps
      or not all(isinstance(step, str) and step.strip() for step in steps)
    ):
      raise InputError(
        f"solutions() of the task {task.name} must give the texts of the steps "
        f"of each, none of them blank, got {steps!r:.80} for {query_id!r}: "
        "correct it, or leave the question out."
      )
  return {name: tuple(given[name]) for name in wanted if name in given}


def check_tool_specs(task: Task) -> TagSet:
  """Checks what a task says of its tools, before one is started.

  Returns:
    Their tags.

  Raises:
    InputError: something is no tool and no spec of one, two share a name, or a
      name cannot be a tag; names the task.
  """
  specs = task.tool_specs()
  try:
    tags = TagSet(tuple(str(getattr(spec, "name", "")) for spec in specs))
    for spec in specs:
      if isinstance(spec, Tool) or not isinstance(spec, ToolSpec):
        check_tools({spec.name: spec})
      else:
        check_description(spec)
    return tags
  except InputError as error:
    raise InputError(f"the tools of the task {task.name}: {error}") from error
