"""Small arrays of each host, brought to the devices of all.

A program on devices of several hosts takes arrays that all of them know. Each
host puts what is its own on its devices, and one program hands it on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from rapo_jax.models import sharding


class _Spec(NamedTuple):
  """One array of a host: its shape, and its type of 32 bits."""

  shape: tuple[int, ...]
  dtype: str


class Exchange:
  """Brings arrays of each host to the devices of all; all have to call it.

  Args:
    mesh: devices of several hosts.
  """

  def __init__(self, mesh: jax.sharding.Mesh):
    devices = list(mesh.devices.flat)
    self._mesh = mesh
    self._layout = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    of_hosts = [
      [n for n, device in enumerate(devices) if device.process_index == host]
      for host in range(jax.process_count())
    ]
    # What a host sends is cut over its devices, over as many of each host.
    self._pieces = min(map(len, of_hosts))
    self._order = tuple(n for own in of_hosts for n in own[: self._pieces])
    own = of_hosts[jax.process_index()][: self._pieces]
    self._piece_of = {n: piece for piece, n in enumerate(own)}
    self._num_devices = len(devices)

  def __call__(
    self, arrays: Sequence[np.ndarray], places: tuple[int, ...] | None = None
  ) -> list[Any]:
    """Arrays of all hosts, whole on each device.

    Args:
      arrays: of this host, of 32-bit integers, `[parts, rows, ...]`. On each
        host as many, of the same shapes.
      places: parts that are taken, in order, and numbered through the hosts.
        None takes all of them.

    Returns:
      For each array the rows of these parts, `[all rows, ...]`, on the devices.
      Programs take them as they take arrays of the host.
    """
    flat = np.concatenate(
      [np.ascontiguousarray(a).view(np.int32).ravel() for a in arrays]
    )
    width = -(-len(flat) // self._pieces)
    pieces = np.zeros((self._pieces, width), np.int32)
    pieces.ravel()[: len(flat)] = flat
    nothing = np.zeros((1, width), np.int32)

    def of_device(index: Any) -> np.ndarray:
      piece = self._piece_of.get(index[0].start or 0)
      return nothing if piece is None else pieces[piece : piece + 1]

    spread = jax.make_array_from_callback(
      (self._num_devices, width), self._layout, of_device
    )
    with sharding.use_mesh(self._mesh):
      return _joined(
        spread,
        order=self._order,
        hosts=len(self._order) // self._pieces,
        specs=tuple(_Spec(a.shape, a.dtype.name) for a in arrays),
        places=places,
      )


@functools.partial(
  jax.jit, static_argnames=("order", "hosts", "specs", "places")
)
def _joined(
  spread: Int[Array, "D W"],
  *,
  order: tuple[int, ...],
  hosts: int,
  specs: tuple[_Spec, ...],
  places: tuple[int, ...] | None,
) -> list[Array]:
  """See `Exchange`: from one piece a device to whole arrays on each."""
  whole = sharding.constrain(spread, None, None)
  by_host = whole[jnp.array(order)].reshape(hosts, -1)
  begin, found = 0, []
  for spec in specs:
    size = math.prod(spec.shape)
    parts = by_host[:, begin : begin + size].reshape(-1, *spec.shape[1:])
    begin += size
    if places is not None:
      parts = parts[jnp.array(places)]
    rows = parts.reshape(-1, *spec.shape[2:])
    rows = jax.lax.bitcast_convert_type(rows, jnp.dtype(spec.dtype))
    found.append(sharding.constrain(rows, *[None] * rows.ndim))
  return found
