"""The devices of an experiment, as one mesh."""

from __future__ import annotations

import os

import jax

from experiments.config import MeshConfig
from rapo_jax.errors import InputError
from rapo_jax.models import sharding


def check_devices() -> None:
  """Checks that JAX has the devices that the environment asks for.

  Raises:
    InputError: it has not.
  """
  try:
    jax.devices()
  # JAX asserts that a platform it was given has a plugin.
  except (RuntimeError, AssertionError) as error:
    wanted = os.environ.get("JAX_PLATFORMS", "")
    reason = str(error).partition(" (set JAX_PLATFORMS")[0] or "no plugin"
    raise InputError(
      f"JAX must find the devices that JAX_PLATFORMS={wanted} names, and does "
      f"not ({reason}): unset it, or install JAX for them (`pip install -e "
      "'.[cuda]'` or '.[tpu]')."
    ) from error


def device_mesh(config: MeshConfig) -> jax.sharding.Mesh | None:
  """The mesh over all devices, None if there is one only.

  Raises:
    InputError: its axes do not use all devices.
  """
  shape = config.shape(jax.device_count())
  return sharding.make_mesh(**shape) if jax.device_count() > 1 else None
