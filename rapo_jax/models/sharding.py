"""How parameters and activations lie on a mesh of devices.

Every parameter names its axes (`embed`, `heads`, `vocab`, …) where it is made.
A rules table maps those names to axes of the mesh, one table a purpose. In
training every device keeps a slice of each weight (FSDP) and of each head
(tensor parallelism). In rollout weights are cut over `tensor` alone, so that a
token costs no gathering of weights. What a program computes does not depend on
either.

A program runs on a mesh by being traced under `jax.set_mesh(mesh)`, with its
arguments placed by `shardings`; without a mesh everything here does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from rapo_jax import hosts
from rapo_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")
"""Axes of every mesh: copies, slices of weights and batch, slices of heads."""

MeshAxes = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxes]
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

  TPUs of several slices are cut over `data` first, then over `fsdp`: devices of
  one slice stand together. `tensor` stays in a slice.

  Args:
    data: copies of the weights that see different rows of a batch.
    fsdp: slices of the weights, and of a batch's rows.
    tensor: slices of the heads, the feed-forward layer and the vocabulary.
    devices: what to make it of; all devices if None.

  Raises:
    InputError: the product is not the number of devices, or the slices of TPUs
      cannot be cut over `data` and `fsdp`.
  """
  devices = jax.devices() if devices is None else list(np.ravel(devices))
  shape = (data, fsdp, tensor)
  if math.prod(shape) != len(devices):
    raise InputError(
      "data * fsdp * tensor must be the number of devices "
      f"({len(devices)}), got {data} * {fsdp} * {tensor} = "
      f"{math.prod(shape)}."
    )
  # An axis may be shorter than a side of the torus: 4 slices of the heads on
  # 8x8x8 chips.
  num_slices = _num_slices(devices)
  if num_slices == 1:
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    outer = _over_slices(data, fsdp, tensor, num_slices)
    inner = tuple(size // n for size, n in zip(shape, outer, strict=True))
    grid = mesh_utils.create_hybrid_device_mesh(
      inner, outer, devices, allow_split_physical_axes=True
    )
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _num_slices(devices: Sequence[Any]) -> int:
  """Slices of TPUs that the devices belong to; 1 for all other devices."""
  return len(
    {
      getattr(device, "slice_index", 0)
      for device in devices
      if device.platform == "tpu"
    }
    or {0}
  )


def _over_slices(
  data: int, fsdp: int, tensor: int, num_slices: int
) -> tuple[int, int, int]:
  """Parts of each axis of a mesh that lie in different slices.

  Raises:
    InputError: devices of one slice would not stand together.
  """
  if data % num_slices == 0:
    return num_slices, 1, 1
  if num_slices % data == 0 and fsdp % (num_slices // data) == 0:
    return data, num_slices // data, 1
  rows = data * fsdp
  raise InputError(
    f"{num_slices} slices of TPUs must be cut over mesh.data and mesh.fsdp, "
    f"got mesh.data {data} and mesh.fsdp {fsdp}: "
    + (
      f"take mesh.data {num_slices} and mesh.fsdp {rows // num_slices}."
      if rows % num_slices == 0
      else "lower mesh.tensor, which has to divide the devices of a slice "
      f"({rows * tensor // num_slices})."
    )
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


def shardings(model: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Any:
  """Where each parameter lies, in a tree of the model's structure.

  Args:
    model: a decoder, concrete or abstract (`jax.eval_shape`).
    mesh: the devices, or their number along each axis alone.
    rules: from names of axes to axes of the mesh.

  Raises:
    InputError: a mesh axis does not divide a dimension; names every such
      dimension, its size, and the nearest sizes of the axis that would do.
  """
  problems = list(_problems(model, mesh, rules))
  if problems:
    raise InputError(
      "each mesh axis must divide the dimensions that are cut over it: "
      + "; ".join(problems)
      + "."
    )

  def one(variable: nnx.Variable) -> nnx.Variable:
    spec = partition_spec(_axes(variable), rules)
    return variable.replace(NamedSharding(mesh, spec))

  return jax.tree.map(one, model, is_leaf=_is_variable)


def row_parts(mesh: Mesh | AbstractMesh | None) -> int:
  """Parts that a mesh cuts rows of a batch, and slots, into."""
  return 1 if mesh is None else _size(mesh, ("data", "fsdp"))


def check_rows(name: str, rows: int, mesh: Mesh | AbstractMesh) -> None:
  """Checks that rows of a batch can be shared evenly among devices.

  Args:
    name: of the setting, for the error.
    rows: its value.
    mesh: the devices.

  Raises:
    InputError: `data * fsdp` does not divide it; names what is near.
  """
  parts = row_parts(mesh)
  if rows % parts:
    below, above = rows // parts * parts, -(-rows // parts) * parts
    near = f"{below} or {above}" if below else str(above)
    raise InputError(
      f"{name} must be a multiple of data * fsdp ({parts}) of the mesh, got "
      f"{rows}: take {near}."
    )


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


def constrain_parameters(tree: Any, rules: Rules) -> Any:
  """Cuts parameters, gradients or moments over the mesh that is set, if one is.

  Args:
    tree: holds parameters, or what has their shape and names of axes, anywhere;
      other leaves stay as they are.
    rules: from names of axes to axes of the mesh.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return tree

  def one(variable: Any) -> Any:
    if not _is_variable(variable):
      return variable
    spec = partition_spec(_axes(variable), rules)
    return variable.replace(
      jax.lax.with_sharding_constraint(variable.get_value(), spec)
    )

  return jax.tree.map(one, tree, is_leaf=_is_variable)


def place(
  model: Any,
  *,
  mesh: Mesh | None,
  rules: Rules,
  dtype: str | None = None,
) -> Any:
  """A copy of a model where, and in the dtype in which, it is used next.

  On a mesh one program does both, so the new copy is the only thing that is
  made. After an update this takes the policy from the training to the rollout
  layout.

  Args:
    model: the decoder. On a mesh of several processes it lies on such a one,
      or whole in each of them.
    mesh: where it goes; None for where it is.
    rules: how it lies there.
    dtype: of the copy, adapters too; None leaves each parameter its own.

  Returns:
    The model itself if nothing changes; without a mesh, only changed parameters
    are copied.
  """
  if mesh is None:
    return model if dtype is None else model.astype(dtype)
  layout = shardings(model, mesh, rules)
  if (dtype is None or model.has_dtype(dtype)) and jax.tree.all(
    jax.tree.map(
      lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), model, layout
    )
  ):
    return model
  if mesh.is_multi_process:
    # A program on such a mesh takes no arrays of one process alone.
    model = jax.tree.map(
      lambda x, s: _laid_out(x, s) if x.is_fully_addressable else x,
      model,
      layout,
    )
  with jax.set_mesh(mesh):
    return place_on_mesh(model, dtype, tuple(rules.items()))


@functools.partial(jax.jit, static_argnames=("dtype", "rules"))
def place_on_mesh(
  model: Any, dtype: str | None, rules: tuple[tuple[str, MeshAxes], ...]
) -> Any:
  model = model if dtype is None else model.astype(dtype)
  return constrain_parameters(model, dict(rules))


def replicate(tree: Any, mesh: Mesh | None) -> Any:
  """Arrays that every process holds, as inputs of programs on a mesh.

  Args:
    tree: arrays, of NumPy or on one device; the same ones in every process.
    mesh: the devices. Of several processes it gets arrays that are whole on
      each of them; else `jit` moves its arguments, and nothing is done.
  """
  if mesh is None or not mesh.is_multi_process:
    return jax.tree.map(jnp.asarray, tree)
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda x: _laid_out(x, whole), tree)


@hosts.travels
class HostRows(NamedTuple):
  """Rows of arrays that one host of a mesh has devices for.

  Attributes:
    parts: which of the parts that the mesh cuts the rows into, in order.
    tree: the arrays, with the rows of these parts along their second axis;
      those without axes are whole.
  """

  parts: tuple[int, ...]
  tree: Any


def split_rows(tree: Any, mesh: Mesh | None) -> Any:
  """Rows for each host of a mesh, to be handed to a led function.

  Args:
    tree: arrays `[M, R, ...]`, or without axes. The mesh has to divide R.
    mesh: the devices.

  Returns:
    A `PerHost` of `HostRows`. The tree itself where a host is alone.
  """
  if mesh is None or not mesh.is_multi_process:
    return tree
  grid = mesh.devices.reshape(row_parts(mesh), -1)
  # Each array comes to the host once.
  tree = jax.tree.map(np.asarray, tree)

  def of_host(host: int) -> HostRows:
    parts = [
      part
      for part, devices in enumerate(grid)
      if any(device.process_index == host for device in devices)
    ]

    def one(x: np.ndarray) -> np.ndarray:
      if not x.ndim:
        return x
      by_part = np.split(x, len(grid), axis=1)
      return np.concatenate([by_part[part] for part in parts], axis=1)

    return HostRows(tuple(parts), jax.tree.map(one, tree))

  return hosts.PerHost(tuple(map(of_host, range(jax.process_count()))))


def join_rows(rows: Any, mesh: Mesh | None) -> Any:
  """Whole arrays of what `split_rows` gave each host, on the devices of all."""
  if mesh is None or not isinstance(rows, HostRows):
    return jax.tree.map(jnp.asarray, rows)
  count = row_parts(mesh)

  def one(x: np.ndarray) -> jax.Array:
    if not x.ndim:
      return _laid_out(x, NamedSharding(mesh, PartitionSpec()))
    size = x.shape[1] // len(rows.parts)

    def of_device(index: Any) -> np.ndarray:
      place = rows.parts.index((index[1].start or 0) // size)
      return x[:, place * size : (place + 1) * size]

    return jax.make_array_from_callback(
      (x.shape[0], size * count, *x.shape[2:]),
      NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))),
      of_device,
    )

  return jax.tree.map(one, rows.tree)


def _laid_out(x: Any, layout: NamedSharding) -> jax.Array:
  """An array that every process holds, cut over devices of all of them."""
  host = np.asarray(x)
  return jax.make_array_from_callback(
    host.shape, layout, lambda index: host[index]
  )


def gathered(x: Any) -> np.ndarray:
  """A whole array on this host; every process of its mesh has to ask.

  Args:
    x: an array, wherever it lies.
  """
  if isinstance(x, jax.Array) and not (
    x.is_fully_addressable or x.is_fully_replicated
  ):
    assert isinstance(x.sharding, NamedSharding)
    x = _gather_on(x.sharding.mesh)(x)
  return np.asarray(x)


@functools.cache
def _gather_on(mesh: Mesh | AbstractMesh) -> Any:
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.jit(lambda x: x, out_shardings=whole)


def use_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """Traces and runs programs on a mesh; on one device without one."""
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _axes(variable: nnx.Variable) -> tuple[str, ...]:
  """Names of a parameter's axes; a stack of layers has one in front."""
  axes = variable.get_metadata()["logical_axes"]
  return ("layers",) * (len(variable.shape) - len(axes)) + axes


def _is_variable(x: Any) -> bool:
  return isinstance(x, nnx.Variable)


def _size(mesh: Any, over: str | tuple[str, ...]) -> int:
  names = (over,) if isinstance(over, str) else over
  return math.prod(mesh.shape[name] for name in names)


def _problems(
  model: Any, mesh: Mesh | AbstractMesh, rules: Rules
) -> Iterator[str]:
  config = model.config
  # A kernel holds whole heads: their number has to be divisible.
  counts = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
  cut: dict[str | tuple[str, ...], set[tuple[str, int]]] = {}
  for variable in jax.tree.leaves(model, is_leaf=_is_variable):
    for axis, dimension in zip(_axes(variable), variable.shape, strict=True):
      over = rules.get(axis)
      if over is not None:
        size = counts.get(axis, dimension)
        cut.setdefault(over, set()).add((axis, size))
  for over, dimensions in cut.items():
    wanted = _size(mesh, over)
    undivided = [
      f"{axis} ({size})" for axis, size in sorted(dimensions) if size % wanted
    ]
    if undivided:
      common = math.gcd(*(size for _, size in dimensions))
      fits = [n for n in range(1, common + 1) if common % n == 0]
      below = max(n for n in fits if n < wanted)
      above = [n for n in fits if n > wanted][:1]
      yield (
        f"{over} has {wanted}, which does not divide {', '.join(undivided)}; "
        "the nearest sizes that divide all that is cut over it are "
        f"{' and '.join(map(str, [below, *above]))}"
      )
