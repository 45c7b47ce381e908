"""Attention of whole sequences on TPU: Pallas' splash kernel, on a mesh too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rapo_jax.models.config import ATTENTION_OUTPUT
from rapo_jax.models.sharding import activation_spec

_BLOCKS = (512, 256, 128)


def attend(
  queries: Float[Array, "B T H D"],
  keys: Float[Array, "B T kv D"],
  values: Float[Array, "B T kv D"],
  segment_ids: Int[Array, "B T"] | None,
  *,
  interpret: bool = False,
) -> Float[Array, "B T H D"]:
  """Causal attention within segments.

  XLA cannot cut a kernel over a mesh, so each device runs it on its own rows
  and heads.

  Args:
    queries: rotated queries; 128 divides T.
    keys: rotated keys.
    values: values.
    segment_ids: as for `Decoder.hidden_states`.
    interpret: run the kernel's program without a TPU, slowly.
  """

  def local(queries, keys, values, segment_ids):
    kernel = _kernel(queries.shape[2], queries.shape[1], interpret)
    # The kernel does not scale, and wants heads before positions.
    q, k, v = (x.swapaxes(1, 2) for x in (_scaled(queries), keys, values))
    ids = splash_attention.SegmentIds(segment_ids, segment_ids)
    return jax.vmap(kernel)(q, k, v, ids).swapaxes(1, 2)

  if segment_ids is None:
    segment_ids = jnp.ones(queries.shape[:2], jnp.int32)
  arguments = queries, keys, values, segment_ids
  if jax.sharding.get_abstract_mesh().empty:
    return local(*arguments)
  axes = ("batch", None, "kv_heads", None)
  # Query heads are cut like the heads that they share.
  heads = activation_spec(keys.shape, *axes)
  rows = PartitionSpec(*heads[:2])
  return jax.shard_map(
    local,
    in_specs=(heads, heads, heads, rows),
    out_specs=heads,
    check_vma=False,
  )(*arguments)


def _scaled(queries: Float[Array, "B T H D"]) -> Float[Array, "B T H D"]:
  """Queries over √D. In float32: bfloat16 would round √D too, for all alike."""
  scaled = queries.astype(jnp.float32) * queries.shape[3] ** -0.5
  return scaled.astype(queries.dtype)


def _kernel(num_heads: int, length: int, interpret: bool):
  block = next(size for size in _BLOCKS if length % size == 0)
  mask = splash_attention.CausalMask((length, length))
  return splash_attention.make_splash_mha_single_device(
    splash_attention.MultiHeadMask([mask] * num_heads),
    block_sizes=splash_attention.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    residual_checkpoint_name=ATTENTION_OUTPUT,
    interpret=interpret,
  )
