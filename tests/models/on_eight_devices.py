"""What `sharding_test` runs in a process of its own, on eight fake devices.

    python -m tests.models.on_eight_devices FOLDER

Loads the checkpoint in FOLDER on every mesh and prints one JSON object with
what it saw. The number of devices is set by XLA_FLAGS before JAX starts.
"""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax import models
from rapo_jax.models import (
  attention,
  cache_kernel,
  checkpoint_layout,
  sharding,
)
from tests.closeness import relative_gap

MESHES = {
  # data, fsdp, tensor
  "8x1": (1, 8, 1),
  "4x2": (1, 4, 2),
  "2x4": (1, 2, 4),
  "1x8": (1, 1, 8),
  "2x2x2": (2, 2, 2),
}
RULES = {"train": sharding.TRAIN_RULES, "rollout": sharding.ROLLOUT_RULES}


def make_mesh(shape):
  return sharding.make_mesh(
    **dict(zip(sharding.MESH_AXES, shape, strict=True)),
    devices=jax.devices()[: np.prod(shape)],
  )


TOKENS = np.arange(24).reshape(8, 3)
logits_of = jax.jit(models.Decoder.__call__)


def check_mesh(folder, plain, plain_logits, shape, rules):
  """Compares a model on a mesh with the same on one device."""
  mesh = make_mesh(shape)
  model = models.from_pretrained(folder, mesh=mesh, rules=rules)
  layouts = checkpoint_layout.tensor_layouts(model)
  leaves = jax.tree.leaves(model)
  expected = jax.tree.leaves(sharding.shardings(model, mesh, rules))
  with jax.set_mesh(mesh):
    logits = logits_of(model, jnp.asarray(TOKENS))
  written = pathlib.Path(folder).with_name("written")
  models.save_pretrained(model, written)
  return {
    "equal": all(
      bool((np.asarray(x) == np.asarray(y)).all())
      for x, y in zip(leaves, jax.tree.leaves(plain), strict=True)
    ),
    "placed": [x.sharding for x in leaves] == expected,
    "specs": {
      layout.path: str(leaf.sharding.spec)
      for layout, leaf in zip(layouts, leaves, strict=True)
    },
    "device_bytes": [
      sum(
        shard.data.nbytes
        for leaf in leaves
        for shard in leaf.addressable_shards
        if shard.device == device
      )
      for device in mesh.devices.flat
    ],
    "logits_gap": relative_gap(logits, plain_logits),
    "written_equal": (written / "model.safetensors").read_bytes()
    == (pathlib.Path(folder) / "model.safetensors").read_bytes(),
  }


def cache_kernel_gap(shape):
  """Relative gap of the kernel on a mesh and XLA on one device."""
  rng = np.random.default_rng(0)
  layers, blocks, cache_rows, kv_heads, head_dim = 2, 2, 16, 8, 64
  size = (layers, blocks, cache_rows, kv_heads, attention.KV_BLOCK, head_dim)
  keys, values = (
    jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(2)
  )
  # Two of the rows of each eighth, each with two new tokens.
  rows = jnp.asarray(np.tile([[1, 0]], (8, 1)))
  queries = jnp.asarray(rng.normal(size=(16, 2, 16, head_dim)), jnp.float32)
  starts = rng.integers(0, blocks * attention.KV_BLOCK - 2, 16)
  positions = jnp.asarray(starts[:, None] + np.arange(2))
  arguments = (
    queries,
    keys,
    values,
    jnp.int32(1),
    positions,
    jnp.int32(blocks),
    rows,
  )
  expected = attention.attend_cache(*arguments)
  kernel = functools.partial(cache_kernel.attend, masked=-1e30, interpret=True)
  with jax.set_mesh(make_mesh(shape)):
    got = jax.jit(kernel)(*arguments)
  return relative_gap(got, expected)


def refusal(folder, shape):
  """The message with which a mesh is refused."""
  try:
    models.from_pretrained(folder, mesh=make_mesh(shape))
  except ValueError as error:
    return str(error)
  return None


def main(folder):
  plain = models.from_pretrained(folder)
  plain_logits = np.asarray(logits_of(plain, jnp.asarray(TOKENS)))
  check = functools.partial(check_mesh, folder, plain, plain_logits)
  report = {
    "devices": jax.device_count(),
    "total_bytes": sum(x.nbytes for x in jax.tree.leaves(plain)),
    "meshes": {
      f"{name} {purpose}": check(shape, rules)
      for name, shape in MESHES.items()
      for purpose, rules in RULES.items()
    },
    "cache_kernel_gaps": {
      name: cache_kernel_gap(shape) for name, shape in MESHES.items()
    },
    "refusals": {
      "1x3": refusal(folder, (1, 1, 3)),
      "5x1": refusal(folder, (1, 5, 1)),
      "1x6": refusal(folder, (1, 1, 6)),
    },
  }
  sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
  main(sys.argv[1])
