"""FLOPs and bytes against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments.planner import jaxpr_cost
from rapo_jax import models
from tests.tiny_decoder import tiny_config


def _count(function, *args, weights=(), trips=()):
  jaxpr = jax.jit(function).trace(*args).jaxpr
  flags = [i in weights for i in range(len(jax.tree.leaves(args)))]
  return jaxpr_cost.count(jaxpr, flags, trips)


X = jnp.zeros((8, 16), jnp.float32)
W = jnp.zeros((16, 32), jnp.bfloat16)


def test_a_product_counts_twice_its_size_and_each_array_once():
  cost = _count(lambda x, w: x @ w.astype(jnp.float32), X, W, weights=[1])
  assert cost.flops == 2 * 8 * 16 * 32
  # As it enters the product: cast to four bytes an entry.
  assert cost.weight_bytes == 16 * 32 * 4
  assert cost.activation_bytes == (8 * 16 + 8 * 32) * 4


def test_a_scan_counts_with_its_length():
  stack = jnp.zeros((5, 16, 16))

  def function(x, stack):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

  cost = _count(function, X, stack, weights=[1])
  assert cost.flops == 5 * 2 * 8 * 16 * 16
  assert cost.weight_bytes == 5 * 16 * 16 * 4


def test_loops_of_unknown_length_count_as_told_by_depth():
  square = jnp.zeros((16, 16))

  def inner(x):
    return jax.lax.fori_loop(0, jnp.int32(x[0, 0]), lambda _, y: y @ square, x)

  def function(x):
    return jax.lax.fori_loop(0, jnp.int32(x[0, 0]), lambda _, y: inner(y), x)

  one = 2 * 8 * 16 * 16
  assert _count(function, X).flops == one
  assert _count(function, X, trips=(3,)).flops == 3 * one
  assert _count(function, X, trips=(3, 7)).flops == 21 * one


def test_a_program_of_one_device_counts_for_each():
  mesh = jax.sharding.AbstractMesh((2, 4), ("a", "b"))
  mapped = jax.shard_map(
    lambda x, y: x @ y,
    mesh=mesh,
    in_specs=(jax.P("a", None), jax.P(None, "b")),
    out_specs=jax.P("a", "b"),
  )
  assert _count(mapped, X, W.astype(jnp.float32)).flops == 2 * 8 * 16 * 32


def test_the_dearer_branch_counts():
  def function(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w.T @ w, lambda: x @ w)

  cost = _count(function, X, W.astype(jnp.float32))
  assert cost.flops == 3 * 2 * 8 * 16 * 32


def test_rematerialised_layers_count_their_second_forward_pass():
  def loss(x, w, *, remat):
    def layer(x):
      return jnp.tanh(x @ w @ w.T)

    return jnp.sum((jax.checkpoint(layer) if remat else layer)(x))

  def flops(remat):
    gradient = jax.grad(lambda x, w: loss(x, w, remat=remat), argnums=(0, 1))
    return _count(gradient, X, W.astype(jnp.float32)).flops

  one = 2 * 8 * 16 * 32
  # Two products forward; two each for x and for w backward.
  assert flops(False) == 6 * one
  assert flops(True) >= 7 * one


def test_a_decoder_counts_six_operations_a_parameter_and_token():
  config = tiny_config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_kv_heads=4,
    tie_embeddings=False,
    qkv_bias=False,
  )
  model = jax.eval_shape(lambda: models.Decoder(config, rngs=nnx.Rngs(0)))
  tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
  cost = _count(lambda m, t: m(t), model, tokens)
  weights = 3 * (4 * 32 * 32 + 3 * 32 * 64) + 32 * 64
  attention = 3 * 2 * (2 * 2 * 16 * 16 * 32)
  assert cost.flops == pytest.approx(2 * 32 * weights + attention)
