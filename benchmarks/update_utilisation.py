"""An update on an accelerator: share of the matrix product's speed it reaches.

    python -m benchmarks.update_utilisation

Runs the trainer's own `update_minibatch` on Qwen2.5-3B's shape. Parameters,
gradients and moments are float32, computation is bfloat16. Rows have `--length`
tokens; the second half of each trajectory is the policy's. `fraction` is the
model's arithmetic a second, over that of one large bfloat16 product in the same
process. It counts a forward and a backward pass, the causal half of the
attention within each trajectory, and the head on policy tokens. Recomputation
does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import typing

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator
from benchmarks.rollout_setup import about_this_machine
from benchmarks.update import model_flops
from rapo_jax import models, objectives
from rapo_jax.training import (
  ObjectiveConfig,
  OptimizerConfig,
  PackedBatch,
  TrainState,
  init_train_state,
  update_minibatch,
)


def packed_batch(
  vocab_size: int, rows: int, length: int, per_row: int, per_microbatch: int
) -> PackedBatch:
  """Rows of equal trajectories, each half prompt and half policy."""
  rng = np.random.default_rng(0)
  shape = (rows, length)
  position = np.arange(length) % (length // per_row)
  where = np.broadcast_to(position >= length // per_row // 2, shape)
  segments = np.broadcast_to(
    1 + np.arange(length) // (length // per_row), shape
  )
  fields = (
    rng.integers(0, vocab_size, shape, dtype=np.int32),
    segments.astype(np.int32),
    where,
    np.asarray(objectives.loss_weights(where, aggregation="sequence")),
    {
      "old_log_probs": np.where(where, -np.log(vocab_size), 0),
      "advantages": rng.normal(size=shape),
      "retrieved_fraction": np.zeros(shape),
    },
  )

  def split(x: np.ndarray) -> jax.Array:
    dtype = np.float32 if x.dtype == np.float64 else x.dtype
    return jnp.asarray(x, dtype).reshape(-1, per_microbatch, length)

  return PackedBatch(
    *jax.tree.map(split, fields), jnp.asarray(rows // per_microbatch)
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rows", type=int, default=16)
  parser.add_argument("--rows-per-microbatch", type=int, default=2)
  parser.add_argument("--length", type=int, default=4096)
  parser.add_argument("--trajectories-per-row", type=int, default=1)
  parser.add_argument(
    "--remat", default="layer", choices=typing.get_args(models.Remat)
  )
  parser.add_argument("--head-chunk", type=int, default=models.HEAD_CHUNK)
  parser.add_argument("--layers", type=int, help="fewer than the model has")
  parser.add_argument("--repeats", type=int, default=3)
  arguments = parser.parse_args()
  rows, length = arguments.rows, arguments.length
  optimizer = OptimizerConfig()
  state: TrainState = init_train_state(
    accelerator.decoder("float32", arguments.layers), optimizer
  )
  config = state.model.config
  batch = packed_batch(
    config.vocab_size,
    rows,
    length,
    arguments.trajectories_per_row,
    arguments.rows_per_microbatch,
  )
  losses = []

  def update() -> TrainState:
    nonlocal state
    state, metrics = update_minibatch(
      state,
      batch,
      objective=ObjectiveConfig(),
      optimizer=optimizer,
      temperature=1.0,
      dtype="bfloat16",
      remat=arguments.remat,
      head_chunk=arguments.head_chunk,
    )
    losses.append(float(metrics.loss))
    return state

  times = accelerator.seconds(update, arguments.repeats, "update")
  if not np.isfinite(losses).all():
    raise ValueError(f"every loss must be finite, got {losses}.")
  peak = accelerator.matmul_flops_per_s(9)
  shape = {
    "vocab_size": config.vocab_size,
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_layers": config.num_layers,
    "num_heads": config.num_heads,
    "num_kv_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
  }
  # Trajectories attend to themselves alone, like rows of their length.
  trajectory = length // arguments.trajectories_per_row
  flops = model_flops(
    shape,
    rows * arguments.trajectories_per_row,
    trajectory,
    trajectory - trajectory // 2,
  )
  median = statistics.median(times)
  print(
    json.dumps(
      {
        "benchmark": "update_utilisation",
        "unit": "share of the speed of one product",
        "sizes": vars(arguments),
        "fraction": round(flops / median / peak, 3),
        "tokens_per_s": round(rows * length / median),
        "update_tflops": round(flops / 1e12, 1),
        "product_tflops_per_s": round(peak / 1e12, 1),
        "seconds": [round(s, 4) for s in times],
        "target": 0.45,
        **about_this_machine(),
      }
    )
  )


if __name__ == "__main__":
  main()
