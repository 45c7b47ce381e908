"""A task: questions, tools and the agents that meet them.

The miniature world has one task a family; a data set is one task. Everything
downstream of here is the same for both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.config import EncoderConfig, ExperimentConfig
from experiments.tokenizer_files import load_tokenizer
from experiments.workdir import Workdir
from rapo_jax.data import (
  Query,
  check_query_ids,
  encode_prompt,
  load_corpus,
  load_tool_star,
)
from rapo_jax.errors import InputError
from rapo_jax.models import hub
from rapo_jax.retrieval import (
  IndexConfig,
  SentenceEncoder,
  index_class,
  normalized,
)
from rapo_jax.rewards import OUTCOME, RECIPE_TAGS, Reward
from rapo_jax.tasks.miniature.world import (
  FAMILIES,
  Family,
  Question,
  World,
  WorldConfig,
)
from rapo_jax.tasks.miniature.world import make_world as draw_world
from rapo_jax.tools import (
  OpenTool,
  PythonTool,
  PythonWallError,
  SearchTool,
  TagSet,
  Tool,
)

_log = logging.getLogger(__name__)
DATA_SET_TOOLS = (SearchTool, PythonTool)


@functools.cache
def make_world(config: WorldConfig) -> World:
  """The miniature world of a config, drawn once a process."""
  return draw_world(config)


@dataclasses.dataclass
class Task:
  """Questions, tools and agents.

  Attributes:
    name: family of the miniature world, or name of the data set.
    train: training questions.
    held_out: questions that nothing is trained on.
    tools: by name.
    tokenizer: of the agent that acts: the policy, except in `for_off_policy`.
    off_policy_tokenizer: of the off-policy agent. It may be another: what the
      agents exchange is text.
    max_prompt_tokens: longer prompts are refused.
    prompt_date: that chat templates which write the date are given.
    reward: scores its trajectories.
    base_path: Hugging Face folder of the base agent.
    off_policy_path: of the off-policy agent; None without one.
  """

  name: str
  train: list[Query]
  held_out: list[Query]
  tools: dict[str, Tool]
  tokenizer: Any
  off_policy_tokenizer: Any
  max_prompt_tokens: int
  prompt_date: datetime.date
  reward: Reward
  base_path: pathlib.Path
  off_policy_path: pathlib.Path | None
  _prompts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def tag_set(self) -> TagSet:
    """Tags that the reward reads as calls: the recipe's and its own tools'."""
    return TagSet(tuple(dict.fromkeys((*RECIPE_TAGS.tool_names, *self.tools))))

  def for_off_policy(self) -> tuple[Task, pathlib.Path]:
    """The same task with the off-policy agent acting, in its own tokens.

    Returns:
      The task, and the agent's folder.

    Raises:
      InputError: there is no off-policy agent.
    """
    if self.off_policy_path is None:
      raise InputError(
        f"{self.name} has no off-policy agent, which fills the buffer: set "
        "policy.off_policy, or buffer.path or buffer.url to a buffer."
      )
    acting = dataclasses.replace(
      self, tokenizer=self.off_policy_tokenizer, _prompts={}
    )
    return acting, self.off_policy_path

  def prompt(self, query: Query) -> Int[np.ndarray, " P"]:
    """Token ids of a question's prompt."""
    if query.query_id not in self._prompts:
      self._prompts[query.query_id] = encode_prompt(
        self.tokenizer,
        query,
        self.max_prompt_tokens,
        date=self.prompt_date,
      )
    return self._prompts[query.query_id]


def task_names(config: ExperimentConfig) -> list[str]:
  """Names of an experiment's tasks."""
  if config.data.source == "miniature":
    return list(config.data.families)
  return [config.data.source]


def agent_paths(
  config: ExperimentConfig, workdir: Workdir, name: str
) -> dict[str, pathlib.Path]:
  """Folders of the agents of a task, "base" and "off_policy" if it has one.

  Raises:
    InputError: an agent is named by a hub's name and cannot be had.
  """
  named = {"base": config.policy.base}
  if config.has_off_policy:
    named["off_policy"] = config.policy.off_policy
  return {
    agent: hub.local_folder(path) if path else workdir.agent(name, agent)
    for agent, path in named.items()
  }


def questions(
  config: ExperimentConfig, name: str
) -> tuple[list[Query], list[Query]]:
  """Training and held-out questions of a task; no question is both.

  Raises:
    InputError: the data set is not there, broken or too small, or two questions
      have one id.
  """
  if config.data.source == "miniature":
    world = make_world(config.world)
    train, held_out = (
      [_miniature_query(q) for q in part[family(name)]]
      for part in (world.train, world.held_out)
    )
  else:
    train, held_out = _data_set_questions(config)
  check_query_ids([*train, *held_out])
  return train, held_out


def _data_set_questions(
  config: ExperimentConfig,
) -> tuple[list[Query], list[Query]]:
  assert config.data.path is not None, "checked before a run starts"
  queries = load_tool_star(
    config.data.path,
    tools=DATA_SET_TOOLS,
    limit=config.data.limit,
  )
  wanted = config.data.held_out
  train, held_out = split_by_question(queries, wanted)
  at_least = config.update.queries_per_update
  if len(held_out) < wanted or len(train) < at_least:
    raise InputError(
      "a data set must hold data.held_out + update.queries_per_update "
      f"questions ({wanted} + {at_least}), {config.data.path} gives "
      f"{len(held_out)} + {len(train)}, none of which is both: lower "
      "data.held_out or raise data.limit."
    )
  return train, held_out


def split_by_question(
  queries: Sequence[Query], num_held_out: int
) -> tuple[list[Query], list[Query]]:
  """Training and held-out questions; the first ones are held out.

  Questions differ if their texts do, apart from case, white space and
  punctuation (`retrieval.normalized`). A question that is held out is evaluated
  once, and its other copies are in neither part. All copies of a training
  question stay.

  Args:
    queries: in the order of the file.
    num_held_out: distinct questions to hold out.

  Returns:
    Training questions, then held-out ones.
  """
  held_out: dict[str, Query] = {}
  train = []
  for query in queries:
    text = normalized(query.question)
    if text not in held_out and len(held_out) < num_held_out:
      held_out[text] = query
    elif text not in held_out:
      train.append(query)
  num_copies = len(queries) - len(held_out) - len(train)
  if num_copies:
    _log.warning(
      "left out %d rows whose question is held out already.", num_copies
    )
  return train, list(held_out.values())


def load_encoder(config: EncoderConfig) -> SentenceEncoder:
  """The sentence encoder of a config.

  Raises:
    FileNotFoundError: it is not there.
    InputError: it is of another kind.
  """
  return SentenceEncoder.from_pretrained(
    config.path,
    pooling=config.pooling,
    key_prefix=config.key_prefix,
    query_prefix=config.query_prefix,
    dtype=config.dtype,
  )


@contextlib.contextmanager
def open_task(
  config: ExperimentConfig,
  workdir: Workdir,
  name: str,
  encoder: SentenceEncoder,
) -> Iterator[Task]:
  """A task whose agents exist, with its tools running.

  Raises:
    InputError: an agent, the data set or the corpus is not there or broken, or
      a tool's limit is out of range.
  """
  train, held_out = questions(config, name)
  paths = agent_paths(config, workdir, name)
  for path in paths.values():
    if not (path / "config.json").exists():
      raise InputError(f"{path} holds no agent: run --stage=agents first.")
  tokenizers = {agent: load_tokenizer(path) for agent, path in paths.items()}
  with open_tools(config, name, encoder) as tools:
    yield Task(
      name=name,
      train=train,
      held_out=held_out,
      tools=tools,
      tokenizer=tokenizers["base"],
      off_policy_tokenizer=tokenizers.get("off_policy"),
      max_prompt_tokens=config.rollout.max_prompt_tokens,
      prompt_date=datetime.date.fromisoformat(config.data.prompt_date),
      reward=OUTCOME,
      base_path=paths["base"],
      off_policy_path=paths.get("off_policy"),
    )


@contextlib.contextmanager
def open_tools(
  config: ExperimentConfig, name: str, encoder: SentenceEncoder
) -> Iterator[dict[str, Tool]]:
  """The tools of a task by name, running.

  Raises:
    InputError: a tool's limit is out of range, or the corpus is not there.
  """
  with contextlib.ExitStack() as stack:
    tools = _tools(config, name, encoder)
    if _has_python(config, name):
      tools.append(stack.enter_context(_python_tool(config)))
    yield {tool.name: tool for tool in tools}


def _has_python(config: ExperimentConfig, name: str) -> bool:
  return config.data.source != "miniature" or name == "compute"


def _python_tool(config: ExperimentConfig) -> PythonTool:
  limits = config.tools.python
  try:
    return PythonTool(
      timeout_s=limits.timeout_s,
      memory_bytes=limits.memory_bytes,
      max_output_bytes=limits.output_bytes,
      trust_code=limits.trust_code,
    )
  except PythonWallError as error:
    raise InputError(str(error)) from error


def search_tool(
  documents: Sequence[str],
  encoder: SentenceEncoder,
  index: IndexConfig,
  top_k: int,
) -> SearchTool:
  """A search tool over documents, by the index that step traces use."""
  built = index_class(index).build(encoder.encode(documents))
  return SearchTool(documents, encoder, built, top_k)


def _tools(
  config: ExperimentConfig,
  name: str,
  encoder: SentenceEncoder,
) -> list[Tool]:
  """The tools that read; `open_tools` adds python."""
  top_k, index = config.tools.search_top_k, config.index
  if config.data.source == "miniature":
    world = make_world(config.world)
    if name == "compute":
      return []
    search = search_tool(world.documents(family(name)), encoder, index, top_k)
    if name == "web":
      return [search, OpenTool(world.page_texts())]
    return [search]
  documents: Sequence[str] = ("Nothing was found.",)
  if config.data.corpus is not None:
    documents = load_corpus(config.data.corpus)
  return [search_tool(documents, encoder, index, top_k)]


def family(name: str) -> Family:
  """A task name of the miniature world as the family that it names."""
  return next(f for f in FAMILIES if f == name)


def _miniature_query(question: Question) -> Query:
  return Query(
    query_id=question.query_id,
    question=question.question,
    ground_truth=(question.ground_truth,),
    messages=({"role": "user", "content": question.question},),
    task=question.family,
  )
