"""The GPU kernel over the cache gives what XLA's loop over blocks gives."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from rapo_jax.models import attention, cache_kernel
from tests.closeness import assert_close

LAYER, CACHE_ROWS, BLOCKS = 1, 6, 4
LENGTH = BLOCKS * attention.KV_BLOCK
ROWS = [[4, 1, 9]]  # The last one stands for no row.


def arrays(rows, chunk, heads, kv_heads, head_dim, dtype="float32"):
  """Queries, keys, values, positions and rows, as `attend` takes them."""
  rng = np.random.default_rng(0)
  number = CACHE_ROWS if rows is None else np.size(rows)
  shape = (2, BLOCKS, CACHE_ROWS, kv_heads, attention.KV_BLOCK, head_dim)
  queries, keys, values = (
    jnp.asarray(rng.normal(size=size), dtype)
    for size in ((number, chunk, heads, head_dim), shape, shape)
  )
  starts = rng.integers(0, LENGTH - chunk, number)
  positions = jnp.asarray(starts[:, None] + np.arange(chunk))
  return queries, keys, values, jnp.int32(LAYER), positions


def kernel(queries, keys, values, layer, positions, rows, **options):
  if rows is None:
    rows = np.zeros((CACHE_ROWS, 1), int)
  return cache_kernel.attend(
    queries,
    keys,
    values,
    layer,
    positions,
    jnp.int32(BLOCKS),
    jnp.asarray(rows),
    masked=-1e30,
    **options,
  )


@pytest.mark.parametrize("rows", [None, ROWS, [[2, 0], [1, 2]]])
@pytest.mark.parametrize(
  ("chunk", "heads", "kv_heads", "head_dim"),
  [
    (1, 16, 2, 128),
    (1, 14, 2, 64),  # 7 heads a key head fill no tile of 16.
    (20, 8, 2, 64),  # 80 rows are two tiles of 64, the second not full.
  ],
)
def test_the_kernel_equals_xla(rows, chunk, heads, kv_heads, head_dim):
  inputs = arrays(rows, chunk, heads, kv_heads, head_dim)
  got = kernel(*inputs, rows, interpret=True)
  expected = attention.attend_cache(
    *inputs, jnp.int32(BLOCKS), None if rows is None else jnp.asarray(rows)
  )
  assert_close(got, expected)


def test_in_bfloat16_too():
  inputs = arrays(ROWS, 3, 4, 2, 64, "bfloat16")
  got = kernel(*inputs, ROWS, interpret=True)
  assert got.dtype == jnp.bfloat16
  expected = attention.attend_cache(
    *inputs, jnp.int32(BLOCKS), jnp.asarray(ROWS)
  )
  assert_close(
    got.astype(jnp.float32), expected.astype(jnp.float32), tolerance=0.01
  )


def test_what_lies_beyond_the_last_block_read_changes_no_bit():
  queries, keys, values, layer, _ = arrays(None, 1, 4, 2, 64)
  positions = jnp.full((CACHE_ROWS, 1), attention.KV_BLOCK)
  clean = kernel(queries, keys, values, layer, positions, None, interpret=True)
  keys, values = (x.at[:, 2:].set(jnp.nan) for x in (keys, values))
  got = kernel(queries, keys, values, layer, positions, None, interpret=True)
  np.testing.assert_array_equal(got, clean)


def gpu_mesh():
  """A described device, as programs for absent hardware are traced."""
  return AbstractMesh(
    (1, 1, 1),
    ("data", "fsdp", "tensor"),
    abstract_device=AbstractDevice("any", 1, "gpu"),
  )


@pytest.mark.parametrize(
  ("dtype", "head_dim", "implementation", "expected"),
  [
    ("bfloat16", 64, "auto", 1),
    ("bfloat16", 64, "cudnn", 1),
    ("bfloat16", 64, "xla", 0),
    ("float32", 64, "auto", 0),
    ("bfloat16", 96, "auto", 0),
  ],
)
def test_a_gpu_takes_the_kernel_where_it_can(
  dtype, head_dim, implementation, expected
):
  inputs = arrays(None, 1, 2, 1, head_dim, dtype)
  with (
    jax.sharding.use_abstract_mesh(gpu_mesh()),
    mock.patch.object(
      cache_kernel, "attend", side_effect=lambda queries, *_, **__: queries
    ) as called,
  ):
    attention.attend_cache(
      *inputs, jnp.int32(BLOCKS), implementation=implementation
    )
  assert called.call_count == expected


@pytest.mark.parametrize("chunk", [1, 20])
def test_the_kernel_compiles_down_to_triton(chunk):
  """Lowered for CUDA, as far as a machine without a GPU goes."""
  inputs = arrays(ROWS, chunk, 14, 2, 64, "bfloat16")
  traced = jax.jit(functools.partial(kernel, rows=ROWS)).trace(*inputs)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "triton" in text
