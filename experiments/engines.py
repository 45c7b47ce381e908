"""The rollout engine of an agent on a task, over an experiment's devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from experiments.config import ExperimentConfig
from experiments.devices import device_mesh
from experiments.tasks import Equipment
from rapo_jax import hosts, models
from rapo_jax.retrieval import Buffer, RetrievalConfig
from rapo_jax.rollout import RolloutConfig, RolloutEngine
from rapo_jax.rollout.forks import ForkRule


@hosts.led
def open_engine(
  config: ExperimentConfig,
  equipment: Equipment,
  agent: str,
  rollout: RolloutConfig,
  *,
  vocab_size: int,
  retrieval: RetrievalConfig | None = None,
  buffer: Buffer | None = None,
  policy: models.Decoder | None = None,
  forks: ForkRule | None = None,
) -> RolloutEngine:
  """An engine in the tokens of the agent that acts on a task, on all hosts.

  Args:
    config: the experiment.
    equipment: tools and tokenizers of the task.
    agent: which of its agents acts.
    rollout: budgets and shapes.
    vocab_size: rows of the agent's output head.
    retrieval: how a trace is chosen, for a buffer.
    buffer: Step-Trace Buffer for hybrid trajectories, or None.
    policy: one with adapters whose base all rollouts share, or None.
    forks: which rollouts begin as copies of others, or None.

  Raises:
    InputError: a limit leaves no room for a result's tags, or the mesh does not
      divide the slots.
  """
  return RolloutEngine(
    _for_tools(rollout, equipment.tools),
    equipment.tokenizers[agent],
    vocab_size=vocab_size,
    tools=equipment.tools,
    buffer=buffer,
    retrieval=retrieval,
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
