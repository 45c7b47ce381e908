"""LoRA: adapters are added, trained alone, and merged into what they adapt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from rapo_jax.errors import InputError
from rapo_jax.models import sharding
from rapo_jax.models.config import LoraConfig
from rapo_jax.models.decoder import AdapterParam, Decoder

LORA_A, LORA_B, KERNEL = "lora_a", "lora_b", "kernel"


def add_adapters(
  model: Decoder,
  lora: LoraConfig,
  *,
  rngs: nnx.Rngs,
  mesh: Mesh | None = None,
  rules: sharding.Rules | None = None,
) -> Decoder:
  """Gives a decoder fresh adapters, which change nothing it computes.

  Args:
    model: without adapters. Its parameters are shared, not copied.
    lora: rank, strength and targets.
    rngs: stream that the A of each adapter is drawn from; B is 0.
    mesh: where the model lies; None for the default device.
    rules: how it lies there, `TRAIN_RULES` if None.

  Raises:
    InputError: the model has adapters.
  """
  if model.config.lora is not None:
    raise InputError(
      "add_adapters takes a model without adapters, and this one has some of "
      f"rank {model.config.lora.rank}; merge them with merge_adapters first."
    )
  config = dataclasses.replace(model.config, lora=lora)

  @jax.jit
  def draw(key: jax.Array) -> dict[str, nnx.Variable]:
    # Values that are not returned are never computed: this draws no second
    # base.
    drawn = trainable(Decoder(config, rngs=nnx.Rngs(params=key)))
    return sharding.constrain_parameters(drawn, rules or sharding.TRAIN_RULES)

  with sharding.use_mesh(mesh):
    adapters = draw(rngs.params())
  abstract = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  return with_trainable(abstract, {**_variables(model), **adapters})


def merge_adapters(model: Decoder) -> Decoder:
  """Folds the adapters into the projections; a model without any comes back.

  W + (alpha / rank) · A B, in float32, in W's dtype at the end
  """
  lora = model.config.lora
  if lora is None:
    return model
  merged = _variables(model)
  for path in trainable(model):
    if path.endswith(LORA_A):
      projection = path.removesuffix(LORA_A)
      kernel, a, b = (
        merged[projection + name].get_value().astype(jnp.float32)
        for name in (KERNEL, LORA_A, LORA_B)
      )
      kernel += lora.scale * jnp.matmul(a, b, precision="highest")
      own = merged[projection + KERNEL]
      merged[projection + KERNEL] = own.replace(kernel.astype(own.dtype))
  config = dataclasses.replace(model.config, lora=None)
  abstract = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  return with_trainable(abstract, merged)


def trainable(model: Any) -> dict[str, nnx.Variable]:
  """What is trained, by path: the adapters if there are any, else everything.

  Args:
    model: a decoder, or a tree of its structure.
  """
  variables = _variables(model)
  adapters = [
    name
    for name, variable in variables.items()
    if isinstance(variable, AdapterParam)
  ]
  return {name: variables[name] for name in adapters or variables}


def with_trainable(model: Any, variables: Mapping[str, nnx.Variable]) -> Any:
  """The model with some parameters in the place of its own.

  Args:
    model: a decoder, concrete, traced or abstract.
    variables: by path, as `trainable` returns them.
  """
  paths, structure = jax.tree_util.tree_flatten_with_path(
    model, is_leaf=_is_variable
  )
  return jax.tree.unflatten(
    structure, [variables.get(_name(path), own) for path, own in paths]
  )


def with_adapters_of(placed: Decoder, model: Decoder) -> Decoder:
  """A model as it lies already, with another's adapters.

  Frozen parameters never change: only adapters have to move.

  Args:
    placed: where and in the dtype in which the result is wanted. Its frozen
      parameters are shared, not copied.
    model: of the same structure, wherever it lies, in whatever dtype.
  """
  moved = {}
  own = trainable(placed)
  for name, adapter in trainable(model).items():
    there = own[name].get_value()
    moved[name] = own[name].replace(
      jax.device_put(adapter.get_value().astype(there.dtype), there.sharding)
    )
  return with_trainable(placed, moved)


def _variables(model: Any) -> dict[str, nnx.Variable]:
  """Every parameter by path, in the order of the model's leaves."""
  paths, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_variable)
  return {_name(path): variable for path, variable in paths}


def _name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_variable(x: Any) -> bool:
  return isinstance(x, nnx.Variable)
