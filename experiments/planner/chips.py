"""Accelerators, and the devices that a topology's name stands for."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from rapo_jax import extras
from rapo_jax.errors import InputError


class TopologyError(InputError):
  """A topology that cannot be planned for."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of one device, as its maker publishes them.

  Attributes:
    flops_per_s: dense bfloat16 operations a second.
    memory_bytes: high-bandwidth memory.
    memory_bytes_per_s: its bandwidth.
    link_bytes_per_s: what the device sends to its neighbours in a second, all
      links of the fast network together.
    far_bytes_per_s: what the device sends to other islands in a second.
    host: devices that one host drives, where there are several hosts.
    island: devices that the fast network joins; None for those of a slice.
  """

  flops_per_s: float
  memory_bytes: float
  memory_bytes_per_s: float
  link_bytes_per_s: float
  far_bytes_per_s: float
  host: int = 4
  island: int | None = None


CHIPS = {
  # Slices send each other over the data-centre network. A chip's share is 50
  # Gbit/s for v5p, 6.4 and 25.6 Tbit/s over 256 chips for v5e and v6e
  # (docs.cloud.google.com/tpu/docs/{v5p,v5e,v6e}, table of key figures). Google
  # gives none for v4: that of v5p is taken, whose hosts have four chips too.
  "v4": Chip(275e12, 32 * 2**30, 1.23e12, 300e9, 6.25e9),
  "v5e": Chip(197e12, 16 * 2**30, 0.82e12, 200e9, 3.125e9),
  "v5p": Chip(459e12, 95 * 2**30, 2.77e12, 600e9, 6.25e9),
  "v6e": Chip(918e12, 32 * 2**30, 1.64e12, 448e9, 12.5e9),
  # Hosts of eight, with a network card of 200 or 400 Gbit/s for each GPU.
  "a100": Chip(312e12, 80e9, 2.04e12, 300e9, 25e9, 8, 8),
  "h100": Chip(989e12, 80e9, 3.35e12, 450e9, 50e9, 8, 8),
  "h200": Chip(989e12, 141e9, 4.8e12, 450e9, 50e9, 8, 8),
}
"""By the name that a topology begins with."""

TPUS = ("v4", "v5e", "v5p", "v6e")


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for.

  Attributes:
    name: as it was asked for, e.g. "v5p:4x4x2" or "v5p:4x4x2*4".
    chip: name of the chip; "cpu" has no figures.
    devices: JAX devices, of which none need be attached.
    compiled_for: what programs are compiled for: "tpu", or "cpu" where
      another device's figures are worked out from fake CPU devices.
    slices: of TPUs that a slower network joins, equal parts of `devices` one
      after another.
  """

  name: str
  chip: str
  devices: list[Any]
  compiled_for: str
  slices: int = 1

  def island(self, chip: Chip) -> int:
    """Devices that a fast network would join, were they of this kind."""
    return chip.island or len(self.devices) // self.slices


def parse_topology(name: str) -> tuple[str, tuple[int, ...], int]:
  """Chip, shape of a slice, and number of slices of a topology's name.

  Raises:
    TopologyError: it is not of the form chip:2x2x1, chip:2x2x1*2, chip:8 or
      cpu:8.
  """
  match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+){0,2})(?:\*(\d+))?", name)
  known = (*CHIPS, "cpu")
  if match is None or match[1] not in known:
    raise TopologyError(
      "--topology must be a chip and its shape, e.g. v5p:4x4x2, v5p:4x4x2*4 "
      "for four slices, h100:8 or cpu:8, with one of the chips "
      f"{', '.join(known)}; got {name!r}."
    )
  chip, shape = match[1], tuple(int(n) for n in match[2].split("x"))
  if chip not in TPUS and (len(shape) > 1 or match[3]):
    raise TopologyError(
      f"a topology of {chip} is a number of devices, e.g. {chip}:8, "
      f"got {name!r}: leave out {'what follows *' if match[3] else 'the x'}."
    )
  slices = int(match[3] or 1)
  if not slices or not math.prod(shape):
    raise TopologyError(
      "a topology must have at least one device and one slice, e.g. "
      f"v5p:4x4x2*4, got {name!r}."
    )
  return chip, shape, slices


def open_topology(name: str) -> Topology:
  """The devices of a topology. Call it before anything else uses JAX.

  Raises:
    TopologyError: the name is wrong, or libtpu is not installed or does not
      know the shape.
  """
  chip, shape, slices = parse_topology(name)
  if chip not in TPUS:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", shape[0])
    return Topology(name, chip, jax.devices(), "cpu")
  return Topology(name, chip, _tpu_devices(name, slices), "tpu", slices)


def _tpu_devices(name: str, slices: int) -> list[Any]:
  from jax.experimental import topologies

  # No TPU is attached: the default device has to be another.
  jax.config.update("jax_platforms", "cpu")
  # Nor is one opened, so plans can be made side by side.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  if importlib.util.find_spec("libtpu") is None:
    raise TopologyError(
      f"{name} is compiled for by libtpu, which is not installed: "
      f"{extras.install_command('plan')}, or plan with --topology cpu:8."
    )
  try:
    described = topologies.get_topology_desc(
      name.partition("*")[0], platform="tpu", num_slices=slices
    )
  except (RuntimeError, ValueError) as error:
    raise TopologyError(f"libtpu cannot open {name}: {error}") from error
  return list(described.devices)
