"""The families of the miniature world as tasks."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

from rapo_jax import models
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.tasks.base import HELD_OUT, OwnAgents, Questions, Report, Task
from rapo_jax.tasks.miniature import agents as agents_lib
from rapo_jax.tasks.miniature import tokenizer as tokenizer_lib
from rapo_jax.tasks.miniature.agents import AgentsConfig
from rapo_jax.tasks.miniature.world import (
  FAMILIES,
  Family,
  Question,
  World,
  WorldConfig,
)
from rapo_jax.tasks.miniature.world import make_world as draw_world
from rapo_jax.tasks.tools import PythonSpec, Services, ToolSpec
from rapo_jax.tools import OpenTool, SearchTool, Tool


@functools.cache
def make_world(config: WorldConfig) -> World:
  """The miniature world of a config, drawn once a process."""
  return draw_world(config)


@dataclasses.dataclass(frozen=True)
class FamilySearch:
  """The search tool over the documents of a family.

  Attributes:
    world: that the documents are from.
    family: whose documents they are.
  """

  world: WorldConfig
  family: Family

  name = SearchTool.name
  description = SearchTool.description
  example = SearchTool.example

  def start(self, services: Services, /) -> Tool:
    """Builds an index over the documents."""
    return services.search(make_world(self.world).documents(self.family))


@dataclasses.dataclass(frozen=True)
class WorldPages:
  """The open tool over the pages of a world.

  Attributes:
    world: that the pages are from.
  """

  world: WorldConfig

  name = OpenTool.name
  description = OpenTool.description
  example = OpenTool.example

  def start(self, services: Services, /) -> Tool:
    """Writes the pages."""
    del services
    return OpenTool(make_world(self.world).page_texts())


@dataclasses.dataclass(frozen=True)
class MiniatureAgents:
  """The two agents of a family.

  Attributes:
    family: what they learn.
    world: where their questions are from.
    config: their shape, and how they are trained.
  """

  family: Family
  world: WorldConfig
  config: AgentsConfig

  def tokenizer(self) -> Any:
    """Learned from the words of the world."""
    corpus = tokenizer_lib.corpus(make_world(self.world))
    return tokenizer_lib.train_tokenizer(corpus)

  def shape(self) -> models.DecoderConfig:
    """Shape of both."""
    return agents_lib.decoder_config(self.config, len(self.tokenizer()))

  def train(self, folder: pathlib.Path, *, report: Report) -> None:
    """Trains both by supervised learning."""
    agents_lib.train_agents(
      make_world(self.world), self.family, self.config, folder, report=report
    )


@dataclasses.dataclass(frozen=True)
class MiniatureTask(Task):
  """A family of the miniature world.

  Attributes:
    name: of the task; a family's name says which family it is.
    family: None for the family that `name` names.
    world: the miniature world.
    agents: how the two agents are trained.
  """

  name: str = "multihop"
  _: dataclasses.KW_ONLY
  family: Family | None = None
  world: WorldConfig = WorldConfig()
  agents: AgentsConfig = AgentsConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.family is None and self.name not in FAMILIES:
      raise InputError(
        "family must be set where a task has a name of its own, got None with "
        f"{self.name!r}: set one of {', '.join(FAMILIES)}."
      )

  @property
  def drawn_family(self) -> Family:
    """The family that the questions are of."""
    if self.family is not None:
      return self.family
    return next(f for f in FAMILIES if f == self.name)

  def questions(self) -> Questions:
    """Draws the questions; see `Task.questions`."""
    world, family = make_world(self.world), self.drawn_family
    return Questions(
      [_query(question) for question in world.train[family]],
      {HELD_OUT: [_query(question) for question in world.held_out[family]]},
    )

  def tool_specs(self) -> tuple[Tool | ToolSpec, ...]:
    """The tools that the family's questions take."""
    family = self.drawn_family
    if family == "compute":
      return (PythonSpec(),)
    search = FamilySearch(self.world, family)
    return (search, WorldPages(self.world)) if family == "web" else (search,)

  def own_agents(self) -> OwnAgents | None:
    """The warm-started agents of the family."""
    return MiniatureAgents(self.drawn_family, self.world, self.agents)


def _query(question: Question) -> Query:
  return Query(
    query_id=question.query_id,
    question=question.question,
    ground_truth=(question.ground_truth,),
    messages=({"role": "user", "content": question.question},),
    task=question.family,
  )


TASKS = tuple(MiniatureTask(family) for family in FAMILIES)
