"""The rollout engine of an agent on a task, over an experiment's devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from experiments.config import ExperimentConfig
from experiments.devices import device_mesh
from experiments.tasks import OpenedTask
from rapo_jax import models
from rapo_jax.retrieval import Buffer
from rapo_jax.rollout import RolloutConfig, RolloutEngine
from rapo_jax.rollout.forks import ForkRule


def open_engine(
  config: ExperimentConfig,
  task: OpenedTask,
  rollout: RolloutConfig,
  *,
  vocab_size: int,
  buffer: Buffer | None = None,
  policy: models.Decoder | None = None,
  forks: ForkRule | None = None,
) -> RolloutEngine:
  """An engine in the tokens of the agent that acts on the task.

  Args:
    config: the experiment.
    task: tools and tokenizer.
    rollout: budgets and shapes.
    vocab_size: rows of the agent's output head.
    buffer: Step-Trace Buffer for hybrid trajectories, or None.
    policy: one with adapters whose base all rollouts share, or None.
    forks: which rollouts begin as copies of others, or None.

  Raises:
    InputError: a limit leaves no room for a result's tags, or the mesh does not
      divide the slots.
  """
  return RolloutEngine(
    _for_tools(rollout, task.tools),
    task.tokenizer,
    vocab_size=vocab_size,
    tools=task.tools,
    buffer=buffer,
    retrieval=config.retrieval,
    mesh=device_mesh(config.mesh),
    policy=policy,
    forks=forks,
  )


def _for_tools(rollout: RolloutConfig, tools: Collection[str]) -> RolloutConfig:
  """The settings without those of tools that only other tasks have."""
  return dataclasses.replace(
    rollout,
    tool_limits=tuple(v for v in rollout.tool_limits if v[0] in tools),
    tool_timeouts_s=tuple(v for v in rollout.tool_timeouts_s if v[0] in tools),
  )
