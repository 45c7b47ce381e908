"""How much memory an agent takes on a device, and how much there is.

Estimates by hand; `experiments.plan` compiles the programs and knows better.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import ExperimentConfig
from rapo_jax import models

# Limits of a container, in the second and the first version.
_CGROUP_LIMITS = (
  "/sys/fs/cgroup/memory.max",
  "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


class Count(NamedTuple):
  """Parameters of a policy.

  Attributes:
    parameters: all of them, adapters included.
    trained: those that have gradients.
  """

  parameters: int
  trained: int


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes on one device.

  Attributes:
    parameters: number of them.
    parts: bytes by kind.
  """

  parameters: int
  parts: dict[str, float]

  @property
  def total(self) -> float:
    return sum(self.parts.values())

  def line(self, devices: int) -> str:
    """In a line, for people."""
    where = "device memory" if devices == 1 else f"memory on each of {devices}"
    shown = ", ".join(
      f"{name} {gigabytes(size)}" for name, size in self.parts.items() if size
    )
    return (
      f"{self.parameters:,} parameters; about {gigabytes(self.total)} of "
      f"{where}: {shown}"
    )


def abstract(
  shape: models.DecoderConfig, lora: models.LoraConfig | None
) -> models.Decoder:
  """A model that takes no memory."""
  shape = dataclasses.replace(shape, lora=lora)
  return jax.eval_shape(lambda: models.Decoder(shape, rngs=nnx.Rngs(0)))


def count(config: ExperimentConfig, shape: models.DecoderConfig) -> Count:
  """Parameters of the policy of a base agent of this shape."""
  model = abstract(shape, config.policy.lora)
  return Count(
    sum(leaf.size for leaf in jax.tree.leaves(model)),
    sum(leaf.size for leaf in jax.tree.leaves(models.trainable(model))),
  )


def estimate(
  config: ExperimentConfig, shape: models.DecoderConfig, *, trained: bool = True
) -> Estimate:
  """Bytes on one device by kind.

  Trained parameters have gradients and two moments of AdamW's in float32.
  Frozen ones have rollout.dtype, in which they are loaded. The rollout copies
  parameters that lie otherwise or have another dtype.

  Args:
    config: the experiment.
    shape: of the agent.
    trained: whether it is the policy; the off-policy agent is rolled out alone.
  """
  rollout, update = config.rollout, config.update
  mesh = config.mesh.shape(jax.device_count())
  devices = math.prod(mesh.values())
  width = jnp.dtype(rollout.dtype).itemsize
  length = rollout.max_prompt_tokens + rollout.max_response_tokens
  kv = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
  cache = {"KV cache": width * kv * rollout.num_slots * length / devices}
  if not trained:
    size = count(_with_lora(config, None), shape)
    weights = {"parameters": width * size.parameters / mesh["tensor"]}
    return Estimate(size.parameters, weights | cache)
  size = count(config, shape)
  copied = size.trained if rollout.dtype != "float32" else 0
  if devices > 1:
    copied = size.parameters
  tokens = update.rows_per_microbatch * update.row_length
  parts = {
    **_state(config, size),
    "rollout copy": width * copied / mesh["tensor"],
    **cache,
    **_activations(config, shape, rollout.dtype, tokens, update.remat),
  }
  return Estimate(size.parameters, parts)


def warm_start(
  config: ExperimentConfig, shape: models.DecoderConfig
) -> Estimate:
  """Bytes on one device of the warm start, by kind; see `estimate`."""
  settings = config.warm_start
  assert settings is not None
  training = settings.training
  size = count(_with_lora(config, settings.lora), shape)
  tokens = (training.rows_per_microbatch or training.rows) * training.row_length
  return Estimate(
    size.parameters,
    _state(config, size)
    | _activations(config, shape, training.dtype, tokens, training.remat),
  )


def _with_lora(
  config: ExperimentConfig, lora: models.LoraConfig | None
) -> ExperimentConfig:
  policy = dataclasses.replace(config.policy, lora=lora)
  return dataclasses.replace(config, policy=policy)


def _state(config: ExperimentConfig, size: Count) -> dict[str, float]:
  """Parameters, and what an optimizer keeps of those that are trained."""
  mesh = config.mesh.shape(jax.device_count())
  slices = mesh["fsdp"] * mesh["tensor"]
  frozen = jnp.dtype(config.rollout.dtype).itemsize
  parameters = 4 * size.trained + frozen * (size.parameters - size.trained)
  return {
    "parameters": parameters / slices,
    "gradients and optimizer": 12 * size.trained / slices,
  }


def _activations(
  config: ExperimentConfig,
  shape: models.DecoderConfig,
  dtype: str,
  tokens: int,
  remat: models.Remat,
) -> dict[str, float]:
  """What a micro-batch of so many tokens keeps for its backward pass."""
  mesh = config.mesh.shape(jax.device_count())
  kept = kept_a_token(remat, shape)
  kept *= jnp.dtype(dtype).itemsize * tokens * shape.num_layers
  return {"activations": kept / (mesh["data"] * mesh["fsdp"])}


def room() -> float | None:
  """Bytes that one device has for a run; None if nobody says.

  CPU devices share what the host has available, within the limit of a
  container.
  """
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")
  found = [_available(pathlib.Path("/proc/meminfo"))]
  found += [_limit(pathlib.Path(path)) for path in _CGROUP_LIMITS]
  known = [size for size in found if size is not None]
  return min(known) / jax.local_device_count() if known else None


def _available(meminfo: pathlib.Path) -> int | None:
  if not meminfo.is_file():
    return None
  for line in meminfo.read_text(encoding="ascii").splitlines():
    name, _, value = line.partition(":")
    if name == "MemAvailable":
      return 1024 * int(value.split()[0])
  return None


def _limit(path: pathlib.Path) -> int | None:
  """Bytes in a file of the kernel's; None without one, or without a limit."""
  text = path.read_text(encoding="ascii").strip() if path.is_file() else "max"
  return int(text) if text.isdigit() else None


def kept_a_token(remat: models.Remat, shape: models.DecoderConfig) -> int:
  """Numbers that a layer keeps of a token for its backward pass.

  Attention keeps no scores: `attention.attend` computes them again.
  """
  size, wide = shape.hidden_size, shape.intermediate_size
  queries = shape.num_heads * shape.head_dim
  keys = shape.num_kv_heads * shape.head_dim
  if remat == "layer":
    return size
  if remat == "nested":
    # Inputs of the groups' first layers, and of the layers of one group.
    group = models.nested_group(shape.num_layers)
    inputs = shape.num_layers // group + group
    return -(-size * inputs // shape.num_layers)
  if remat == "attention":
    return size + queries
  # Its input, and the outputs of the projections that anything is made of.
  kept = 2 * size + queries + 2 * keys + 2 * wide
  if remat == "none":
    # Rotated and attended heads, the gate's parts, norms and residual sums, as
    # XLA's CPU back end keeps them.
    kept += 2 * queries + keys + 3 * wide + 8 * size
  return kept


def gigabytes(size: float) -> str:
  """`1.25 GB`, or `80.0 MB` where it is little."""
  return f"{size / 1e9:.2f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"
