"""How parameters and activations lie on a mesh of devices.

Every parameter names its axes (`embed`, `heads`, `vocab`, …) where it is made.
A rules table maps those names to axes of the mesh, one table a purpose: in
training every device keeps a slice of each weight (FSDP) and of each head
(tensor parallelism); in rollout weights are cut over `tensor` alone, so that a
token costs no gathering of weights. What a program computes does not depend on
either.

A program runs on a mesh by being traced under `jax.set_mesh(mesh)`, with its
arguments placed by `shardings`; without a mesh everything here does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
"""Axes of every mesh: copies, slices of weights and batch, slices of heads."""

Rules = Mapping[str, str | tuple[str, ...] | None]
"""From a logical axis to the mesh axes that it is cut over; None for none."""

_CUT_OVER_TENSOR = {
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
}

TRAIN_RULES: Rules = {"layers": None, "embed": "fsdp", **_CUT_OVER_TENSOR}
"""FSDP over `fsdp`, tensor parallelism over `tensor`."""

ROLLOUT_RULES: Rules = {"layers": None, "embed": None, **_CUT_OVER_TENSOR}
"""Tensor parallelism alone; `data` and `fsdp` hold copies."""

_ACTIVATION_RULES: Rules = {"batch": ("data", "fsdp"), **_CUT_OVER_TENSOR}


def make_mesh(
  *,
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Any = None,
) -> Mesh:
  """A mesh with the axes `data`, `fsdp` and `tensor`.

  Args:
    data: copies of the weights that see different rows of a batch.
    fsdp: slices of the weights, and of a batch's rows.
    tensor: slices of the heads, the feed-forward layer and the vocabulary.
    devices: what to make it of; all devices if None.

  Raises:
    ValueError: the product is not the number of devices.
  """
  devices = jax.devices() if devices is None else list(np.ravel(devices))
  shape = (data, fsdp, tensor)
  if math.prod(shape) != len(devices):
    raise ValueError(
      "data * fsdp * tensor must be the number of devices "
      f"({len(devices)}), got {data} * {fsdp} * {tensor} = "
      f"{math.prod(shape)}."
    )
  return jax.make_mesh(
    shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def logical_axes(model: Any) -> Any:
  """The names of each parameter's axes, in a tree like the model's leaves.

  Returns:
    A pytree of the model's structure with a tuple of names for each array.
  """
  variables, treedef = jax.tree.flatten(model, is_leaf=_is_variable)
  return jax.tree.unflatten(
    treedef,
    [v.replace(_axes(v)) for v in variables],
  )


def partition_spec(axes: tuple[str | None, ...], rules: Rules) -> PartitionSpec:
  """The partition of an array whose axes have these names."""
  return PartitionSpec(*(axis and rules.get(axis) for axis in axes))


def shardings(model: Any, mesh: Mesh, rules: Rules) -> Any:
  """Where each parameter lies, in a tree of the model's structure.

  Args:
    model: a decoder, concrete or abstract (`jax.eval_shape`).
    mesh: the devices.
    rules: from names of axes to axes of the mesh.

  Raises:
    ValueError: the mesh does not divide a dimension; names every such
      dimension, its size, and the sizes of the mesh axis that would divide it.
  """
  problems = list(_problems(model, mesh, rules))
  if problems:
    raise ValueError(
      "each mesh axis must divide the dimensions that are cut over it: "
      + "; ".join(dict.fromkeys(problems))
      + "."
    )

  def one(variable: nnx.Variable) -> nnx.Variable:
    spec = partition_spec(_axes(variable), rules)
    return variable.replace(NamedSharding(mesh, spec))

  return jax.tree.map(one, model, is_leaf=_is_variable)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Cuts an activation over the mesh that is set, if one is.

  A name whose mesh axes do not divide the dimension is left whole: it is a
  matter of speed alone.

  Args:
    x: the activation.
    axes: name of each axis, None for one that stays whole.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, *axes))


def activation_spec(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
  """How `constrain` cuts an activation over the mesh that is set."""
  mesh = jax.sharding.get_abstract_mesh()
  entries = []
  for size, axis in zip(shape, axes, strict=True):
    over = axis and _ACTIVATION_RULES.get(axis)
    entries.append(over if over and size % _size(mesh, over) == 0 else None)
  return PartitionSpec(*entries)


def _axes(variable: nnx.Variable) -> tuple[str, ...]:
  """Names of a parameter's axes; a stack of layers has one in front."""
  axes = variable.get_metadata()["logical_axes"]
  return ("layers",) * (len(variable.shape) - len(axes)) + axes


def _is_variable(x: Any) -> bool:
  return isinstance(x, nnx.Variable)


def _size(mesh: Any, over: str | tuple[str, ...]) -> int:
  names = (over,) if isinstance(over, str) else over
  return math.prod(mesh.shape[name] for name in names)


def _problems(model: Any, mesh: Mesh, rules: Rules) -> Iterator[str]:
  config = model.config
  # A kernel holds whole heads: what has to be divisible is their number.
  counts = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
  for variable in jax.tree.leaves(model, is_leaf=_is_variable):
    for axis, dimension in zip(_axes(variable), variable.shape, strict=True):
      over = rules.get(axis)
      if over is None:
        continue
      size, wanted = counts.get(axis, dimension), _size(mesh, over)
      if size % wanted:
        fits = [n for n in range(1, size + 1) if size % n == 0]
        below = max(n for n in fits if n < wanted)
        above = [n for n in fits if n > wanted][:1]
        yield (
          f"{axis} has {size} and mesh axis {over} has {wanted}, nearest that "
          f"work: {', '.join(map(str, [below, *above]))}"
        )
