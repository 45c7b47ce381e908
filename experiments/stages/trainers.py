"""What a training run needs: a buffer that can be used, and a trainer."""

from __future__ import annotations

import hashlib
import pathlib

from experiments.config import ExperimentConfig
from experiments.devices import device_mesh
from experiments.engines import open_engine
from experiments.policies import copy_policy
from experiments.stages.growth import Growth
from experiments.stages.runs import Run
from experiments.tasks import OpenedTask
from rapo_jax import models
from rapo_jax.errors import InputError
from rapo_jax.retrieval import Buffer, StepTraceBuffer
from rapo_jax.retrieval.buffer.manifest import MANIFEST_FILE
from rapo_jax.retrieval.serving.remote import RemoteBuffer
from rapo_jax.tools.tags import opens_thought
from rapo_jax.training import ObjectiveConfig, Trainer
from rapo_jax.training.agent_rows import (
  AgentEncoder,
  AgentRows,
  whole_trajectories,
)
from rapo_jax.trajectory import decode

BUFFER_FOLDER = "buffer"
"""What a run whose buffer grows has added to it."""


def check_buffer(
  config: ExperimentConfig, run: Run, buffer: Buffer | None
) -> None:
  """Refuses to retrieve from a buffer without a trace that may be inserted.

  One that grows may begin empty.

  Args:
    config: the experiment.
    run: whose method may retrieve.
    buffer: that it retrieves from.

  Raises:
    InputError: no trace has a reward above `retrieval.min_reward`.
  """
  rollout, _ = config.method(run.method)
  if not rollout.num_hybrid or config.buffer.grow is not None:
    return
  least = config.retrieval.min_reward
  if isinstance(buffer, StepTraceBuffer):
    there, usable = len(buffer), buffer.num_above(least)
  elif isinstance(buffer, RemoteBuffer):
    there = usable = int(buffer.check().get("num_traces", 1))
  else:
    there = usable = 0
  if usable:
    return
  what = (
    f"none of the {there} traces of its buffer has a reward above "
    f"retrieval.min_reward ({least:g})"
    if there
    else "its buffer holds no trace"
  )
  raise InputError(
    f"{run.method} retrieves, and {what} ({run.task}): build one from "
    "trajectories that answer right, name another in buffer.path, let it grow "
    "(buffer.grow), or train with train.methods=grpo."
  )


def buffer_digest(buffer: Buffer | None) -> str | None:
  """Changes with any byte of a buffer's files, or with what its server says."""
  if isinstance(buffer, StepTraceBuffer) and buffer.directory is not None:
    content = (buffer.directory / MANIFEST_FILE).read_bytes()
    return hashlib.sha256(content).hexdigest()
  if isinstance(buffer, RemoteBuffer):
    said = buffer.check()
    return f"version {said['version']}, {said.get('num_traces')} traces"
  return None


def open_growth(
  config: ExperimentConfig,
  run: Run,
  buffer: Buffer | None,
  folder: pathlib.Path,
) -> Growth | None:
  """What grows the run's buffer; None if nothing does, or nothing retrieves."""
  rollout, _ = config.method(run.method)
  if buffer is None or config.buffer.grow is None or not rollout.num_hybrid:
    return None
  # What a server holds does not grow: `BufferConfig` has seen to that.
  assert isinstance(buffer, StepTraceBuffer)
  return Growth(config, buffer, folder / BUFFER_FOLDER)


def make_trainer(
  config: ExperimentConfig,
  task: OpenedTask,
  run: Run,
  buffer: Buffer | None,
  policy: models.Decoder,
) -> Trainer:
  """What runs the updates of a run's method."""
  algorithm = config.train.algorithm(run.method)
  engine = open_engine(
    config,
    task.equipment,
    task.agent,
    algorithm.plan.rollout(config.rollout),
    vocab_size=policy.config.vocab_size,
    retrieval=algorithm.plan.retrieval(config.retrieval),
    buffer=buffer if algorithm.plan.forks is None else None,
    policy=policy,
    forks=algorithm.plan.forks,
  )
  return Trainer(
    engine,
    task.tokenizer,
    rollout=config.rollout,
    objective=config.objective,
    optimizer=config.optimizer,
    update=config.update,
    seed=run.seed,
    mesh=device_mesh(config.mesh),
    reward=task.reward,
    tag_set=task.tag_set,
    algorithm=algorithm,
    reference=_reference(algorithm.settings(config.objective), policy),
    agent_rows=agent_rows(config, task, buffer)
    if algorithm.plan.reads_agent
    else None,
  )


def agent_rows(
  config: ExperimentConfig, task: OpenedTask, buffer: Buffer | None
) -> AgentRows:
  """The off-policy agent's trajectories on the task's training questions.

  They are those whose steps the Step-Trace Buffer holds.

  Raises:
    InputError: the buffer is not in a folder, or holds none that can be used.
  """
  if not isinstance(buffer, StepTraceBuffer):
    raise InputError(
      "a method that takes whole trajectories of another agent reads them from "
      f"its Step-Trace Buffer, got {config.buffer.url!r}: name a folder in "
      "buffer.path, or leave it out and the run builds one."
    )
  questions = {query.query_id: query.question for query in task.train}
  opened = opens_thought(decode(task.tokenizer, task.prompt(task.train[0])))
  rows = AgentRows(
    whole_trajectories(
      buffer, questions, min_reward=config.retrieval.min_reward
    ),
    AgentEncoder(
      task.tokenizer,
      task.tag_set,
      max_response_tokens=config.rollout.max_response_tokens,
      max_steps=config.rollout.max_steps,
      opened=opened,
    ),
  )
  if not rows.query_ids:
    raise InputError(
      f"a method that takes whole trajectories of another agent needs some on "
      f"the questions of {task.name} with a reward above retrieval.min_reward "
      f"({config.retrieval.min_reward:g}) and at most "
      f"{config.rollout.max_response_tokens} tokens, and none of the "
      f"{len(buffer)} steps of the buffer is of one: build it from answers to "
      "these questions."
    )
  return rows


def _reference(
  objective: ObjectiveConfig, policy: models.Decoder
) -> models.Decoder | None:
  """A copy of the policy that KL is taken to; None if there is no need."""
  if not objective.kl_coef or policy.config.lora is not None:
    return None
  # A copy: the state that begins with the policy is donated.
  return copy_policy(policy)
