"""The shape of an experiment's agents, known before their weights are."""

from __future__ import annotations

import pathlib
from typing import Literal

import huggingface_hub
from huggingface_hub import errors

from experiments.config import ExperimentConfig, RandomModelConfig
from rapo_jax import models
from rapo_jax.errors import MissingInputError
from rapo_jax.models import hub, published
from rapo_jax.models.huggingface import read_config
from rapo_jax.tasks import Task

Agent = Literal["base", "off_policy"]


def policy_shape(
  config: ExperimentConfig, agent: Agent = "base", task: Task | None = None
) -> models.DecoderConfig:
  """Shape of an agent: as named, or as the agents stage would make it.

  Args:
    config: the experiment.
    agent: which of its two agents.
    task: whose agents they are; None for the first task.

  Raises:
    MissingInputError: the policy section names a model whose config.json is
      neither here, nor on a hub within reach, nor that of a published model we
      know, or there is no off-policy agent.
  """
  if agent == "off_policy" and not config.has_off_policy:
    raise MissingInputError(
      "the config has no off-policy agent: set policy.off_policy."
    )
  named = config.policy.base if agent == "base" else config.policy.off_policy
  if named is not None:
    return named_shape(named)
  own = (task or config.tasks[0]).own_agents()
  if own is not None:
    return own.shape()
  return random_shape(config.policy.random)


def named_shape(path_or_hub_id: str) -> models.DecoderConfig:
  """Shape of a model folder or of a model on a hub, weights not needed."""
  if not hub.is_hub_id(path_or_hub_id):
    return read_config(hub.local_folder(path_or_hub_id))
  if path_or_hub_id in published.CONFIGS:
    return models.DecoderConfig.from_hf(published.CONFIGS[path_or_hub_id])
  try:
    file = huggingface_hub.hf_hub_download(path_or_hub_id, "config.json")
  except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
    known = ", ".join(published.CONFIGS)
    raise MissingInputError(
      f"the config.json of {path_or_hub_id} cannot be had from the hub: name "
      f"a folder, or one of the models whose shape is known: {known}."
    ) from error
  return read_config(pathlib.Path(file).parent)


def random_shape(config: RandomModelConfig) -> models.DecoderConfig:
  """Shape of the randomly initialised model, for smoke tests."""
  return models.DecoderConfig(
    vocab_size=config.vocab_size,
    hidden_size=config.hidden_size,
    intermediate_size=config.intermediate_size,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    num_kv_heads=config.num_kv_heads,
    head_dim=config.hidden_size // config.num_heads,
  )
