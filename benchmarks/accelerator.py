"""What the benchmarks of one accelerator share: its own limits, and a model."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rapo_jax import models
from rapo_jax.models import published

_PRODUCT_SIZE = 8192
_COPY_BYTES = 2 << 30
_CHAIN = 20
"""Of these in a row, so that launching them does not count."""


def decoder(dtype: str, num_layers: int | None) -> models.Decoder:
  """A random model of Qwen2.5-3B's shape, or of fewer layers."""
  hf = {**published.QWEN2_5_3B, "torch_dtype": dtype}
  if num_layers is not None:
    hf["num_hidden_layers"] = num_layers
  config = models.DecoderConfig.from_hf(hf)
  return jax.jit(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))()


def seconds(run: Callable[[], Any], repeats: int, name: str) -> list[float]:
  """Times of a few runs, after one that compiles; each is waited for."""
  times = []
  for turn in range(repeats + 1):
    began = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - began)
    print(name, turn, f"{times[-1]:.4f} s", file=sys.stderr, flush=True)
  return times[1:]


def matmul_flops_per_s(repeats: int) -> float:
  """What a chain of large products of random bfloat16 matrices reaches."""
  size = _PRODUCT_SIZE
  keys = jax.random.split(jax.random.key(0))
  # At this scale a product is as large as its factors.
  a, b = (
    jax.random.normal(key, (size, size), jnp.bfloat16) * scale
    for key, scale in zip(keys, (1.0, size**-0.5), strict=True)
  )
  products = jax.jit(
    lambda a, b: jax.lax.fori_loop(0, _CHAIN, lambda _, x: x @ b, a)
  )
  times = seconds(lambda: products(a, b), repeats, "products")
  return _CHAIN * 2 * size**3 / statistics.median(times)


def bandwidth_bytes_per_s(repeats: int) -> float:
  """What copying a large array reaches, reading and writing both counted."""
  array = jnp.zeros(_COPY_BYTES // 2, jnp.bfloat16)
  copy = jax.jit(jnp.copy)

  def copies() -> jax.Array:
    # Launched while the one before runs.
    for _ in range(_CHAIN):
      new = copy(array)
    return new

  times = seconds(copies, repeats, "copies")
  return _CHAIN * 2 * array.nbytes / statistics.median(times)
