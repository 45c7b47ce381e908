"""FLOPs and bytes against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments.config import (
  ExperimentConfig,
  MeshConfig,
  RandomModelConfig,
)
from experiments.planner import jaxpr_cost
from experiments.planner.programs import Programs, Workload
from experiments.policy_shape import random_shape
from rapo_jax import models
from rapo_jax.algorithms import ALGORITHMS
from rapo_jax.models import sharding, splash
from rapo_jax.rollout import RolloutConfig
from rapo_jax.training import UpdateConfig
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


def test_the_splash_kernel_counts_blocks_up_to_the_diagonal():
  rows, length, heads, size = 2, 2048, 4, 64
  q = jax.ShapeDtypeStruct((rows, length, heads, size), jnp.bfloat16)
  segments = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  cost = _count(lambda q, s: splash.attend(q, q, q, s), q, segments)
  blocks = 4 * 5 / 2
  products = 2 * 2 * 512 * 512 * size
  assert cost.flops == rows * heads * blocks * products


SHAPE = RandomModelConfig(
  vocab_size=320,
  hidden_size=64,
  intermediate_size=96,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
)
ROWS, LENGTH, CHUNK = 2, 64, 32


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_an_update_counts_six_operations_a_parameter_and_token(remat):
  config = ExperimentConfig(
    name="test",
    mesh=MeshConfig(),
    rollout=RolloutConfig(
      num_generations=4,
      num_hybrid=2,
      max_prompt_tokens=32,
      max_response_tokens=32,
    ),
    update=UpdateConfig(
      queries_per_update=2,
      queries_per_minibatch=2,
      row_length=LENGTH,
      rows_per_microbatch=ROWS,
      remat=remat,
      head_chunk=CHUNK,
    ),
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  # A row holds a prompt of 16 tokens and three responses of 16. So 8 of them
  # are 2.7 rows, 2 micro-batches of 96 policy tokens at most.
  work = Workload(
    policy_tokens=16, tool_calls=0, tool_tokens=0, longest_response=32
  )
  programs = Programs(
    config, random_shape(SHAPE), mesh, work, ALGORITHMS["rapo"]
  )
  (update,) = (p for p in programs if p.name == "update")
  with jax.set_mesh(mesh):
    traced = update.function.trace(*update.args, **update.kwargs)
  cost = jaxpr_cost.count(traced.jaxpr, update.is_weight, update.trips)
  tokens, scored = 4 * LENGTH, 2 * 3 * CHUNK
  layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96
  attention = 2 * 2 * LENGTH * 64
  # Once forward and twice backward, where attention computes its scores, half
  # of its products, once more. The head runs on policy tokens alone.
  flops = 3 * (3 * 2 * layer + 3.5 * attention) * tokens
  flops += 3 * 2 * 320 * 64 * scored
  if remat == "layer":
    # Layers run forward once more, but for what their last product gives.
    flops += 3 * (2 * (layer - 64 * 96) + attention) * tokens
  assert cost.flops == flops
