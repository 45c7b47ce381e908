"""Runs updates and rollouts on meshes of eight fake devices, for mesh_test.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
      python -m tests.training.mesh_program "update 2x4" "greedy 8" adapters

Runs the cases named (see `_cases`) and prints one JSON line, a report of each:
how far it is from one device.
"""

import contextlib
import functools
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils

from rapo_jax import models
from rapo_jax.models import sharding
from rapo_jax.rollout import RolloutConfig, sampler
from rapo_jax.training import (
  Checkpoints,
  ObjectiveConfig,
  OptimizerConfig,
  PackedBatch,
  TrainState,
  init_train_state,
  score_reference,
  update_minibatch,
)
from tests.closeness import relative_gap
from tests.tiny_decoder import tiny_decoder

VOCABULARY, LENGTH, ROWS, SLOTS = 64, 32, 8, 8
LORA = models.LoraConfig(4, 8.0, ("query", "value", "out", "down"))
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
OBJECTIVE = ObjectiveConfig()
# Terms so large that the gradient would not be the same without them.
REGULARISED = ObjectiveConfig(kl_coef=0.5, entropy_coef=0.5)


def make_model(
  *, tie_embeddings: bool = False, seed: int = 0
) -> models.Decoder:
  return tiny_decoder(
    seed=seed,
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=128,
    num_heads=16,
    num_kv_heads=8,
    tie_embeddings=tie_embeddings,
  )


def make_batch() -> PackedBatch:
  """Two micro-batches of rows that hold two trajectories each."""
  rng = np.random.default_rng(0)
  shape = (2, ROWS, LENGTH)
  where = rng.random(shape) < 0.6
  segments = np.repeat([1, 2], [LENGTH // 2 - 3, LENGTH // 2 + 3])
  return PackedBatch(
    tokens=jnp.asarray(rng.integers(0, VOCABULARY, shape), jnp.int32),
    segment_ids=jnp.broadcast_to(jnp.asarray(segments, jnp.int32), shape),
    where=jnp.asarray(where),
    weights=jnp.asarray(where / where.sum(), jnp.float32),
    columns={
      "old_log_probs": jnp.full(shape, -4.2, jnp.float32),
      "advantages": jnp.asarray(rng.normal(size=shape), jnp.float32),
      "retrieved_fraction": jnp.asarray(0.3 * rng.random(shape), jnp.float32),
    },
    num_microbatches=jnp.int32(2),
  )


def update(
  mesh: jax.sharding.Mesh | None,
  dtype: str = "float32",
  lora: models.LoraConfig | None = None,
  objective: ObjectiveConfig = OBJECTIVE,
) -> dict[str, Any]:
  """Loss and gradients of an update, and what became of the state."""
  scoring: dict[str, Any] = {
    "temperature": 0.7,
    "dtype": dtype,
    "remat": "layer",
    "head_chunk": 64,
  }
  model = sharding.place(make_model(), mesh=mesh, rules=sharding.TRAIN_RULES)
  if lora is not None:
    model = models.add_adapters(model, lora, rngs=nnx.Rngs(1), mesh=mesh)
  state = init_train_state(model, OPTIMIZER, mesh=mesh)
  with sharding.use_mesh(mesh):
    batch = sharding.replicate(make_batch(), mesh)
    if objective.kl_coef:
      reference = sharding.place(
        make_model(seed=1), mesh=mesh, rules=sharding.TRAIN_RULES
      )
      batch = score_reference(reference, batch, **scoring)
    state, metrics = update_minibatch(
      state, batch, objective=objective, optimizer=OPTIMIZER, **scoring
    )
  moment = optax.tree.get(state.opt_state, "mu")
  trained = models.trainable(state.model)
  trees = (trained, moment, optax.tree.get(state.opt_state, "nu"))
  return {
    "loss": float(metrics.loss),
    "gradient_norm": float(metrics.gradient_norm),
    # The first moment is a tenth of the first gradient. Parameters would tell
    # less: Adam divides the gradient by its own size.
    "gradients": [10 * _whole(x) for x in jax.tree.leaves(moment)],
    "dtype": str(jax.tree.leaves(state.model)[0].dtype),
    "placed": mesh is None
    or (
      _lies_as_ruled(state.model, state.model, mesh)
      and all(_lies_as_ruled(tree, state.model, mesh) for tree in trees)
    ),
  }


def _whole(x: jax.Array) -> np.ndarray:
  """An array that may lie on devices of several processes."""
  if x.is_fully_addressable:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def _lies_as_ruled(
  tree: Any, model: models.Decoder, mesh: jax.sharding.Mesh
) -> bool:
  """Whether a model, or what has the structure of its trainable part, does."""
  wanted = sharding.shardings(model, mesh, sharding.TRAIN_RULES)
  if tree is not model:
    wanted = models.trainable(wanted)
  return jax.tree.all(
    jax.tree.map(
      lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, wanted
    )
  )


# All filters at once, on a vocabulary that tensor parallelism has cut.
FILTERED = RolloutConfig(top_k=24, top_p=0.9, min_p=0.02)


def rollout(
  mesh: jax.sharding.Mesh | None, sampling: sampler.Sampling
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and log-probs of prefill, decode, insert, decode."""
  model = sharding.place(make_model(), mesh=mesh, rules=sharding.ROLLOUT_RULES)
  parts = sharding.row_parts(mesh)
  with sharding.use_mesh(mesh):
    width, length = 64, 128
    prompts = jnp.asarray(
      np.random.default_rng(1).integers(0, VOCABULARY, (SLOTS, width)),
      jnp.int32,
    )
    lengths = jnp.arange(SLOTS) + 3
    cache = sampler.prefill(
      model,
      sampler.init_prompt_cache(model, SLOTS, width),
      prompts,
      lengths,
      attend_length=width,
      chunk=16,
    )
    keys = sampler.sequence_keys(
      0,
      jnp.int32(0),
      jnp.arange(SLOTS, dtype=jnp.uint32),
      jnp.zeros(SLOTS, jnp.uint32),
    )
    state = sampler.admit(
      sampler.init_slots(model, SLOTS, length),
      cache,
      prompts,
      lengths,
      jnp.arange(SLOTS, dtype=jnp.int32),
      jnp.full(SLOTS, 30, jnp.int32),
      keys,
    )
    state = _decode(model, state, sampling, length)
    pieces = jnp.asarray(
      np.random.default_rng(2).integers(0, VOCABULARY, (SLOTS, 20)), jnp.int32
    )
    state = sampler.insert(
      model,
      state,
      jnp.tile(jnp.arange(SLOTS // parts, dtype=jnp.int32), (parts, 1)),
      pieces,
      jnp.arange(SLOTS) + 5,
      jnp.full(SLOTS, 60, jnp.int32),
      attend_length=length,
      chunk=16,
    )
    state = _decode(model, state, sampling, length)
  used = np.arange(length) < np.asarray(state.lengths)[:, None]
  return (
    np.where(used, np.asarray(state.tokens), 0),
    np.where(used, np.asarray(state.log_probs), 0),
  )


def _decode(
  model: models.Decoder,
  state: sampler.SlotState,
  sampling: sampler.Sampling,
  length: int,
) -> sampler.SlotState:
  return sampler.decode(
    model,
    state,
    jnp.zeros((2, VOCABULARY), jnp.int32),
    jnp.zeros(VOCABULARY, bool),
    sampling,
    num_tokens=40,
    attend_length=length,
  )


@functools.cache
def _update_on_one_device(
  lora: models.LoraConfig | None, objective: ObjectiveConfig
) -> dict[str, Any]:
  return update(None, lora=lora, objective=objective)


def _update_on(
  mesh: jax.sharding.Mesh,
  dtype: str = "float32",
  lora: models.LoraConfig | None = None,
  objective: ObjectiveConfig = OBJECTIVE,
) -> dict[str, Any]:
  one = _update_on_one_device(lora, objective)
  there = update(mesh, dtype=dtype, lora=lora, objective=objective)
  return {
    name: relative_gap(there[name], one[name])
    for name in ("loss", "gradient_norm", "gradients")
  } | {
    "largest_gradient": max(float(np.abs(g).max()) for g in one["gradients"]),
    "placed": there["placed"],
    "dtype": there["dtype"],
  }


def _rollout_on(
  mesh: jax.sharding.Mesh, sampling: sampler.Sampling
) -> dict[str, Any]:
  tokens, log_probs = rollout(None, sampling)
  mesh_tokens, mesh_log_probs = rollout(mesh, sampling)
  return {
    "same_tokens": bool((mesh_tokens == tokens).all()),
    "log_probs": relative_gap(mesh_log_probs, log_probs),
    "num_tokens": int((tokens > 0).sum()),
  }


def _restored() -> dict[str, Any]:
  """A checkpoint written on one mesh, read on others and on one device."""
  mesh = sharding.make_mesh(fsdp=4, tensor=2)

  def placed(mesh: jax.sharding.Mesh | None, seed: int) -> TrainState:
    model = make_model(seed=seed)
    if mesh is not None:
      model = sharding.place(model, mesh=mesh, rules=sharding.TRAIN_RULES)
    return init_train_state(model, OPTIMIZER, mesh=mesh)

  state = placed(mesh, 0)
  expected = jax.device_get(jax.tree.leaves(state))
  with tempfile.TemporaryDirectory() as folder:
    with contextlib.closing(
      Checkpoints(pathlib.Path(folder), mesh=mesh)
    ) as checkpoints:
      checkpoints.save(1, state, {})
    same = {}
    for name, other in {
      "2x4": sharding.make_mesh(fsdp=2, tensor=4),
      "8x1": sharding.make_mesh(fsdp=8),
      "one": None,
    }.items():
      like = placed(other, 1)
      with contextlib.closing(
        Checkpoints(pathlib.Path(folder), mesh=other)
      ) as checkpoints:
        there = checkpoints.restore(1, like)
      same[name] = {
        "same": all(
          np.array_equal(a, b)
          for a, b in zip(
            jax.device_get(jax.tree.leaves(there)), expected, strict=True
          )
        ),
        "placed": [x.sharding for x in jax.tree.leaves(there)]
        == [x.sharding for x in jax.tree.leaves(like)],
      }
  return same


def _cases() -> dict[str, Callable[[], dict[str, Any]]]:
  mesh = sharding.make_mesh
  greedy, filtered = sampler.GREEDY, sampler.sampling(FILTERED)
  return {
    "update 8x1": lambda: _update_on(mesh(fsdp=8)),
    "update 4x2": lambda: _update_on(mesh(fsdp=4, tensor=2)),
    "update 2x4": lambda: _update_on(mesh(fsdp=2, tensor=4)),
    "update 1x8": lambda: _update_on(mesh(tensor=8)),
    "adapters": lambda: _update_on(mesh(fsdp=4, tensor=2), lora=LORA),
    "update with KL and entropy": lambda: _update_on(
      mesh(fsdp=4, tensor=2), objective=REGULARISED
    ),
    "bfloat16": lambda: _update_on(mesh(fsdp=4, tensor=2), dtype="bfloat16"),
    "greedy 4x2": lambda: _rollout_on(mesh(fsdp=4, tensor=2), greedy),
    "greedy 8": lambda: _rollout_on(mesh(tensor=8), greedy),
    "greedy 2x4": lambda: _rollout_on(mesh(data=2, tensor=4), greedy),
    "restored": _restored,
    "filtered 2x4": lambda: _rollout_on(mesh(data=2, tensor=4), filtered),
  }


def main() -> None:
  cases = _cases()
  sys.stdout.write(json.dumps({name: cases[name]() for name in sys.argv[1:]}))


if __name__ == "__main__":
  main()
