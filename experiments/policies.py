"""The policy of a run: made from a base agent, described in its checkpoints."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import ExperimentConfig
from experiments.devices import device_mesh
from rapo_jax import files, hosts, models
from rapo_jax.errors import InputError
from rapo_jax.models import LoraConfig, RopeConfig, sharding
from rapo_jax.training import non_finite

_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
_SHOWN_NAMES = 5

BASE_FINGERPRINT = "base_fingerprint"
"""Where a description has `models.fingerprint` of what lies under adapters."""
TOKENIZER_DIGEST = "tokenizer_sha256"
"""Where it has `models.tokenizer_digest` of the base agent."""
END_IDS = "end_ids"
"""Where it has the tokens that end the policy's turns."""
CHAT_TEMPLATE = "chat_template"
"""Where it has a template in place of the base agent's; None for that one."""


@hosts.led
def load_policy(
  config: ExperimentConfig,
  base_path: pathlib.Path,
  *,
  seed: int,
  lora: LoraConfig | None,
) -> models.Decoder:
  """An agent to train on the experiment's mesh, with adapters if it has any.

  Args:
    config: the experiment.
    base_path: folder of the agent.
    seed: of fresh adapters.
    lora: the adapters; None to train all parameters.

  Raises:
    InputError: the agent is not there, broken, or not divided by the mesh.
  """
  mesh = device_mesh(config.mesh)
  model = models.from_pretrained(
    base_path,
    # What is frozen needs no more than what rollouts read.
    dtype=config.rollout.dtype if lora else "float32",
    mesh=mesh,
    rules=sharding.TRAIN_RULES,
  )
  check_finite(model, base_path)
  if lora is None:
    return model
  return models.add_adapters(model, lora, rngs=nnx.Rngs(seed), mesh=mesh)


@hosts.led
def copy_policy(policy: models.Decoder) -> models.Decoder:
  """A copy, for what outlives the policy's donation."""
  return jax.tree.map(jnp.copy, policy)


def model_digest(folder: pathlib.Path) -> str:
  """SHA-256 that changes with any byte of a model's or its tokenizer's files.

  Args:
    folder: a Hugging Face folder. Its files are read whole.
  """
  return files.digest(
    path
    for path in sorted(folder.iterdir())
    if path.is_file() and path.suffix in _MODEL_SUFFIXES
  )


def check_finite(model: models.Decoder, path: pathlib.Path | str) -> None:
  """Refuses a model whose parameters are not numbers.

  Such a model still writes tokens, and would read as one that knows nothing.

  Args:
    model: any.
    path: where it is from, for the message.

  Raises:
    InputError: names the tensors.
  """
  broken = [name.removesuffix(".value") for name in non_finite(model)]
  if broken:
    more = len(broken) - _SHOWN_NAMES
    raise InputError(
      f"a model's parameters must be finite, and in {path} NaN or infinity is "
      f"in {', '.join(name.lstrip('.') for name in broken[:_SHOWN_NAMES])}"
      + (f" and {more} others" if more > 0 else "")
      + ": take a checkpoint or a copy from before it diverged or was damaged."
    )


def describe_policy(
  model: models.Decoder,
  base_path: pathlib.Path,
  *,
  end_ids: Iterable[int] = (),
  chat_template: str | None = None,
) -> dict[str, Any]:
  """What a checkpoint has to say of a policy for `open_policy`, as JSON.

  Args:
    model: the policy.
    base_path: folder of the base agent.
    end_ids: tokens that end its turns, which an export names.
    chat_template: that an export gets in place of the base agent's.
  """
  description: dict[str, Any] = {
    END_IDS: list(end_ids),
    CHAT_TEMPLATE: chat_template,
    TOKENIZER_DIGEST: models.tokenizer_digest(base_path),
    "source": str(base_path.absolute()),
    "model": dataclasses.asdict(model.config),
  }
  if model.config.lora is not None:
    description[BASE_FINGERPRINT] = models.fingerprint(base_path)
  return description


def open_policy(description: dict[str, Any], source: str) -> models.Decoder:
  """A policy as described, into which a checkpoint's parameters can be put.

  Args:
    description: as `describe_policy` wrote it.
    source: where the base agent lies. It is read where it is a part of the
      policy: under adapters.

  Returns:
    What is frozen as it was; what is trained abstract, or fresh if it is
    adapters.

  Raises:
    InputError: the base agent is needed and not there, or another.
  """
  model = description["model"]
  lora = model["lora"]
  values = {**model, "rope": RopeConfig(**model["rope"]), "lora": None}
  config = models.DecoderConfig(**values)
  if lora is None:
    return jax.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))
  adapters = LoraConfig(**{**lora, "targets": tuple(lora["targets"])})
  there = models.fingerprint(source)
  if there != description.get(BASE_FINGERPRINT):
    raise InputError(
      "adapters are read over the base agent that they were trained over, of "
      f"{BASE_FINGERPRINT} {description.get(BASE_FINGERPRINT)}, and that in "
      f"{source} has {there}: give the one of then with --base."
    )
  base = models.from_pretrained(source, dtype=config.dtype)
  return models.add_adapters(base, adapters, rngs=nnx.Rngs(0))


@hosts.led
def load_agent(config: ExperimentConfig, path: pathlib.Path) -> models.Decoder:
  """Loads an agent onto the devices and in the dtype of its rollout.

  Raises:
    InputError: it is not there, broken, or not finite.
  """
  model = models.from_pretrained(
    path,
    dtype=config.rollout.dtype,
    mesh=device_mesh(config.mesh),
    rules=sharding.ROLLOUT_RULES,
  )
  check_finite(model, path)
  return model
