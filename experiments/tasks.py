"""Tasks of an experiment with their agents there and their tools running."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import logging
import pathlib
from collections.abc import (
  Callable,
  Hashable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.config import EncoderConfig, ExperimentConfig
from experiments.tokenizer_files import load_tokenizer, set_chat_template
from experiments.workdir import Workdir
from rapo_jax import hosts
from rapo_jax.corpora import Corpus, Mode, retriever_over
from rapo_jax.data import Query, encode_prompt, template_of
from rapo_jax.errors import InputError
from rapo_jax.models import hub
from rapo_jax.retrieval import (
  SentenceEncoder,
  StepTraceBuffer,
  index_class,
)
from rapo_jax.retrieval.serving.remote import RemoteBuffer
from rapo_jax.rewards import RECIPE_TAGS, Reward, Sample, score_all
from rapo_jax.rollout.stats import sums
from rapo_jax.tasks import (
  Opened,
  Questions,
  Task,
  check_tool_specs,
  leaks,
  load_questions,
  start_tools,
)
from rapo_jax.tools import (
  PythonTool,
  PythonWallError,
  SearchTool,
  TagSet,
  Tool,
  check_tools,
  own_numbers,
)
from rapo_jax.trajectory import FinishReason, TokenKind

_log = logging.getLogger(__name__)


class Prompts:
  """Encodes the prompts of questions, each once.

  Args:
    tokenizer: of the agent that acts.
    most: tokens; longer prompts are refused.
    date: that chat templates which write the date are given.
  """

  def __init__(self, tokenizer: Any, most: int, date: datetime.date):
    self._tokenizer, self._most, self._date = tokenizer, most, date
    self._known: dict[str, Int[np.ndarray, " P"]] = {}

  def __call__(self, query: Query) -> Int[np.ndarray, " P"]:
    """Token ids of a question's prompt."""
    if query.query_id not in self._known:
      self._known[query.query_id] = encode_prompt(
        self._tokenizer, query, self._most, date=self._date
      )
    return self._known[query.query_id]


@hosts.held()
class Equipment:
  """What a host acts on a task with; each of several hosts has its own.

  Args:
    tools: by name, running.
    tokenizers: of the agents, "base" and "off_policy" if the task has one. They
      may differ: what the agents exchange is text.
    stack: closes the tools.

  Attributes:
    tools: the same.
    tokenizers: the same.
  """

  def __init__(
    self,
    tools: dict[str, Tool],
    tokenizers: Mapping[str, Any],
    stack: contextlib.ExitStack,
  ):
    self.tools = tools
    self.tokenizers = tokenizers
    self._stack = stack

  @hosts.led
  def close(self) -> None:
    """Ends the tools, on all hosts."""
    self._stack.close()

  @hosts.led
  def numbers(self) -> dict[str, dict[str, float]]:
    """What each tool counts itself since it was started, on all hosts.

    A tool that counts nothing is left out.
    """
    own = {name: own_numbers(tool) for name, tool in self.tools.items()}
    found = hosts.gather(own) or []
    totals = {n: sums([of_host[n] for of_host in found]) for n in own}
    return {name: numbers for name, numbers in totals.items() if numbers}


@dataclasses.dataclass
class OpenedTask:
  """A task whose agents exist and whose tools run.

  Attributes:
    name: of the task.
    train: training questions.
    evaluation: evaluation sets by name; nothing is trained on these questions.
    equipment: tools and tokenizers.
    agent: which agent acts: "base", the policy, except in `for_off_policy`.
    max_prompt_tokens: longer prompts are refused.
    prompt_date: that chat templates which write the date are given.
    reward: scores the trajectories that are trained on.
    reported_reward: scores those of evaluations.
    base_path: Hugging Face folder of the base agent.
    start_path: of the agent that runs begin with: the base agent, or what the
      warm start makes of it.
    off_policy_path: of the off-policy agent; None without one.
  """

  name: str
  train: Sequence[Query]
  evaluation: Mapping[str, Sequence[Query]]
  equipment: Equipment
  max_prompt_tokens: int
  prompt_date: datetime.date
  reward: Reward
  reported_reward: Reward
  base_path: pathlib.Path
  start_path: pathlib.Path
  off_policy_path: pathlib.Path | None
  agent: str = "base"

  @property
  def tools(self) -> dict[str, Tool]:
    """The tools of this host by name."""
    return self.equipment.tools

  @property
  def tokenizer(self) -> Any:
    """That of the agent that acts."""
    return self.equipment.tokenizers[self.agent]

  @functools.cached_property
  def prompt(self) -> Prompts:
    """Gives the token ids of a question's prompt."""
    return Prompts(self.tokenizer, self.max_prompt_tokens, self.prompt_date)

  @functools.cached_property
  def held_out(self) -> list[Query]:
    """Questions of all evaluation sets, set by set."""
    return [q for queries in self.evaluation.values() for q in queries]

  @property
  def tag_set(self) -> TagSet:
    """Tags that the reward reads as calls: the recipe's and its own tools'."""
    return reward_tags(self.tools)

  def for_off_policy(self) -> tuple[OpenedTask, pathlib.Path]:
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
    acting = dataclasses.replace(self, agent="off_policy")
    return acting, self.off_policy_path


def reward_tags(tool_names: Iterable[str]) -> TagSet:
  """Tags that a reward reads as calls: the recipe's and those of some tools."""
  names = (*RECIPE_TAGS.tool_names, *tool_names)
  return TagSet(tuple(dict.fromkeys(names)))


def task_names(config: ExperimentConfig) -> list[str]:
  """Names of an experiment's tasks."""
  return [task.name for task in config.tasks]


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


def start_path(
  config: ExperimentConfig, workdir: Workdir, name: str
) -> pathlib.Path:
  """Folder of the agent that the runs of a task begin with.

  Raises:
    InputError: the base agent is named by a hub's name and cannot be had.
  """
  if config.warm_start is not None:
    return workdir.warm_started(name)
  return agent_paths(config, workdir, name)["base"]


def set_agent_template(
  config: ExperimentConfig, agent: str, tokenizer: Any
) -> None:
  """Gives an agent's tokenizer the chat template that the config asks for.

  Args:
    config: the experiment.
    agent: "base" or "off_policy".
    tokenizer: is changed.

  Raises:
    InputError: see `set_chat_template`.
  """
  set_chat_template(
    tokenizer,
    config.policy.chat_template if agent == "base" else None,
    enable_thinking=config.policy.enable_thinking,
  )


def own_template(config: ExperimentConfig, tokenizer: Any) -> str | None:
  """The policy's chat template, where the config gives it another."""
  policy = config.policy
  if policy.chat_template is None and policy.enable_thinking is None:
    return None
  return template_of(tokenizer)


def check_train_questions(
  config: ExperimentConfig, name: str, train: Sequence[Query]
) -> None:
  """Refuses a task that cannot fill one update.

  Raises:
    InputError: it has fewer training questions than an update takes.
  """
  at_least = config.update.queries_per_update
  if len(train) < at_least:
    raise InputError(
      f"the task {name} must have at least update.queries_per_update "
      f"({at_least}) training questions, and has {len(train)}, none of which "
      "is held out: add questions, or lower it."
    )


def questions_of(config: ExperimentConfig, name: str) -> Questions:
  """Questions of a task, with what `data.leaks` says of those in both parts.

  Raises:
    InputError: they cannot be read, or leaks are refused.
  """
  questions = load_questions(config.task(name))
  found = leaks(questions.train, questions.evaluation)
  if not found:
    return questions
  counts = ", ".join(f"{len(ids)} in {key}" for key, ids in found.items())
  leaked = set().union(*found.values())
  text = (
    f"{len(leaked)} of {len(questions.train)} training questions of {name} "
    f"stand in its evaluation sets ({counts})"
  )
  if config.data.leaks == "refuse":
    raise InputError(
      f"no question may be trained on and evaluated (data.leaks=refuse), and "
      f"{text}: set data.leaks=drop, or take them out of the file."
    )
  if config.data.leaks == "drop":
    _log.warning("%s: left out", text)
    kept = [q for q in questions.train if q.query_id not in leaked]
    return Questions(kept, questions.evaluation)
  _log.warning("%s: data.leaks=drop leaves them out", text)
  return questions


def try_reward(task: Task, questions: Questions) -> None:
  """Scores a made-up answer to the first question, before any rollout.

  Raises:
    InputError: the reward keeps no protocol; names it and the rule.
  """
  first = next(iter(questions.evaluation.values()))[0]
  answer = ((TokenKind.POLICY, r"<answer> \boxed{0} </answer>"),)
  sample = [Sample(first, answer, FinishReason.ANSWER)]
  score_all(task.reward, sample)
  if task.evaluation_reward is not None:
    score_all(task.evaluation_reward, sample)


def tried_questions(config: ExperimentConfig, name: str) -> Questions:
  """Questions of a task whose reward has scored one of them.

  Raises:
    InputError: see `questions_of` and `try_reward`.
  """
  questions = questions_of(config, name)
  try_reward(config.task(name), questions)
  return questions


@hosts.led
def open_encoder(config: ExperimentConfig) -> SentenceEncoder:
  """The sentence encoder of an experiment, on all hosts.

  Raises:
    FileNotFoundError: it is not there.
    InputError: it is of another kind.
  """
  return load_encoder(config.encoder)


@hosts.led
def open_buffer(
  config: ExperimentConfig, path: pathlib.Path, encoder: SentenceEncoder
) -> StepTraceBuffer | RemoteBuffer:
  """The Step-Trace Buffer that a config names, on all hosts.

  Args:
    config: the experiment.
    path: of the buffer that it builds, where it names none.
    encoder: embeds the queries.

  Raises:
    InputError: it is not there, or broken.
  """
  if config.buffer.url is not None:
    buffer = RemoteBuffer(config.buffer.url, encoder)
    buffer.check()
    return buffer
  return StepTraceBuffer.load(config.buffer.path or path, encoder)


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
  *,
  questions: Questions | None = None,
) -> Iterator[OpenedTask]:
  """A task whose agents exist, with its tools running.

  Args:
    config: the experiment.
    workdir: where its agents are.
    name: of the task.
    encoder: embeds what the search tool finds.
    questions: that `tried_questions` gave before; None reads them now.

  Raises:
    InputError: an agent, a file of questions or a corpus is not there or
      broken, or a tool's limit is out of range.
  """
  task = config.task(name)
  if questions is None:
    questions = tried_questions(config, name)
  paths = agent_paths(config, workdir, name)
  for path in paths.values():
    if not (path / "config.json").exists():
      raise InputError(f"{path} holds no agent: run --stage=agents first.")
  with contextlib.closing(
    open_equipment(config, name, paths, encoder)
  ) as equipment:
    yield OpenedTask(
      name=name,
      train=questions.train,
      evaluation=questions.evaluation,
      equipment=equipment,
      max_prompt_tokens=config.rollout.max_prompt_tokens,
      prompt_date=datetime.date.fromisoformat(config.data.prompt_date),
      reward=task.reward,
      reported_reward=task.reported_reward,
      base_path=paths["base"],
      start_path=start_path(config, workdir, name),
      off_policy_path=paths.get("off_policy"),
    )


@hosts.led
def open_equipment(
  config: ExperimentConfig,
  name: str,
  agents: dict[str, pathlib.Path],
  encoder: SentenceEncoder,
) -> Equipment:
  """Starts the tools of a task on all hosts.

  Args:
    config: the experiment.
    name: of the task.
    agents: folders of its agents.
    encoder: embeds what the search tool finds.

  Raises:
    InputError: see `running_tools`.
  """
  tokenizers = {agent: load_tokenizer(path) for agent, path in agents.items()}
  for agent, tokenizer in tokenizers.items():
    set_agent_template(config, agent, tokenizer)
  with contextlib.ExitStack() as stack:
    tools = stack.enter_context(running_tools(config, name, encoder))
    return Equipment(tools, tokenizers, stack.pop_all())


@contextlib.contextmanager
def running_tools(
  config: ExperimentConfig, name: str, encoder: SentenceEncoder
) -> Iterator[dict[str, Tool]]:
  """The tools of a task by name, running.

  Raises:
    InputError: a tool keeps no protocol, its limit is out of range, or the
      corpus is not there.
  """
  task = config.task(name)
  check_tool_specs(task)
  with contextlib.ExitStack() as stack:
    tools = start_tools(task.tool_specs(), _Services(config, encoder, stack))
    check_tools(tools)
    yield tools


@dataclasses.dataclass(frozen=True)
class _Services:
  """What the tools of an experiment run with; closed with the stack."""

  config: ExperimentConfig
  encoder: SentenceEncoder
  stack: contextlib.ExitStack
  _shared: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

  def opened(self, key: Hashable, open_it: Callable[[], Opened], /) -> Opened:
    """What is opened once for a key."""
    if key not in self._shared:
      made = open_it()
      self.stack.callback(made.close)
      self._shared[key] = made
    opened: Opened = self._shared[key]
    return opened

  def search(
    self,
    documents: Corpus | Sequence[str],
    /,
    mode: Mode = "dense",
    top_k: int | None = None,
  ) -> Tool:
    """A search tool; documents in memory get the index of step traces."""
    if isinstance(documents, Corpus):
      retriever = documents.retriever(mode, self.encoder)
      documents = documents.documents
    else:
      index_cls = index_class(self.config.index)
      retriever = retriever_over(documents, mode, self.encoder, index_cls)
    if top_k is None:
      top_k = self.config.tools.search_top_k
    return SearchTool(documents, retriever, top_k)

  def python(self) -> Tool:
    """A python tool with the limits of the config."""
    limits = self.config.tools.python
    try:
      tool = PythonTool(
        timeout_s=limits.timeout_s,
        memory_bytes=limits.memory_bytes,
        max_output_bytes=limits.output_bytes,
        trust_code=limits.trust_code,
      )
    except PythonWallError as error:
      raise InputError(str(error)) from error
    return self.stack.enter_context(tool)
