"""The devices of an experiment, as one mesh."""

from __future__ import annotations

import jax

from experiments import input_errors
from experiments.config import MeshConfig
from rapo_jax.models import sharding


@input_errors.from_outside()
def device_mesh(config: MeshConfig) -> jax.sharding.Mesh | None:
  """The mesh over all devices, None if there is one only.

  Raises:
    InputError: its axes do not use all devices.
  """
  shape = config.shape(jax.device_count())
  return sharding.make_mesh(**shape) if jax.device_count() > 1 else None
