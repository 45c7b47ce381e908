"""Attention over the cache on GPU: a Pallas (Triton) kernel, on a mesh too."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rapo_jax.models.sharding import activation_spec

# A tensor core takes 16 rows at least. Decoding has no more, and waits for
# memory; longer chunks share what they read among more rows.
_TILE = 16
_LONG_TILE = 64
_WARPS = 4
# Blocks of the cache on their way while one is computed with.
_STAGES = 4


def attend(
  queries: Float[Array, "N C H D"],
  keys: Float[Array, "layers blocks B kv block D"],
  values: Float[Array, "layers blocks B kv block D"],
  layer: Int[Array, ""],
  positions: Int[Array, "N C"],
  num_blocks: Int[Array, ""],
  rows: Int[Array, "parts R"],
  *,
  masked: float,
  interpret: bool = False,
) -> Float[Array, "N C H D"]:
  """Attention of new tokens over one layer of the cache.

  Each program takes the queries of one row that share a key head. It reads the
  cache block by block up to the last position that they reach. So no row waits
  for a longer one, and nothing of the cache is copied. A block that is masked
  throughout changes no bit, as for `attention.attend_cache`.

  XLA cannot cut a kernel over a mesh, so each device runs it on its own rows
  and heads.

  Args:
    queries: as for `attention.attend_cache`, like the others.
    keys: the whole cache.
    values: the same for values.
    layer: which layer of it.
    positions: each query reads positions up to this.
    num_blocks: most blocks to read.
    rows: row of the cache that each row of queries reads, numbered within its
      part.
    masked: score of what a query may not read.
    interpret: run the kernel's program without a GPU, slowly.
  """

  def local(queries, keys, values, layer, positions, num_blocks, rows):
    batch, chunk, num_heads, _ = queries.shape
    num_kv_heads = keys.shape[3]
    length = chunk * num_heads // num_kv_heads
    tile = _TILE if length <= _TILE else _LONG_TILE
    return pl.pallas_call(
      functools.partial(_kernel, tile=tile, masked=masked),
      grid=(batch, num_kv_heads, pl.cdiv(length, tile)),
      out_shape=jax.ShapeDtypeStruct(queries.shape, queries.dtype),
      compiler_params=plgpu.CompilerParams(
        num_warps=_WARPS, num_stages=_STAGES
      ),
      interpret=interpret,
      name="attend_cache",
    )(queries, keys, values, layer[None], positions, num_blocks[None], rows)

  arguments = queries, keys, values, layer, positions, num_blocks, rows
  if jax.sharding.get_abstract_mesh().empty:
    return local(*arguments)
  cache = activation_spec(
    keys.shape, None, None, "batch", "kv_heads", None, None
  )
  # Query heads are cut like the heads that they share. Rows of queries and
  # parts are cut like rows of the cache.
  batch, heads = cache[2:4]
  new = PartitionSpec(batch, None, heads, None)
  of_rows = PartitionSpec(batch, None)
  whole = PartitionSpec()
  return jax.shard_map(
    local,
    in_specs=(new, cache, cache, whole, of_rows, whole, of_rows),
    out_specs=new,
    check_vma=False,
  )(*arguments)


def _kernel(
  queries,
  keys,
  values,
  layer,
  positions,
  num_blocks,
  rows,
  out,
  *,
  tile: int,
  masked: float,
):
  """A tile of the queries that share a key head in one row.

  Args:
    queries: [N, C, H, D].
    keys: [layers, blocks, B, kv, block, D].
    values: the same.
    layer: [1].
    positions: [N, C].
    num_blocks: [1].
    rows: [parts, R].
    out: like the queries.
    tile: queries of a program.
    masked: score of what a query may not read.
  """
  row, head = pl.program_id(0), pl.program_id(1)
  chunk, num_heads = queries.shape[1:3]
  _, _, cache_rows, num_kv_heads, size, head_dim = keys.shape
  parts, rows_of_part = rows.shape
  group = num_heads // num_kv_heads
  # One token's heads after another's; what fills the last tile computes the
  # last query again, and writes the same.
  index = pl.program_id(2) * tile + jnp.arange(tile)
  index = jnp.minimum(index, chunk * group - 1)
  token = index // group
  query_head = head * group + index % group
  query = queries[row, token, query_head]
  last = positions[row, token]
  # One past the end stands for no row; what is read for it does not matter.
  part = row // rows_of_part
  first = part * (cache_rows // parts)
  cache_row = jnp.minimum(
    first + rows[part, row % rows_of_part], cache_rows - 1
  )
  layer_index = layer[0]
  places = jnp.arange(size)

  def block(index, carry):
    peak, total, weighted = carry
    where = (layer_index, index, cache_row, head)
    key, value = keys[where], values[where]
    scores = plgpu.dot(query, key.T) * head_dim**-0.5
    visible = (index * size + places)[None, :] <= last[:, None]
    scores = jnp.where(visible, scores, masked)
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=1))
    weights = jnp.exp(scores - new_peak[:, None])
    keep = jnp.exp(peak - new_peak)
    added = plgpu.dot(weights.astype(value.dtype), value)
    return (
      new_peak,
      total * keep + jnp.sum(weights, axis=1),
      weighted * keep[:, None] + added,
    )

  count = jnp.clip(jnp.max(last) // size + 1, 1, num_blocks[0])
  carry = (
    jnp.full((tile,), masked, jnp.float32),
    jnp.zeros((tile,), jnp.float32),
    jnp.zeros((tile, head_dim), jnp.float32),
  )
  _, total, weighted = jax.lax.fori_loop(0, count, block, carry)
  out[row, token, query_head] = (weighted / total[:, None]).astype(out.dtype)
