"""What can be checked before a run: files, shapes, template, memory."""

from __future__ import annotations

import datetime
import difflib
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from experiments import flags, health, memory, metrics
from experiments.config import ExperimentConfig
from experiments.dependencies import conflicts
from experiments.dependencies import differences as differences
from experiments.policy_shape import Agent, policy_shape
from experiments.stages.agents import train_byte_level_tokenizer
from experiments.stages.warm_start import describe, read_demonstrations
from experiments.tasks import (
  Prompts,
  check_train_questions,
  load_encoder,
  questions_of,
  set_agent_template,
  task_names,
  try_reward,
)
from experiments.tokenizer_files import load_tokenizer
from experiments.workdir import Workdir, read_config
from rapo_jax import models
from rapo_jax.algorithms import ALGORITHMS, check_algorithm
from rapo_jax.corpora import Corpus, open_documents
from rapo_jax.data import (
  check_prefix_preservation,
  encode_prompt,
)
from rapo_jax.errors import InputError
from rapo_jax.models import hub, sharding
from rapo_jax.retrieval import StepTraceBuffer
from rapo_jax.retrieval.buffer import manifest, store
from rapo_jax.retrieval.serving import remote
from rapo_jax.rollout import check_forks, read_tokenizer
from rapo_jax.tasks import (
  MixedTask,
  Questions,
  SearchSpec,
  Task,
  check_tool_specs,
)


class CheckError(InputError):
  """The experiment cannot run as configured."""


def dry_run(
  config: ExperimentConfig, workdir: pathlib.Path | None, stage: str = "all"
) -> str:
  """Checks everything that can be checked without running or writing.

  Args:
    config: the experiment.
    workdir: its folder, if one is named.
    stage: what is to run: "all", or one stage.

  Returns:
    What was found, for people.

  Raises:
    CheckError: with every problem and its remedy.
  """
  problems: list[str] = []
  lines = [f"{config.name}: {', '.join(task_names(config))}"]

  def collect(found: Iterator[tuple[str, str]]) -> None:
    for kind, text in found:
      (problems if kind == "problem" else lines).append(text)

  collect(_shapes(config))
  collect(_tools(config))
  collect(_methods(config))
  collect(_files(config, stage))
  collect(_services(config))
  if workdir is not None:
    collect(_folder(config, workdir))
  if not problems:  # What follows reads the files.
    collect(_models(config))
    collect(_contents(config))
  if not problems:
    collect(_questions(config, stage))
  if not problems:
    collect(_warm_start(config, stage))
    collect(_memory(config, workdir, stage))
  _refuse(problems)
  lines.append(_first_signal(config))
  lines.extend(_work(config, stage))
  lines.append("all checks passed; nothing was written")
  return "\n".join(lines)


def _first_signal(config: ExperimentConfig) -> str:
  """What is known of the trajectories that will close their tags.

  Nothing is rolled out here, so the share itself comes with the first update.
  """
  unknown = "share of trajectories that close their tags: "
  if config.warm_start is not None:
    return (
      f"{unknown}the warm start teaches it; the evaluate stage and the first "
      "update say it"
    )
  if config.policy.base is not None:
    return (
      f"{unknown}unknown until the first update, which says it. Where it is "
      f"below {100 * health.FEW_WHOLE:.0f} %, {health.WARM_START}"
    )
  if all(task.own_agents() is not None for task in config.tasks):
    return (
      f"{unknown}the agents stage warm-starts the base agent on them; the "
      "first update says it"
    )
  return (
    f"{unknown}near 0, since policy.base is not set and the base agent is "
    f"randomly initialised: {health.WARM_START}"
  )


def quick_checks(config: ExperimentConfig, stage: str = "all") -> None:
  """What costs nothing to check before a run writes anything.

  Args:
    config: the experiment.
    stage: what is to run: "all", or one stage.

  Raises:
    CheckError: with every problem and its remedy.
  """
  found = (
    *_shapes(config),
    *_tools(config),
    *_methods(config),
    *_files(config, stage),
    *_services(config),
  )
  _refuse(text for kind, text in found if kind == "problem")


def _refuse(problems: Iterable[str]) -> None:
  found = list(problems)
  if found:
    raise CheckError(
      f"{len(found)} problem(s):\n"
      # A problem of several lines stays one.
      + "\n".join("  " + problem.replace("\n", "\n    ") for problem in found)
    )


def _shapes(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Budgets that do not fit each other, each with what would."""
  if config.buffer.path is not None:
    try:
      there = manifest.read_manifest(config.buffer.path)
    except InputError as error:
      yield "problem", f"buffer.path: {error}"
    else:
      yield from _empty_buffer(config, there.num_traces)
  if config.buffer.url is not None:
    try:
      remote.check_policy(config.retrieval)
    except InputError as error:
      yield "problem", f"buffer.url is set: {error}"
  rollout, update = config.rollout, config.update
  longest = rollout.max_prompt_tokens + rollout.max_response_tokens
  if update.row_length < longest:
    yield (
      "problem",
      "update.row_length must hold a prompt and a response "
      f"({rollout.max_prompt_tokens} + {rollout.max_response_tokens}), got "
      f"{update.row_length}: set it to {longest} or more.",
    )
  if rollout.max_step_tokens > rollout.max_response_tokens:
    yield (
      "problem",
      "rollout.max_step_tokens may not exceed rollout.max_response_tokens "
      f"({rollout.max_response_tokens}), got {rollout.max_step_tokens}.",
    )
  if rollout.max_tool_tokens >= rollout.max_response_tokens:
    yield (
      "problem",
      "rollout.max_tool_tokens must be below rollout.max_response_tokens "
      f"({rollout.max_response_tokens}), got {rollout.max_tool_tokens}.",
    )
  if rollout.num_generations == 1:
    yield (
      "problem",
      "rollout.num_generations must be at least 2 for a group to have a "
      "variance, got 1.",
    )
  try:
    mesh = _mesh(config)
    sharding.check_rows("rollout.num_slots", rollout.num_slots, mesh)
    sharding.check_rows(
      "update.rows_per_microbatch", update.rows_per_microbatch, mesh
    )
    if config.warm_start is not None:
      training = config.warm_start.training
      sharding.check_rows(
        "warm_start.training.rows_per_microbatch",
        training.rows_per_microbatch or training.rows,
        mesh,
      )
    slots = rollout.num_slots // sharding.row_parts(mesh)
    for algorithm in config.train.algorithms.values():
      if algorithm.plan.forks is not None:
        check_forks(algorithm.plan.forks, rollout.num_generations, slots)
  except InputError as error:
    yield "problem", str(error)
  groups = rollout.num_slots / rollout.num_generations
  yield (
    "note",
    f"an update: {update.queries_per_update} questions × "
    f"{rollout.num_generations} rollouts ({rollout.num_hybrid} hybrid), "
    f"{groups:g} groups at a time in {rollout.num_slots} slots of {longest} "
    "tokens",
  )


def _methods(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Algorithms of a user's own whose functions do not do what they must."""
  for name, algorithm in config.train.algorithms.items():
    # Trying takes seconds, and those of the table are tested.
    if algorithm == ALGORITHMS.get(name):
      continue
    try:
      check_algorithm(algorithm, config.objective)
    except InputError as error:
      yield "problem", str(error)


def _mesh(config: ExperimentConfig) -> jax.sharding.AbstractMesh:
  """The mesh, of which no device is needed to see what it divides."""
  shape = config.mesh.shape(jax.device_count())
  return jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))


def _models(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Files of the agents that do not fit, dimensions that the mesh cuts."""
  mesh = _mesh(config)
  for agent, path in _agents(config).items():
    try:
      if path is not None and not hub.is_hub_id(path):
        models.check_pretrained(path)
      shape = policy_shape(config, agent)
      # The off-policy agent is rolled out alone, and never trained.
      trained = agent == "base"
      abstract = memory.abstract(shape, config.policy.lora if trained else None)
      if trained:
        sharding.shardings(abstract, mesh, sharding.TRAIN_RULES)
      sharding.shardings(abstract, mesh, sharding.ROLLOUT_RULES)
    except InputError as error:
      yield "problem", f"{_name(agent)}: {error}"


def _empty_buffer(
  config: ExperimentConfig, num_traces: int
) -> Iterator[tuple[str, str]]:
  """A buffer without a trace under a method that retrieves."""
  if config.retrieves and not num_traces and config.buffer.grow is None:
    yield (
      "problem",
      f"a method that retrieves ({', '.join(config.retrieving_methods)}) needs "
      f"traces, and the buffer at {config.buffer.path} holds no trace: fill it "
      "(experiments.buffer), let it grow (buffer.grow), or train with "
      "train.methods=grpo.",
    )


def _agents(config: ExperimentConfig) -> dict[Agent, str | None]:
  """What the config names each agent that it has, as in `PolicyConfig`."""
  named: dict[Agent, str | None] = {"base": config.policy.base}
  if config.has_off_policy:
    named["off_policy"] = config.policy.off_policy
  return named


def _name(agent: str) -> str:
  return f"policy.{agent}"


def _files(config: ExperimentConfig, stage: str) -> Iterator[tuple[str, str]]:
  """Files that are needed and not named, or named and not there."""
  if config.policy.base is None and config.policy.off_policy is not None:
    yield (
      "problem",
      "policy.off_policy is set and policy.base is not: name the base agent "
      "that is trained, too.",
    )
  needs_buffer = config.builds_buffer and stage in (
    *("all", "buffer", "train"),
    *(("warm_start",) if config.warm_starts_from_buffer else ()),
  )
  if needs_buffer and not config.has_off_policy:
    who, leave_out = (
      f"a method that retrieves ({', '.join(config.retrieving_methods)})",
      "leave the method out of train.methods",
    )
    if not config.retrieves:
      who = "a warm start from the buffer"
      leave_out = "set warm_start.source=solutions"
    yield (
      "problem",
      f"{who} needs a buffer, and there is no agent that fills it: set "
      f"policy.off_policy, or buffer.path or buffer.url to a buffer, or "
      f"{leave_out}.",
    )
  if config.warm_starts_from_buffer and config.buffer.url is not None:
    yield (
      "problem",
      "a warm start reads whole trajectories of a buffer from its folder, "
      f"and buffer.url is {config.buffer.url!r}: name the folder in "
      "buffer.path, or set warm_start.source=solutions.",
    )
  for task in config.tasks:
    yield from _files_of(task)
  if config.policy.chat_template is not None:
    yield from _file("policy.chat_template", config.policy.chat_template)
  for agent in ("base", "off_policy"):
    value = getattr(config.policy, agent)
    if value is not None and not hub.is_hub_id(value):
      yield from _file(_name(agent), value)


def _files_of(task: Task, above: str = "") -> Iterator[tuple[str, str]]:
  """Files of a task that are needed and not named, or not there."""
  section = f"{above}tasks.{task.name}."
  for part in (task, *getattr(task, "tools", ())):
    try:
      if hasattr(part, "check"):
        part.check()
    except InputError as error:
      yield "problem", f"the task {task.name}: {error}"
  if isinstance(task, MixedTask):
    for one in task.tasks:
      yield from _files_of(one, section)
  yield from _paths_of(task, section)
  for tool in getattr(task, "tools", ()):
    if hasattr(tool, "paths"):
      yield from _paths_of(tool, f"{section}tools.{tool.name}.")


def _paths_of(value: Any, section: str) -> Iterator[tuple[str, str]]:
  """Files that a task or a tool needs and does not name, or are not there."""
  for field, needed in value.paths.items():
    name, path = f"{section}{field}", getattr(value, field)
    if path is None and needed:
      yield (
        "problem",
        f"{value.name} reads a file and {name} is not set: add "
        f"--config.{name}=<file>.",
      )
    for one in (path,) if isinstance(path, str) else path or ():
      yield from _file(name, one)


def _file(name: str, value: str) -> Iterator[tuple[str, str]]:
  """A file or folder that a field names and that is not there."""
  if pathlib.Path(value).exists():
    return
  parent = pathlib.Path(value).parent
  near = difflib.get_close_matches(
    pathlib.Path(value).name,
    [p.name for p in parent.iterdir()] if parent.is_dir() else [],
    n=1,
  )
  hint = f": did you mean {parent / near[0]}?" if near else "."
  yield "problem", f"{name} names {value}, which does not exist{hint}"


def _tools(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Tools that cannot be tags, and settings of tools that no task has."""
  known = set()
  for task in config.tasks:
    try:
      known |= set(check_tool_specs(task).tool_names)
    except InputError as error:
      yield "problem", str(error)
      return
  for field in ("tool_limits", "tool_timeouts_s"):
    for name, _ in getattr(config.rollout, field):
      if name not in known:
        yield (
          "problem",
          f"rollout.{field} must name tools of the tasks "
          f"({', '.join(sorted(known))}), got {name!r}: correct the name.",
        )


def _questions(
  config: ExperimentConfig, stage: str
) -> Iterator[tuple[str, str]]:
  """Questions, prompts, template and memory of each task."""
  for task in config.tasks:
    name = task.name
    try:
      questions = questions_of(config, name)
      if stage in ("all", "train"):
        check_train_questions(config, name, questions.train)
      try_reward(task, questions)
    except InputError as error:
      yield "problem", str(error)
      continue
    held_out = sum(map(len, questions.evaluation.values()))
    sets = ", ".join(questions.evaluation)
    yield (
      "note",
      f"{name}: {len(questions.train)} training questions, {held_out} held out"
      + (f" ({sets})" if len(questions.evaluation) > 1 else ""),
    )
    for agent, path in _agents(config).items():
      try:
        tokenizer = _tokenizer(config, task, path, questions)
        set_agent_template(config, agent, tokenizer)
        shape = policy_shape(config, agent, task)
        read_tokenizer(
          tokenizer, config.rollout, check_tool_specs(task), shape.vocab_size
        )
        longest = _longest_prompt(config, tokenizer, questions)
      except InputError as error:
        yield "problem", f"{_name(agent)}: {error}"
        continue
      yield (
        "note",
        f"{name}: longest prompt of {_name(agent)} has {longest} of "
        f"{config.rollout.max_prompt_tokens} tokens; the chat template only "
        "appends",
      )


def _warm_start(
  config: ExperimentConfig, stage: str
) -> Iterator[tuple[str, str]]:
  """What each task's warm start learns from, and whether it is enough."""
  settings = config.warm_start
  if settings is None or stage not in ("all", "warm_start"):
    return
  for task in config.tasks:
    path = config.buffer.path
    if config.warm_starts_from_buffer and path is None:
      yield (
        "note",
        f"warm start of {task.name}: {settings.training.num_steps} steps × "
        f"{settings.training.rows} rows × {settings.training.row_length} "
        "tokens; its examples are known once the buffer is built",
      )
      continue
    try:
      questions = questions_of(config, task.name)
      tokenizer = _tokenizer(config, task, config.policy.base, questions)
      set_agent_template(config, "base", tokenizer)
      traces = None
      if config.warm_starts_from_buffer and path is not None:
        traces = store.iter_traces(path)
      found = read_demonstrations(
        config,
        task.name,
        questions.train,
        tokenizer,
        check_tool_specs(task).tool_names,
        Prompts(
          tokenizer,
          config.rollout.max_prompt_tokens,
          datetime.date.fromisoformat(config.data.prompt_date),
        ),
        traces,
      )
    except InputError as error:
      yield "problem", str(error)
      continue
    yield "note", describe(settings, task.name, found)


def _longest_prompt(
  config: ExperimentConfig, tokenizer: Any, questions: Questions
) -> int:
  """Tokens of the longest prompt, as an agent's own tokenizer writes it.

  Raises:
    ValueError: one is too long, or the chat template fails or rewrites prompts.
  """
  date = datetime.date.fromisoformat(config.data.prompt_date)
  every = [*questions.train]
  for queries in questions.evaluation.values():
    every.extend(queries)
  check_prefix_preservation(tokenizer, every[0], date=date)
  limit = config.rollout.max_prompt_tokens
  return max(
    len(encode_prompt(tokenizer, query, limit, date=date)) for query in every
  )


def _tokenizer(
  config: ExperimentConfig, task: Task, path: str | None, questions: Questions
) -> Any:
  """Of an agent: as named, or as the agents stage would make it.

  Raises:
    InputError: it is not there, or broken.
  """
  if path is not None:
    return load_tokenizer(path)
  own = task.own_agents()
  if own is not None:
    return own.tokenizer()
  return train_byte_level_tokenizer(
    [q.question for q in questions.train], config.policy.random.vocab_size
  )


def _services(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """What metrics are sent to."""
  logging = config.logging
  for check in (
    lambda: metrics.check_wandb(logging.wandb),
    lambda: metrics.check_trackio(logging.trackio),
  ):
    try:
      check()
    except InputError as error:
      yield "problem", str(error)


def _folder(
  config: ExperimentConfig, workdir: pathlib.Path
) -> Iterator[tuple[str, str]]:
  """The work folder: whether it can be written, and what is in it."""
  there = _existing(workdir)
  if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
    yield (
      "problem",
      f"--workdir {workdir} cannot be written, as {there} is no folder or is "
      "read-only here: choose another --workdir.",
    )
  if not Workdir(workdir).config.exists():
    return
  held = read_config(Workdir(workdir))
  for line in conflicts(Workdir(workdir), held, flags.to_dict(config)):
    yield "problem", line


def _existing(path: pathlib.Path) -> pathlib.Path:
  """The path, or the nearest folder above it that is there."""
  return next(p for p in (path, *path.absolute().parents) if p.exists())


def _contents(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
  """Corpus, encoder and buffer, read as a run reads them."""
  encoder, problem = None, ""
  try:
    encoder = load_encoder(config.encoder)
  except InputError as error:
    problem = f"encoder.path: {error}"
  for task in config.tasks:
    for spec in task.tool_specs():
      if isinstance(spec, SearchSpec) and spec.corpus is not None:
        try:
          documents = open_documents(spec.corpus)
          if isinstance(documents, Corpus) and encoder is not None:
            documents.retriever(spec.mode, encoder)
          yield "note", f"corpus of {task.name}: {len(documents)} documents"
        except InputError as error:
          yield "problem", f"corpus {spec.corpus} of {task.name}: {error}"
  if encoder is None:
    yield "problem", problem
    return
  buffer = config.buffer
  try:
    if buffer.url is not None:
      there = remote.RemoteBuffer(buffer.url, encoder).check()
      yield "note", f"buffer.url: {there['num_traces']} step traces"
    elif buffer.path is not None:
      traces = StepTraceBuffer.load(buffer.path, encoder)
      yield "note", f"buffer.path: {len(traces)} step traces"
  except InputError as error:
    yield "problem", f"the buffer: {error}"


def _work(config: ExperimentConfig, stage: str) -> Iterator[str]:
  """How much is to be generated; how long that takes is not known yet."""
  rollout, update, train = config.rollout, config.update, config.train
  limit = f"of at most {rollout.max_response_tokens:,} tokens"
  tasks = len(task_names(config))
  if config.builds_buffer and stage in ("all", "buffer"):
    yield (
      f"buffer: {config.buffer.num_trajectories} rollouts a training question, "
      f"{limit}"
    )
  if config.warm_start is not None and stage in ("all", "warm_start"):
    training = config.warm_start.training
    each = training.num_steps * training.rows * training.row_length
    yield (
      f"warm_start: {tasks} × {training.num_steps} steps × {training.rows} "
      f"rows of {training.row_length:,} tokens = {tasks * each:,} tokens"
    )
  if stage in ("all", "train"):
    runs = tasks * len(train.algorithms) * len(train.seeds)
    rollouts = update.queries_per_update * rollout.num_generations
    yield (
      f"train: {runs} runs × {train.num_updates} updates × {rollouts} rollouts "
      f"= {runs * train.num_updates * rollouts:,} rollouts {limit}"
    )
  if stage in ("all", "evaluate"):
    samples = 1 + config.evaluation.num_samples
    yield f"evaluate: {samples} rollouts a held-out question and agent, {limit}"
  yield "how long that takes is shown once the first update is measured"


def _fits(
  name: str, estimate: memory.Estimate, remedy: str
) -> Iterator[tuple[str, str]]:
  """What an agent takes of a device's memory, and whether it is there."""
  yield "note", f"{name}: {estimate.line(jax.device_count())}"
  room = memory.room()
  if room is not None and estimate.total > room:
    yield (
      "problem",
      f"{name} takes about {memory.gigabytes(estimate.total)} on each device, "
      f"which has {memory.gigabytes(room)}: take a smaller model or more "
      f"devices, {remedy}.",
    )


def _memory(
  config: ExperimentConfig, workdir: pathlib.Path | None, stage: str
) -> Iterator[tuple[str, str]]:
  """Whether each agent fits the devices, and a checkpoint the disk."""
  trains = stage in ("all", "train")
  for agent in _agents(config):
    shape = policy_shape(config, agent)
    trained = trains and agent == "base"
    yield from _fits(
      _name(agent),
      memory.estimate(config, shape, trained=trained),
      "lower rollout.num_slots or update.rows_per_microbatch, or set "
      "policy.lora. `python -m experiments.plan` tells what bounds it",
    )
  if config.warm_start is not None and stage in ("all", "warm_start"):
    yield from _fits(
      "warm_start",
      memory.warm_start(config, policy_shape(config)),
      "lower warm_start.training.rows_per_microbatch, set "
      "warm_start.training.remat or set warm_start.lora",
    )
  if workdir is None or not trains:
    return
  # Parameters and both moments of AdamW's.
  size = 12 * memory.count(config, policy_shape(config)).trained
  free = shutil.disk_usage(_existing(workdir)).free
  if size > free:
    yield (
      "problem",
      f"a checkpoint takes about {memory.gigabytes(size)} and {workdir} has "
      f"{memory.gigabytes(free)} free: choose another --workdir.",
    )
