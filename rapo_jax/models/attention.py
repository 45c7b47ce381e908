"""Causal attention: whole sequences for training, a cache for sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

from rapo_jax.errors import InputError
from rapo_jax.models.config import (
  ATTENTION_OUTPUT,
  AttentionImplementation,
  AttentionKernel,
)

KV_BLOCK = 64
"""Cache positions that one step of the online softmax takes in."""

QUERY_BLOCK = 512
"""Most queries whose scores are alive at a time on XLA."""

# Shorter rows go in four blocks, which spares 3 / 8 of the scores, but in none
# shorter than this: products get too small.
_MIN_QUERY_BLOCK = 128

# Of GPU kernels, whose tensor cores would round float32.
_KERNEL_DTYPES = (jnp.bfloat16, jnp.float16)

_KERNELS: dict[str, AttentionKernel] = {"tpu": "splash", "gpu": "cudnn"}

# Low enough that exp(MASKED - any score) is exactly 0 in float32. Finite, so
# that a fully masked row gives no NaN.
_MASKED = -1e30


def rotary_angles(
  positions: Int[Array, "*B"],
  frequencies: Float[np.ndarray, "half"],
  scale: float = 1.0,
) -> tuple[Float[Array, "*B half"], Float[Array, "*B half"]]:
  """Returns cosines and sines of the rotary embedding at some positions.

  Args:
    positions: absolute positions, from 0.
    frequencies: radians a position, from `rope.inverse_frequencies`.
    scale: factor of cosines and sines, from the same.

  Returns:
    Two float32 arrays of one entry a frequency.
  """
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
  heads: Float[Array, "*B H D"],
  angles: tuple[Float[Array, "*#B half"], Float[Array, "*#B half"]],
) -> Float[Array, "*B H D"]:
  """Turns the pairs (i, i + D / 2) of every head, as Hugging Face does."""
  cos, sin = (a[..., None, :] for a in angles)
  first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return turned.astype(heads.dtype)


def segment_mask(
  segment_ids: Int[Array, "B S"] | None,
  length: int,
  start: int = 0,
  *,
  prefix_ids: Int[Array, "B S"] | None = None,
) -> Bool[Array, "#B 1 Q S"]:
  """Returns which keys (last axis) each query may read.

  They are earlier ones of its own segment and of its prefix. Padding (segment
  0) reads earlier padding, so that its rows stay finite.

  Args:
    segment_ids: of the keys; None if all are of one segment.
    length: number of keys.
    start: position of the first query; the last one is at the last key.
    prefix_ids: as for `Decoder.hidden_states`.
  """
  positions = jnp.arange(length)
  causal = (positions[start:, None] >= positions)[None, None]
  if segment_ids is None:
    return causal
  keys = segment_ids[:, None, None, :]
  readable = segment_ids[:, None, start:, None] == keys
  if prefix_ids is not None:
    readable |= prefix_ids[:, None, start:, None] == keys
  return causal & readable


def segment_positions(
  segment_ids: Int[Array, "B T"],
  prefix_ids: Int[Array, "B T"] | None = None,
) -> Int[Array, "B T"]:
  """Returns positions that restart with every segment, behind its prefix."""
  length = segment_ids.shape[1]
  index = jnp.broadcast_to(jnp.arange(length), segment_ids.shape)
  starts = jnp.where(segment_starts(segment_ids), index, 0)
  positions = index - jax.lax.cummax(starts, axis=1)
  if prefix_ids is None:
    return positions
  sizes = jax.vmap(lambda ids: jnp.bincount(ids, length=length + 1))(
    segment_ids
  )
  before = jnp.take_along_axis(sizes, prefix_ids, axis=1)
  return positions + jnp.where(prefix_ids > 0, before, 0)


def segment_starts(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
  """Returns True at the first token of every segment."""
  changed = segment_ids[:, 1:] != segment_ids[:, :-1]
  return jnp.pad(changed, ((0, 0), (1, 0)), constant_values=True)


def write_rows(
  rows: Shaped[Array, "B S"],
  positions: Int[Array, "B C"],
  values: Shaped[Array, "B C"],
) -> Shaped[Array, "B S"]:
  """Writes a few positions of every row, in place if donated.

  The compiler sees one write for each row, not writes to any rows. So rows
  which lie on several devices are written where they lie.

  Args:
    rows: what is written to.
    positions: where each value goes in its row, no place twice; one past the
      end writes nothing.
    values: what is written.
  """
  numbers = jax.lax.ScatterDimensionNumbers(
    update_window_dims=(),
    inserted_window_dims=(1,),
    scatter_dims_to_operand_dims=(1,),
    operand_batching_dims=(0,),
    scatter_indices_batching_dims=(0,),
  )
  return _scatter(rows, positions[..., None], values, numbers)


def take_rows(
  rows: Shaped[Array, "B *D"], chosen: Int[Array, "parts R"]
) -> Shaped[Array, "parts*R *D"]:
  """Returns some of the rows, read where they lie.

  Args:
    rows: of the same number in each part; a part is what one slice of the
      devices holds.
    chosen: rows of each part, numbered within it. Of one past the end the
      last is returned.
  """
  parts = rows.reshape(len(chosen), -1, *rows.shape[1:])
  taken = jax.vmap(lambda part, at: part.at[at].get(mode="clip"))(parts, chosen)
  return taken.reshape(-1, *rows.shape[1:])


def put_rows(
  rows: Shaped[Array, "B *D"],
  chosen: Int[Array, "parts R"],
  values: Shaped[Array, "parts*R *D"],
) -> Shaped[Array, "B *D"]:
  """The way back from `take_rows`; one past the end writes nothing."""
  parts = rows.reshape(len(chosen), -1, *rows.shape[1:])
  values = values.reshape(*chosen.shape, *rows.shape[1:])
  put = jax.vmap(lambda part, at, value: part.at[at].set(value, mode="drop"))
  return put(parts, chosen, values).reshape(rows.shape)


def write_cache(
  cache: Float[Array, "layers blocks B kv block D"],
  layer: Int[Array, ""],
  positions: Int[Array, "N C"],
  values: Float[Array, "N C kv D"],
  rows: Int[Array, "parts R"],
) -> Float[Array, "layers blocks B kv block D"]:
  """Writes a few positions of one layer of the cache, as `write_rows` does.

  Args:
    cache: keys or values.
    layer: which layer of it.
    positions: as for `write_rows`.
    values: what is written.
    rows: rows of each part of the cache that the N = parts * R rows of values
      go to. They are numbered within the part, and differ; see `take_rows`.
  """
  numbers = jax.lax.ScatterDimensionNumbers(
    update_window_dims=(3, 4),
    inserted_window_dims=(0, 1, 3, 5),
    scatter_dims_to_operand_dims=(0, 1, 3, 5),
    operand_batching_dims=(2,),
    scatter_indices_batching_dims=(0,),
  )
  positions = positions.reshape(*rows.shape, -1)
  block, offset = jnp.divmod(positions, KV_BLOCK)
  index = jnp.stack(
    jnp.broadcast_arrays(layer, block, rows[..., None], offset), axis=-1
  )
  written = _scatter(
    _in_parts(cache, len(rows)),
    index,
    values.reshape(*positions.shape, *values.shape[2:]),
    numbers,
  )
  return written.reshape(cache.shape)


def _read_cache(
  cache: Float[Array, "layers blocks B kv block D"],
  layer: Int[Array, ""],
  block: Int[Array, ""],
  rows: Int[Array, "parts R"] | None,
) -> Float[Array, "N kv block D"]:
  """Reads a block of all rows or, as for `write_cache`, of some."""
  heads = cache.shape[3:]
  if rows is None:
    start, size = (layer, block, 0, 0, 0, 0), (1, 1, *cache.shape[2:])
    return jax.lax.dynamic_slice(cache, start, size)[0, 0]
  numbers = jax.lax.GatherDimensionNumbers(
    offset_dims=(2, 3, 4),
    collapsed_slice_dims=(0, 1, 3),
    start_index_map=(0, 1, 3),
    operand_batching_dims=(2,),
    start_indices_batching_dims=(0,),
  )
  index = jnp.stack(jnp.broadcast_arrays(layer, block, rows), axis=-1)
  read = jax.lax.gather(
    _in_parts(cache, len(rows)),
    index,
    numbers,
    slice_sizes=(1, 1, 1, 1, *heads),
    mode=jax.lax.GatherScatterMode.CLIP,
  )
  return read.reshape(-1, *heads)


def _in_parts(
  cache: Float[Array, "layers blocks B kv block D"], parts: int
) -> Float[Array, "layers blocks parts R kv block D"]:
  layers, blocks, _, *heads = cache.shape
  return cache.reshape(layers, blocks, parts, -1, *heads)


def _scatter(operand, index, values, numbers):
  return jax.lax.scatter(
    operand,
    index.astype(jnp.int32),
    values,
    numbers,
    mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
  )


def attend(
  queries: Float[Array, "B T H D"],
  keys: Float[Array, "B T kv D"],
  values: Float[Array, "B T kv D"],
  *,
  segment_ids: Int[Array, "B T"] | None,
  prefix_ids: Int[Array, "B T"] | None = None,
  implementation: AttentionImplementation = "auto",
) -> Float[Array, "B T H D"]:
  """Causal attention of whole sequences, within segments and to prefixes.

  - "xla" runs everywhere. Long rows go block by block: at most `QUERY_BLOCK`
    queries read the keys up to the last of them. Their scores are computed
    again in the backward pass.
  - "splash" is Pallas' kernel for TPU: time and memory skip what the causal
    mask hides, and segment ids cost nothing.
  - "cudnn" is the flash kernel of NVIDIA GPUs. JAX hands it segments as a
    mask alone, one `[B, 1, T, T]` array that all layers share.
  - "auto" takes the kernel of the platform where it accepts the shapes, and
    "xla" otherwise. The platform is that of the mesh in use, or else of the
    default backend. A mesh of a described topology counts, so that a program
    compiled for TPUs on another machine has their kernel.

  Args:
    queries: rotated queries.
    keys: rotated keys.
    values: values.
    segment_ids: as for `Decoder.hidden_states`.
    prefix_ids: as for `Decoder.hidden_states`. "splash" cannot take them.
    implementation: which of them.

  Returns:
    The heads' outputs.

  Raises:
    InputError: the named kernel cannot take these arrays.
  """
  kernel = _choose(implementation, queries, prefix_ids is not None)
  if kernel == "splash":
    # Imported where it is used: it brings Pallas and its TPU back end.
    from rapo_jax.models import splash

    return splash.attend(queries, keys, values, segment_ids)
  if kernel == "xla":
    return _attend_xla(queries, keys, values, segment_ids, prefix_ids)
  outputs = _attend_cudnn(queries, keys, values, segment_ids, prefix_ids)
  return checkpoint_name(outputs, ATTENTION_OUTPUT)


def reads_prefixes(implementation: AttentionImplementation) -> bool:
  """Returns whether `attend` takes prefixes and keeps a kernel of its platform.

  Pallas' splash kernel knows segments alone.
  """
  kernel = (
    _KERNELS.get(platform()) if implementation == "auto" else implementation
  )
  return kernel != "splash"


def _choose(
  implementation: AttentionImplementation, queries: Array, prefixed: bool
) -> AttentionKernel:
  """Resolves "auto", and checks a kernel that was named."""
  if implementation == "auto":
    kernel = _KERNELS.get(platform(), "xla")
    return "xla" if _refusal(kernel, queries, prefixed) else kernel
  if rule := _refusal(implementation, queries, prefixed):
    raise InputError(
      f"attention={implementation!r} needs {rule}, got {queries.dtype} heads "
      f"of {queries.shape[3]} in rows of {queries.shape[1]}; change that, or "
      "take 'auto' or 'xla'."
    )
  return implementation


def platform() -> str:
  """Of the mesh in use, described ones included, or of the default backend."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def _refusal(implementation: str, queries: Array, prefixed: bool) -> str | None:
  """What the kernel needs of the arrays and they lack."""
  length, head_dim = queries.shape[1], queries.shape[3]
  if implementation == "splash" and prefixed:
    return "segments without shared prefixes"
  if implementation == "splash" and (length % 128 or head_dim % 64):
    return "a row length that 128 divides and a head_dim that 64 divides"
  if implementation == "cudnn" and (
    queries.dtype not in _KERNEL_DTYPES
    or head_dim % 8
    or head_dim > 128
    or length % 2
  ):
    return (
      "bfloat16 or float16, an even row length, and a head_dim of at most 128 "
      "that 8 divides"
    )
  return None


def _attend_xla(queries, keys, values, segment_ids, prefix_ids):
  """Dense scores, of one block of queries at a time."""
  length = queries.shape[1]
  size = min(QUERY_BLOCK, max(_MIN_QUERY_BLOCK, -(-length // 4)))
  outputs = []
  for start in range(0, length, size):
    stop = min(start + size, length)
    ids, prefixes = (
      None if x is None else x[:, :stop] for x in (segment_ids, prefix_ids)
    )
    block = (queries[:, start:stop], keys[:, :stop], values[:, :stop])
    mask = segment_mask(ids, stop, start, prefix_ids=prefixes)
    outputs.append(_attend_dense(*block, mask))
  return jnp.concatenate(outputs, axis=1)


@jax.custom_vjp
def _attend_dense(
  queries: Float[Array, "B Q H D"],
  keys: Float[Array, "B S kv D"],
  values: Float[Array, "B S kv D"],
  mask: Bool[Array, "#B 1 Q S"],
) -> Float[Array, "B Q H D"]:
  """Attention by softmax over all scores.

  The backward pass computes the scores again, from sums that the forward pass
  left (Dao et al., 2022). Its products read scores as they lie in memory.
  """
  outputs, _ = _attend_dense_forward(queries, keys, values, mask)
  return outputs


def _attend_dense_forward(queries, keys, values, mask):
  scores = _scores(_by_head(queries, keys.shape[2]), keys, mask)
  peak = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - peak)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  outputs = _product(
    weights.astype(values.dtype), _by_head(values, values.shape[2])
  )
  outputs = checkpoint_name(
    _by_token((outputs / total).astype(queries.dtype), queries),
    ATTENTION_OUTPUT,
  )
  log_total = checkpoint_name(peak + jnp.log(total), ATTENTION_OUTPUT)
  return outputs, (queries, keys, values, mask, outputs, log_total)


def _attend_dense_backward(residuals, cotangents):
  queries, keys, values, mask, outputs, log_total = residuals
  dtype, num_kv_heads = queries.dtype, keys.shape[2]
  q, k, v, o, cotangent = (
    _by_head(x, num_kv_heads)
    for x in (queries, keys, values, outputs, cotangents)
  )
  weights = jnp.exp(_scores(q, keys, mask) - log_total)
  by_value = _product(cotangent.mT, weights.astype(dtype)).mT
  mean = jnp.sum(
    cotangent.astype(jnp.float32) * o.astype(jnp.float32),
    axis=-1,
    keepdims=True,
  )
  by_score = weights * (_product(cotangent, v.mT) - mean)
  by_score = (by_score * queries.shape[3] ** -0.5).astype(dtype)
  by_query = _by_token(_product(by_score, k), queries)
  by_key = _product(q.mT, by_score).mT
  return (
    by_query.astype(dtype),
    *(_by_token(x, keys).astype(dtype) for x in (by_key, by_value)),
    None,
  )


_attend_dense.defvjp(_attend_dense_forward, _attend_dense_backward)


def _by_head(
  heads: Float[Array, "B T H D"], num_kv_heads: int
) -> Float[Array, "B kv R D"]:
  """Rows of the query heads of each key head, one head's after another's."""
  batch, _, _, head_dim = heads.shape
  return heads.swapaxes(1, 2).reshape(batch, num_kv_heads, -1, head_dim)


def _by_token(
  rows: Float[Array, "B kv R D"], like: Float[Array, "B T H D"]
) -> Float[Array, "B T H D"]:
  """The way back."""
  batch, length, num_heads, head_dim = like.shape
  return rows.reshape(batch, num_heads, length, head_dim).swapaxes(1, 2)


def _scores(
  queries: Float[Array, "B kv R D"],
  keys: Float[Array, "B S kv D"],
  mask: Bool[Array, "#B 1 Q S"],
) -> Float[Array, "B kv R S"]:
  """Scaled scores, far below all others where a query may not read."""
  scores = _product(queries, _by_head(keys, keys.shape[2]).mT)
  groups = scores.reshape(*scores.shape[:2], -1, *mask.shape[2:])
  scale = queries.shape[-1] ** -0.5
  groups = jnp.where(mask[:, :, None], groups * scale, _MASKED)
  return groups.reshape(scores.shape)


def _product(
  a: Float[Array, "*B n m"], b: Float[Array, "*B m k"]
) -> Float[Array, "*B n k"]:
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _attend_cudnn(queries, keys, values, segment_ids, prefix_ids):
  if segment_ids is None:
    return jax.nn.dot_product_attention(
      queries, keys, values, is_causal=True, implementation="cudnn"
    )
  # Causal by the mask, too: said twice, the kernel leaves out what is hidden.
  mask = segment_mask(segment_ids, queries.shape[1], prefix_ids=prefix_ids)
  return jax.nn.dot_product_attention(
    queries, keys, values, mask=mask, is_causal=True, implementation="cudnn"
  )


def attend_cache(
  queries: Float[Array, "N C H D"],
  keys: Float[Array, "layers blocks B kv block D"],
  values: Float[Array, "layers blocks B kv block D"],
  layer: Int[Array, ""],
  positions: Int[Array, "N C"],
  num_blocks: Int[Array, ""],
  rows: Int[Array, "parts R"] | None = None,
  *,
  implementation: AttentionImplementation = "auto",
) -> Float[Array, "N C H D"]:
  """Attention of a few new tokens over one layer of the cache.

  An online softmax over blocks of `KV_BLOCK` cache positions, in order. A block
  lies in one piece, for it is read as a whole. A block that is masked
  throughout multiplies the running sums by exactly 1 and adds exactly 0. Every
  block runs the same compiled body. So more blocks than a row needs change no
  bit of its result.

  On a GPU one kernel does it, see `cache_kernel`: XLA would launch a handful
  of small programs a block.

  Args:
    queries: rotated queries.
    keys: the whole cache, the new tokens' keys already written.
    values: the same for values.
    layer: which layer of the cache to read.
    positions: absolute position of each query; it reads positions up to this.
    num_blocks: how many blocks to read, at least 1.
    rows: row of the cache that each row of queries reads, as for
      `write_cache`; None: each its own.
    implementation: as for `attend`; "xla" takes no kernel here either.

  Returns:
    The heads' outputs in the dtype of `queries`.
  """
  batch, chunk, num_heads, head_dim = queries.shape
  num_kv_heads = keys.shape[3]
  if (
    implementation != "xla"
    and platform() == "gpu"
    and queries.dtype in _KERNEL_DTYPES
    and head_dim in (64, 128)
  ):
    # Imported where it is used: it brings Pallas and its GPU back end.
    from rapo_jax.models import cache_kernel

    # All rows are as many parts of one row each.
    to = jnp.zeros((batch, 1), jnp.int32) if rows is None else rows
    return cache_kernel.attend(
      queries,
      keys,
      values,
      layer,
      positions,
      num_blocks,
      to,
      masked=_MASKED,
    )
  num_rows = chunk * num_heads // num_kv_heads
  # Each (batch row, key head) has one small matrix product. Its rows are the
  # query heads that share the key head, and the tokens of the chunk.
  grouped = queries.reshape(batch, chunk, num_kv_heads, -1, head_dim)
  grouped = grouped.swapaxes(1, 2).reshape(
    batch, num_kv_heads, num_rows, head_dim
  )
  reach = jnp.repeat(positions, num_rows // chunk, axis=1)[:, None, :, None]

  def block(index, carry):
    peak, total, weighted = carry
    k, v = (_read_cache(x, layer, index, rows) for x in (keys, values))
    scores = _product(grouped, k.mT)
    visible = index * KV_BLOCK + jnp.arange(KV_BLOCK) <= reach
    scores = jnp.where(visible, scores * head_dim**-0.5, _MASKED)
    new_peak = jnp.maximum(peak, scores.max(axis=-1))
    weights = jnp.exp(scores - new_peak[..., None])
    keep = jnp.exp(peak - new_peak)
    added = _product(weights.astype(v.dtype), v)
    return (
      new_peak,
      total * keep + weights.sum(axis=-1),
      weighted * keep[..., None] + added,
    )

  shape = (batch, num_kv_heads, num_rows)
  carry = (
    jnp.full(shape, _MASKED, jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros((*shape, head_dim), jnp.float32),
  )
  _, total, weighted = jax.lax.fori_loop(0, num_blocks, block, carry)
  out = (weighted / total[..., None]).astype(queries.dtype)
  out = out.reshape(batch, num_kv_heads, chunk, -1, head_dim).swapaxes(1, 2)
  return out.reshape(batch, chunk, num_heads, head_dim)
