"""Attention of whole sequences: every implementation gives the same."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from rapo_jax.models import attention, splash
from tests.closeness import assert_close


def arrays(batch, length, heads, kv_heads, head_dim, dtype="float32"):
  rng = np.random.default_rng(0)
  shapes = ((heads, "queries"), (kv_heads, "keys"), (kv_heads, "values"))
  return tuple(
    jnp.asarray(rng.normal(size=(batch, length, n, head_dim)), dtype)
    for n, _ in shapes
  )


def segments(batch, length):
  """Several segments a row, and padding at its end."""
  rng = np.random.default_rng(1)
  ids = 1 + np.sort(rng.integers(0, 4, (batch, length)), axis=1)
  ids[:, -length // 8 :] = 0
  return jnp.asarray(ids, jnp.int32)


def prefixes(ids):
  """Segments from the second on read the first."""
  return jnp.where(ids > 1, 1, 0)


def by_hand(queries, keys, values, segment_ids, prefix_ids=None):
  """Position by position, in float64 NumPy."""
  queries, keys, values = (
    np.asarray(x, np.float64) for x in (queries, keys, values)
  )
  batch, length, heads, head_dim = queries.shape
  group = heads // keys.shape[2]
  ids = np.ones((batch, length)) if segment_ids is None else segment_ids
  before = -np.ones((batch, length)) if prefix_ids is None else prefix_ids
  out = np.zeros_like(queries)
  for b, t, h in np.ndindex(batch, length, heads):
    read = (ids[b, t], before[b, t])
    seen = [s for s in range(t + 1) if ids[b, s] in read]
    scores = keys[b, seen, h // group] @ queries[b, t, h] / head_dim**0.5
    weights = np.exp(scores - scores.max())
    out[b, t, h] = weights / weights.sum() @ values[b, seen, h // group]
  return out


def value_and_gradients(function, inputs):
  """Of a sum with weights, so that no gradient cancels."""
  weights = np.random.default_rng(2).normal(size=inputs[0].shape)

  def loss(queries, keys, values):
    return jnp.sum(function(queries, keys, values) * weights)

  return jax.jit(
    lambda *x: (function(*x), jax.grad(loss, argnums=(0, 1, 2))(*x))
  )(*inputs)


@pytest.mark.parametrize("block", [512, 8, 5])
@pytest.mark.parametrize("packed", [True, False])
def test_xla_equals_the_definition(block, packed):
  inputs = arrays(2, 24, 4, 2, 8)
  ids = segments(2, 24) if packed else None
  with mock.patch.object(attention, "QUERY_BLOCK", block):
    got = attention.attend(*inputs, segment_ids=ids, implementation="xla")
  assert_close(got, by_hand(*inputs, ids))


@pytest.mark.parametrize("block", [512, 8])
def test_a_segment_reads_its_prefix(block):
  inputs = arrays(2, 24, 4, 2, 8)
  ids = segments(2, 24)
  with mock.patch.object(attention, "QUERY_BLOCK", block):
    got = attention.attend(
      *inputs, segment_ids=ids, prefix_ids=prefixes(ids), implementation="xla"
    )
  assert_close(got, by_hand(*inputs, ids, prefixes(ids)))


def test_positions_go_on_behind_a_prefix():
  ids = jnp.asarray([[1, 1, 1, 2, 2, 3, 4, 4, 0]])
  before = jnp.asarray([[0, 0, 0, 1, 1, 1, 0, 0, 0]])
  np.testing.assert_array_equal(
    attention.segment_positions(ids, before)[0, :8], [0, 1, 2, 3, 4, 3, 0, 1]
  )


def test_the_splash_kernel_takes_no_prefixes():
  inputs = arrays(1, 128, 2, 1, 64)
  ids = segments(1, 128)
  assert attention.reads_prefixes("auto")
  assert not attention.reads_prefixes("splash")
  with pytest.raises(ValueError, match="segments without shared prefixes"):
    attention.attend(
      *inputs,
      segment_ids=ids,
      prefix_ids=prefixes(ids),
      implementation="splash",
    )


@pytest.mark.parametrize("packed", [True, False])
def test_blocks_of_queries_change_nothing(packed):
  inputs = arrays(2, 100, 4, 2, 8)
  ids = segments(2, 100) if packed else None
  attend = functools.partial(
    attention.attend, segment_ids=ids, implementation="xla"
  )
  with mock.patch.object(attention, "_MIN_QUERY_BLOCK", 128):
    dense = value_and_gradients(attend, inputs)
  with mock.patch.object(attention, "QUERY_BLOCK", 32):
    blocks = value_and_gradients(attend, inputs)
  assert_close(blocks, dense)


@pytest.mark.parametrize(
  ("length", "heads", "kv_heads", "head_dim"),
  [(128, 4, 2, 64), (256, 2, 2, 128), (384, 4, 1, 64)],
)
def test_splash_equals_xla(length, heads, kv_heads, head_dim):
  inputs = arrays(2, length, heads, kv_heads, head_dim)
  ids = segments(2, length)
  kernel = functools.partial(splash.attend, segment_ids=ids, interpret=True)
  plain = functools.partial(
    attention.attend, segment_ids=ids, implementation="xla"
  )
  got = value_and_gradients(kernel, inputs)
  expected = value_and_gradients(plain, inputs)
  assert_close(got, expected)


@pytest.mark.parametrize("head_dim", [64, 192])
def test_splash_in_bfloat16_is_as_near_as_xla(head_dim):
  inputs = arrays(2, 128, 4, 2, head_dim, "bfloat16")
  ids = segments(2, 128)
  plain = functools.partial(
    attention.attend, segment_ids=ids, implementation="xla"
  )
  got = splash.attend(*inputs, ids, interpret=True)
  assert got.dtype == jnp.bfloat16
  exact = plain(*(x.astype(jnp.float32) for x in inputs))

  def error(x):
    return float(jnp.abs(x.astype(jnp.float32) - exact).mean())

  assert error(got) < 1.5 * error(plain(*inputs))


@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_splash_rounds_scaled_queries_once(head_dim):
  queries, _, _ = arrays(1, 8, 2, 1, head_dim, "bfloat16")
  exact = np.asarray(queries, np.float64) / head_dim**0.5
  np.testing.assert_array_equal(
    splash._scaled(queries), exact.astype(jnp.bfloat16)
  )


def test_splash_without_segments_is_causal():
  inputs = arrays(1, 128, 2, 1, 64)
  got = splash.attend(*inputs, None, interpret=True)
  expected = attention.attend(*inputs, segment_ids=None, implementation="xla")
  assert_close(got, expected)


def test_long_rows_make_no_array_of_all_scores():
  inputs = tuple(
    jax.ShapeDtypeStruct((1, 4096, n, 8), jnp.float32) for n in (2, 1, 1)
  )

  def program(attend):
    def loss(*inputs):
      return attend(*inputs).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs)
    return gradient.compile()

  blocks = program(
    functools.partial(attention.attend, segment_ids=None, implementation="xla")
  )
  dense = program(
    functools.partial(
      jax.nn.dot_product_attention, is_causal=True, implementation="xla"
    )
  )
  assert "4096,4096]" in dense.as_text()
  assert "4096,4096]" not in blocks.as_text()
  # XLA may still work on several blocks at a time.
  temporaries = (
    p.memory_analysis().temp_size_in_bytes for p in (blocks, dense)
  )
  assert next(temporaries) < next(temporaries)


@pytest.mark.parametrize(
  ("implementation", "length", "dtype", "rule"),
  [
    ("splash", 96, "float32", "128 divides"),
    ("cudnn", 128, "float32", "bfloat16 or float16"),
    ("cudnn", 127, "bfloat16", "even row length"),
  ],
)
def test_a_named_kernel_states_what_it_cannot_take(
  implementation, length, dtype, rule
):
  inputs = arrays(1, length, 2, 1, 64, dtype)
  with pytest.raises(ValueError, match=rule):
    attention.attend(*inputs, segment_ids=None, implementation=implementation)


@pytest.mark.parametrize(
  ("platform", "dtype", "length", "kernel"),
  [
    ("tpu", "float32", 128, "splash"),
    ("tpu", "float32", 96, "xla"),
    ("gpu", "bfloat16", 96, "cudnn"),
    ("gpu", "float32", 96, "xla"),
    ("cpu", "bfloat16", 128, "xla"),
  ],
)
def test_auto_takes_the_kernel_of_the_meshs_platform(
  platform, dtype, length, kernel
):
  # A mesh of described devices, as programs for absent hardware are traced.
  mesh = AbstractMesh(
    (1, 1, 1),
    ("data", "fsdp", "tensor"),
    abstract_device=AbstractDevice("any", 1, platform),
  )
  queries, keys, values = arrays(1, length, 2, 1, 64, dtype)
  called = []

  def record(name):
    return lambda queries, *_: called.append(name) or queries

  with (
    jax.sharding.use_abstract_mesh(mesh),
    mock.patch.object(splash, "attend", record("splash")),
    mock.patch.object(attention, "_attend_cudnn", record("cudnn")),
    mock.patch.object(attention, "_attend_xla", record("xla")),
  ):
    attention.attend(queries, keys, values, segment_ids=None)
  assert called == [kernel]
