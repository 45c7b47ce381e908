"""The smallest experiment, for runs on two processes of two fake devices."""

import dataclasses

from experiments.config import ExperimentConfig, WarmStartConfig
from rapo_jax.models import LoraConfig
from rapo_jax.tasks.miniature.agents import AgentsConfig, PhaseConfig
from rapo_jax.tasks.miniature.world import WorldConfig
from rapo_jax.training import SupervisedConfig
from tests.experiments.run_test import small_config


def get_config() -> ExperimentConfig:
  """One layer, two questions an update, one update of GRPO."""
  config = small_config()
  [task] = config.tasks
  agents = AgentsConfig(
    rows=4,
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_heads=4,
    clean=PhaseConfig(10, 5e-3),
    expert=PhaseConfig(10, 1e-3),
    corrupted=PhaseConfig(10, 1e-3),
  )
  world = WorldConfig(num_train=4, num_held_out=2)
  return dataclasses.replace(
    config,
    tasks=(dataclasses.replace(task, world=world, agents=agents),),
    rollout=dataclasses.replace(
      config.rollout,
      num_generations=2,
      num_hybrid=1,
      num_slots=4,
      max_prompt_tokens=64,
      max_response_tokens=64,
      max_step_tokens=32,
      max_tool_tokens=32,
    ),
    update=dataclasses.replace(
      config.update,
      queries_per_update=2,
      queries_per_minibatch=1,
      row_length=128,
    ),
    train=dataclasses.replace(
      config.train,
      methods=("grpo",),
      num_updates=1,
      eval_every=1,
      checkpoint_every=1,
    ),
    evaluation=dataclasses.replace(config.evaluation, num_samples=1),
  )


def whole_config() -> ExperimentConfig:
  """All stages: agents that close their tags, and five updates of RAPO."""
  config = small_config()
  return dataclasses.replace(
    config,
    policy=dataclasses.replace(
      config.policy, lora=LoraConfig(2, 4.0, ("query", "value", "down"))
    ),
    warm_start=WarmStartConfig(
      training=SupervisedConfig(
        num_steps=4, learning_rate=1e-4, rows=4, row_length=256
      ),
      source="buffer",
      held_out=0,
      checkpoint_every=2,
    ),
    train=dataclasses.replace(
      config.train,
      methods=("rapo",),
      num_updates=5,
      eval_every=5,
      checkpoint_every=1,
    ),
    evaluation=dataclasses.replace(config.evaluation, num_samples=1),
  )
