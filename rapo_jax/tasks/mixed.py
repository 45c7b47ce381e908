"""Several tasks as one, for one policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rapo_jax.data import Query, epoch_order
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.rewards import Reward, Sample, Score, score_all
from rapo_jax.tasks.base import Questions, Task, by_name, load_questions
from rapo_jax.tasks.tools import ToolSpec
from rapo_jax.tools import Tool

# Of the part that is drawn from a task.
_SEED = 0


@dataclasses.dataclass(frozen=True)
class MixedReward:
  """Scores each sample by the reward of its question's task.

  Attributes:
    rewards: name of a task and its reward.
  """

  rewards: tuple[tuple[str, Reward], ...]

  def score(self, batch: Sequence[Sample]) -> list[Score]:
    """One batch for each task's reward; scores in the order of the samples."""
    scores: dict[int, Score] = {}
    for name, reward in self.rewards:
      own = [i for i, s in enumerate(batch) if s.query.task == name]
      if own:
        found = score_all(reward, [batch[i] for i in own])
        scores |= dict(zip(own, found, strict=True))
    return [scores[i] for i in range(len(batch))]


@dataclasses.dataclass(frozen=True)
class MixedTask(Task):
  """The training questions of several tasks, shuffled together.

  Each evaluation set keeps its name, behind that of its task and a dash. An
  agent can call the tools of all tasks; a question's prompt names those of its
  own. Both rewards are made from those of the tasks.

  Attributes:
    tasks: two or more.
    weights: share of each task in an epoch, in their order, up to a factor;
      None for the shares that their questions have. An epoch is as long as
      all tasks together. A task with more weight comes round again, under
      further ids; of one with less, a part is drawn once and for all.

  Raises:
    InputError: there are fewer tasks, two have different tools of one name, or
      the weights are not one a task and above 0.
  """

  _: dataclasses.KW_ONLY
  tasks: tuple[Task, ...]
  weights: tuple[float, ...] | None = None

  def __post_init__(self) -> None:
    check_numbers(self, "weights", above=0)
    if self.weights is not None and len(self.weights) != len(self.tasks):
      raise InputError(
        f"weights must be one a task ({len(self.tasks)}), got "
        f"{self.weights}: correct them."
      )
    tasks = by_name(self.tasks)
    if len(tasks) < 2:
      raise InputError(
        f"a mixture needs at least two tasks, and {self.name} has "
        f"{', '.join(tasks)}: add one, or use the task itself."
      )
    reward = MixedReward(tuple((t.name, t.reward) for t in self.tasks))
    object.__setattr__(self, "reward", reward)
    if any(task.evaluation_reward is not None for task in self.tasks):
      reported = tuple((t.name, t.reported_reward) for t in self.tasks)
      object.__setattr__(self, "evaluation_reward", MixedReward(reported))
    super().__post_init__()
    self.tool_specs()

  def questions(self) -> Questions:
    """Reads all of them; see `Task.questions`."""
    parts: list[list[Query]] = []
    sets: dict[str, list[Query]] = {}
    for task in self.tasks:
      own = load_questions(task)
      parts.append([_renamed(query, task) for query in own.train])
      for name, queries in own.evaluation.items():
        sets[f"{task.name}-{name}"] = [_renamed(q, task) for q in queries]
    total = sum(map(len, parts))
    weights = self.weights or [float(len(part)) for part in parts]
    train = [
      query
      for part, weight in zip(parts, weights, strict=True)
      for query in _drawn(part, round(total * weight / sum(weights)))
    ]
    return Questions(train, sets)

  def solutions(self) -> Mapping[str, tuple[str, ...]]:
    """Those of all tasks."""
    return {
      _name_in(task, query_id): steps
      for task in self.tasks
      for query_id, steps in task.solutions().items()
    }

  def tool_specs(self) -> tuple[Tool | ToolSpec, ...]:
    """The tools of all tasks; one that several share comes once."""
    found: dict[str, Tool | ToolSpec] = {}
    for task in self.tasks:
      for spec in task.tool_specs():
        if found.setdefault(spec.name, spec) != spec:
          raise InputError(
            f"tasks of a mixture must share a tool of one name, and those of "
            f"{self.name} have two that are called {spec.name!r} and differ: "
            "give both tasks the same one."
          )
    return tuple(found.values())


def _drawn(queries: Sequence[Query], count: int) -> list[Query]:
  """So many questions: each as often as the others, but for one time."""
  if not queries:
    return []
  rounds, rest = divmod(count, len(queries))
  if not rest and rounds == 1:
    return list(queries)
  order = epoch_order(_SEED, 0, len(queries)).tolist()
  times = {i: rounds + (rank < rest) for rank, i in enumerate(order)}
  return [
    dataclasses.replace(query, query_id=f"{query.query_id}.{copy}")
    if copy
    else query
    for i, query in enumerate(queries)
    for copy in range(times[i])
  ]


def _renamed(query: Query, task: Task) -> Query:
  """The question with an id that no other task's has."""
  return dataclasses.replace(
    query, query_id=_name_in(task, query.query_id), task=task.name
  )


def _name_in(task: Task, query_id: str) -> str:
  return f"{task.name}/{query_id}"
