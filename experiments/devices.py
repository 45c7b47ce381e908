"""The devices of an experiment, as one mesh."""

from __future__ import annotations

import os
import pathlib

import jax

from experiments.config import ExperimentConfig, MeshConfig
from rapo_jax import compilation, extras, hosts
from rapo_jax.errors import InputError
from rapo_jax.models import sharding

COMPILATION_CACHE = pathlib.Path(".cache/jax")


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
      f"not ({reason}): unset it, or install JAX for them "
      f"(`{extras.install_command('cuda')}`, "
      f"`{extras.install_command('tpu')}`)."
    ) from error


def use_compilation_cache() -> None:
  """Keeps compiled programs from one start to the next.

  Small ones too: a start of the miniature has some 150, for which it would
  take 10 s of compiling in place of reading.
  """
  jax.config.update(
    "jax_compilation_cache_dir", str(COMPILATION_CACHE.absolute())
  )
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@hosts.led
def forget_programs(config: ExperimentConfig) -> None:
  """See `compilation.forget_programs`; on all hosts, so that none waits."""
  del config  # Every host has it.
  compilation.forget_programs()


def device_mesh(config: MeshConfig) -> jax.sharding.Mesh | None:
  """The mesh over all devices, None if there is one only.

  Raises:
    InputError: its axes do not use all devices.
  """
  shape = config.shape(jax.device_count())
  return sharding.make_mesh(**shape) if jax.device_count() > 1 else None
