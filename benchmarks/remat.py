"""Memory and time of a gradient under each remat policy.

    .venv/bin/python -m benchmarks.remat

Temporary memory is what XLA's compiler plans for the whole program, beside
parameters and gradients; the model is Qwen2-shaped, in float32, and runs on the
default device. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from rapo_jax import models


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--layers", type=int, default=8)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--vocab-size", type=int, default=32_000)
  parser.add_argument("--rows", type=int, default=4)
  parser.add_argument("--length", type=int, default=512)
  parser.add_argument("--repeats", type=int, default=5)
  arguments = parser.parse_args()
  shape = (arguments.rows, arguments.length)
  config = models.DecoderConfig(
    vocab_size=arguments.vocab_size,
    hidden_size=arguments.width,
    intermediate_size=4 * arguments.width,
    num_layers=arguments.layers,
    num_heads=arguments.width // 64,
    num_kv_heads=max(1, arguments.width // 128),
    head_dim=64,
  )
  model = models.Decoder(config, rngs=nnx.Rngs(0))
  tokens = jax.random.randint(jax.random.key(0), shape, 0, config.vocab_size)
  where = jnp.broadcast_to(jnp.arange(shape[1]) >= shape[1] // 2, shape)

  def compile_gradient(remat: models.Remat):
    def loss(model, tokens, where):
      return models.token_log_probs(model, tokens, where=where, remat=remat)[
        0
      ].sum()

    gradient = jax.jit(jax.grad(loss)).lower(model, tokens, where).compile()
    jax.block_until_ready(gradient(model, tokens, where))
    return gradient

  compiled = {
    policy: compile_gradient(policy) for policy in typing.get_args(models.Remat)
  }
  seconds: dict[str, list[float]] = {policy: [] for policy in compiled}
  for turn in range(arguments.repeats):
    for policy, gradient in compiled.items():
      began = time.perf_counter()
      jax.block_until_ready(gradient(model, tokens, where))
      seconds[policy].append(time.perf_counter() - began)
      print(turn, policy, f"{seconds[policy][-1]:.2f} s", file=sys.stderr)
  medians = {name: statistics.median(times) for name, times in seconds.items()}
  report = {
    "benchmark": "remat",
    "rows": shape[0],
    "length": shape[1],
    "layers": config.num_layers,
    "width": config.hidden_size,
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "temporary_bytes": {
      name: gradient.memory_analysis().temp_size_in_bytes
      for name, gradient in compiled.items()
    },
    "seconds": {
      name: [round(s, 3) for s in times] for name, times in seconds.items()
    },
    "time_over_none": {
      name: round(s / medians["none"], 3) for name, s in medians.items()
    },
  }
  print(json.dumps(report))


if __name__ == "__main__":
  main()
