"""A decoder-only transformer of the Qwen2, Qwen3 and Llama 3 families.

One set of parameters, two ways through them: `Decoder.hidden_states` runs
whole packed sequences for training, `Decoder.extend` runs a few new tokens
against a KV cache for sampling. Layers are stacked along a leading axis and
run with `jax.lax.scan`, so that compile time does not grow with depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rapo_jax import hosts
from rapo_jax.models import attention, rope, sharding
from rapo_jax.models.config import (
  ATTENTION_OUTPUT,
  DecoderConfig,
  LoraConfig,
  LoraTarget,
)

Remat = Literal["none", "dots", "attention", "layer", "nested"]
"""What a layer keeps for its backward pass, from much to little.

- "none": everything.
- "dots": outputs of the projections, not attention scores.
- "attention": its input and the outputs of attention.
- "layer": its input.
- "nested": the input of the first of every few layers (`nested_group`). The
  others' inputs are computed again when the backward pass gets there. About
  2 √layers inputs are alive at most, for one forward pass more.
"""

_POLICIES = jax.checkpoint_policies
_REMAT_POLICIES = {
  "layer": _POLICIES.nothing_saveable,
  "nested": _POLICIES.nothing_saveable,
  "attention": _POLICIES.save_only_these_names(ATTENTION_OUTPUT),
  "dots": _POLICIES.dots_with_no_batch_dims_saveable,
}


class KVCache(NamedTuple):
  """Keys and values of every layer, block of positions and row.

  Attributes:
    keys: rotated keys.
    values: values.
  """

  keys: Float[Array, "layers blocks B kv block D"]
  values: Float[Array, "layers blocks B kv block D"]

  @property
  def max_length(self) -> int:
    """Positions a row has room for."""
    return self.keys.shape[1] * attention.KV_BLOCK


class AdapterParam(nnx.Param):
  """A parameter of a LoRA adapter: where there are any, they alone train."""


class Linear(nnx.Module):
  """An affine map; the bias and the LoRA adapter are optional.

    y = x W + b + (alpha / rank) · (x A) B

  B is 0 at first, so a fresh adapter changes nothing. A and B are made in
  float32, whatever W has: small updates are lost in fewer bits.
  """

  def __init__(
    self,
    in_size: int,
    out_size: int,
    config: DecoderConfig,
    *,
    axes: tuple[str, str],
    use_bias: bool = False,
    lora: LoraConfig | None = None,
    rngs: nnx.Rngs,
  ):
    self.lora = lora
    self.kernel = nnx.Param(
      _normal(rngs, (in_size, out_size), config), logical_axes=axes
    )
    self.bias = (
      nnx.Param(jnp.zeros(out_size, config.dtype), logical_axes=axes[1:])
      if use_bias
      else None
    )
    self.lora_a: AdapterParam | None
    self.lora_b: AdapterParam | None
    self.lora_a, self.lora_b = (
      _adapter(in_size, out_size, lora.rank, axes, rngs)
      if lora is not None
      else (None, None)
    )

  def __call__(self, x: Float[Array, "*B i"]) -> Float[Array, "*B o"]:
    y = _product(x, self.kernel[...])
    if self.bias is not None:
      y += self.bias[...]
    if self.lora is None:
      return y
    assert self.lora_a is not None
    assert self.lora_b is not None
    # Narrow first: A B is as large as W.
    narrow = x @ self.lora_a[...].astype(x.dtype)
    return y + narrow @ self.lora_b[...].astype(x.dtype) * self.lora.scale


@jax.custom_vjp
def _product(
  x: Float[Array, "*B i"], kernel: Float[Array, "i o"]
) -> Float[Array, "*B o"]:
  """`x @ kernel`, whose gradients are products that XLA runs well.

  JAX's own rule has the kernel's gradient transposed. XLA's CPU back end
  computes that with two copies and a product at half the speed.
  """
  return x @ kernel


def _product_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _product_backward(residuals, cotangent):
  x, kernel = residuals
  return (
    jnp.einsum("...o,io->...i", cotangent, kernel),
    jnp.einsum("...i,...o->io", x, cotangent),
  )


_product.defvjp(_product_forward, _product_backward)


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation in float32, with a learned scale."""

  def __init__(self, size: int, config: DecoderConfig):
    self.scale = nnx.Param(jnp.ones(size, config.dtype), logical_axes=("norm",))
    self.epsilon = config.rms_norm_eps

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
    return self.scale[...] * normed.astype(x.dtype)


class Attention(nnx.Module):
  """Projections of grouped-query attention; the scores are computed outside."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    query_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    size, bias = config.hidden_size, config.qkv_bias

    def linear(name, in_size, out_size, *axes, use_bias=bias):
      return Linear(
        in_size,
        out_size,
        config,
        axes=axes,
        use_bias=use_bias,
        lora=_lora_of(config, name),
        rngs=rngs,
      )

    self.query = linear("query", size, query_size, "embed", "heads")
    self.key = linear("key", size, kv_size, "embed", "kv_heads")
    self.value = linear("value", size, kv_size, "embed", "kv_heads")
    self.out = linear(
      "out", query_size, size, "heads", "embed", use_bias=config.out_bias
    )
    self.query_norm, self.key_norm = (
      RMSNorm(config.head_dim, config) if config.qk_norm else None
      for _ in range(2)
    )

  def project(self, x: Float[Array, "B T D"], angles):
    """Returns rotated queries, rotated keys, and values, split into heads."""
    q, k, v = (
      proj(x).reshape(*x.shape[:2], -1, self.config.head_dim)
      for proj in (self.query, self.key, self.value)
    )
    if self.query_norm is not None and self.key_norm is not None:
      q, k = self.query_norm(q), self.key_norm(k)
    q, k = (attention.rotate(heads, angles) for heads in (q, k))
    return q, k, v

  def merge(self, heads: Float[Array, "B T H Dh"]) -> Float[Array, "B T D"]:
    """Joins the heads and projects them back."""
    return self.out(heads.reshape(*heads.shape[:2], -1))


class FeedForward(nnx.Module):
  """The gated feed-forward layer: down(silu(gate(x)) * up(x))."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    size, wide = config.hidden_size, config.intermediate_size

    def linear(name, in_size, out_size, *axes):
      return Linear(
        in_size,
        out_size,
        config,
        axes=axes,
        lora=_lora_of(config, name),
        rngs=rngs,
      )

    self.gate = linear("gate", size, wide, "embed", "mlp")
    self.up = linear("up", size, wide, "embed", "mlp")
    self.down = linear("down", wide, size, "mlp", "embed")

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nnx.Module):
  """Attention and feed-forward, each behind a norm and a residual sum."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.hidden_size, config)
    self.attention = Attention(config, rngs=rngs)
    self.feed_forward_norm = RMSNorm(config.hidden_size, config)
    self.feed_forward = FeedForward(config, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    angles,
    segment_ids: Int[Array, "B T"] | None,
    prefix_ids: Int[Array, "B T"] | None,
  ):
    """Runs whole sequences."""
    q, k, v = self.attention.project(self.attention_norm(x), angles)
    heads = attention.attend(
      q,
      k,
      v,
      segment_ids=segment_ids,
      prefix_ids=prefix_ids,
      implementation=self.attention.config.attention,
    )
    x = x + self.attention.merge(heads)
    return x + self.feed_forward(self.feed_forward_norm(x))

  def extend(
    self,
    x: Float[Array, "B C D"],
    cache: KVCache,
    layer: Int[Array, ""],
    angles,
    positions: Int[Array, "B C"],
    slots: Int[Array, "B C"],
    num_blocks: Int[Array, ""],
    rows: Int[Array, "parts R"] | None,
  ):
    """Runs new tokens: writes their keys and values, then reads the cache."""
    q, k, v = self.attention.project(self.attention_norm(x), angles)
    # All rows are as many parts of one row each.
    to = jnp.zeros((len(x), 1), jnp.int32) if rows is None else rows
    # A slot past the end is a token that is not real: dropped, not clamped.
    cache = KVCache(
      attention.write_cache(cache.keys, layer, slots, k, to),
      attention.write_cache(cache.values, layer, slots, v, to),
    )
    heads = attention.attend_cache(
      q,
      *cache,
      layer,
      positions,
      num_blocks,
      rows,
      implementation=self.attention.config.attention,
    )
    x = x + self.attention.merge(heads)
    return x + self.feed_forward(self.feed_forward_norm(x)), cache


@hosts.held()
class Decoder(nnx.Module):
  """A causal language model whose parameters are the module itself.

  A pytree: pass it to plain `jax.jit`, `jax.grad` and optax, with donation.
  Nothing but parameters and the static configuration lives on it.

  Args:
    config: shape of the model.
    rngs: stream that the initial weights are drawn from.
  """

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.embedding = nnx.Param(
      _normal(rngs, (config.vocab_size, config.hidden_size), config),
      logical_axes=("vocab", "embed"),
    )

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked_layers(rngs: nnx.Rngs) -> DecoderLayer:
      return DecoderLayer(config, rngs=rngs)

    self.layers = stacked_layers(rngs)
    self.final_norm = RMSNorm(config.hidden_size, config)
    self.head = (
      None
      if config.tie_embeddings
      else Linear(
        config.hidden_size,
        config.vocab_size,
        config,
        axes=("embed", "vocab"),
        rngs=rngs,
      )
    )

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T V"]:
    """Returns float32 logits of the token after each one.

    Args: as for `hidden_states`.
    """
    return self.unembed(
      self.hidden_states(tokens, positions=positions, segment_ids=segment_ids)
    )

  def hidden_states(
    self,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    prefix_ids: Int[Array, "B T"] | None = None,
    remat: Remat = "none",
  ) -> Float[Array, "B T D"]:
    """Runs whole sequences and returns the residual stream, normalised.

    Args:
      tokens: token ids.
      positions: position of each token; from 0 in every segment if None.
      segment_ids: which of the sequences packed into a row a token belongs
        to, 0 for padding. A token reads earlier tokens of its own segment
        only. None: each row is one sequence.
      prefix_ids: an earlier segment of the row that the token reads, too, as
        if it stood before its own; 0 for none. Sequences with the same
        beginning share it so. None: no token has one.
      remat: what each layer keeps for the backward pass, which computes the
        rest again.

    Returns:
      Hidden states after the final norm. Those of padding are finite and
      mean nothing.
    """
    if positions is None:
      positions = (
        jnp.arange(tokens.shape[1])[None]
        if segment_ids is None
        else attention.segment_positions(segment_ids, prefix_ids)
      )
    angles = self._angles(positions)

    def body(x, layer):
      # Left to itself the compiler gives the rows up for slices of the width,
      # and every device computes all rows.
      x = sharding.constrain(x, "batch", None, None)
      return layer(x, angles, segment_ids, prefix_ids), None

    layers = self.layers
    if remat != "none":
      body = jax.checkpoint(body, policy=_REMAT_POLICIES[remat])
    if remat == "nested":
      size = nested_group(self.config.num_layers)
      layers = jax.tree.map(
        lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), layers
      )
      run_layer = body
      body = jax.checkpoint(
        lambda x, group: jax.lax.scan(run_layer, x, group),
        policy=_REMAT_POLICIES[remat],
      )
    x, _ = jax.lax.scan(body, self.embedding[...][tokens], layers)
    return self.final_norm(x)

  def unembed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Returns float32 logits of hidden states that went through the norm."""
    if self.head is None:
      return jnp.einsum(
        "...d,vd->...v",
        hidden,
        self.embedding[...],
        preferred_element_type=jnp.float32,
      )
    return jnp.einsum(
      "...d,dv->...v",
      hidden,
      self.head.kernel[...],
      preferred_element_type=jnp.float32,
    )

  def astype(self, dtype: str) -> Decoder:
    """Returns the decoder with parameters, and arithmetic, in another dtype.

    Adapters too: a frozen base may have the dtype already, and they not.
    """
    if self.has_dtype(dtype):
      return self
    config = dataclasses.replace(self.config, dtype=dtype)
    abstract = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    leaves = [
      leaf if leaf.dtype == dtype else leaf.astype(dtype)
      for leaf in jax.tree.leaves(self)
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

  def has_dtype(self, dtype: str) -> bool:
    """Whether arithmetic and every parameter, adapters too, have the dtype."""
    return self.config.dtype == dtype and all(
      leaf.dtype == dtype for leaf in jax.tree.leaves(self)
    )

  def init_cache(self, batch: int, max_length: int) -> KVCache:
    """Returns an empty cache.

    Args:
      batch: number of rows.
      max_length: positions a row has room for, a multiple of `KV_BLOCK`.

    Returns:
      Zeros in the parameters' dtype.

    Raises:
      ValueError: if `max_length` is not such a multiple.
    """
    _check_blocks("max_length", max_length)
    config = self.config
    shape = (
      config.num_layers,
      max_length // attention.KV_BLOCK,
      batch,
      config.num_kv_heads,
      attention.KV_BLOCK,
      config.head_dim,
    )
    return KVCache(
      jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
    )

  def extend(
    self,
    cache: KVCache,
    tokens: Int[Array, "B C"],
    starts: Int[Array, "B"],
    counts: Int[Array, "B"],
    *,
    attend_length: int,
    rows: Int[Array, "parts R"] | None = None,
    layers: Sequence[DecoderLayer] | None = None,
  ) -> tuple[Float[Array, "B C D"], KVCache]:
    """Runs new tokens of some rows against the cache, and adds them to it.

    Serves prefill (starts 0), decode (one token a row) and insertion of
    observations. At a fixed number B of rows a row's result depends on no other
    row. Nor does it depend on `attend_length`, as long as it covers the row.

    The cache is written in place if the caller donates it, also as the carry
    of a `lax.while_loop`.

    Args:
      cache: what earlier calls left.
      tokens: new token ids.
      starts: position of each row's first new token.
      counts: how many of a row's tokens are real, 0 to C. The others write
        nothing, and their results are finite and meaningless.
      attend_length: most cache positions to read, a multiple of `KV_BLOCK`
        that exceeds every real token's position. Blocks that no real token
        reaches are skipped in any case.
      rows: rows of the cache that the B = parts * R rows of tokens belong to,
        all different. There are R of each of the equal parts that the cache is
        cut into, numbered within their part. On a mesh parts must be a multiple
        of the slices that rows are cut into. So each is read where it lies.
        None: B is the number of rows of the cache, and they are all of them.
      layers: what `unstack` returned, to run one by one; None runs the stacked
        ones in a loop.

    Returns:
      Hidden states after the final norm, and the cache.

    Raises:
      ValueError: if `attend_length` is not such a multiple, or is longer than
        the cache.
    """
    _check_blocks("attend_length", attend_length)
    if attend_length > cache.max_length:
      raise ValueError(
        f"attend_length must be at most the cache's max_length, got "
        f"{attend_length} > {cache.max_length}; make a longer cache."
      )
    offsets = jnp.arange(tokens.shape[1])
    positions = starts[:, None] + offsets
    slots = jnp.where(offsets < counts[:, None], positions, cache.max_length)
    angles = self._angles(positions)
    # Blocks that no real token reaches change no bit, so they are not read.
    reach = jnp.max(jnp.where(offsets < counts[:, None], positions, 0))
    num_blocks = jnp.minimum(
      reach // attention.KV_BLOCK + 1, attend_length // attention.KV_BLOCK
    )

    def body(carry, layer_and_index):
      x, cache = carry
      layer, index = layer_and_index
      return layer.extend(
        x, cache, index, angles, positions, slots, num_blocks, rows
      ), None

    carry = (self.embedding[...][tokens], cache)
    indices = jnp.arange(self.config.num_layers)
    if layers is None:
      carry, _ = jax.lax.scan(body, carry, (self.layers, indices))
    else:
      for layer_and_index in zip(layers, indices, strict=True):
        carry, _ = body(carry, layer_and_index)
    x, cache = carry
    return self.final_norm(x), cache

  def unstack(self) -> list[DecoderLayer]:
    """Returns a copy of the layers, each in arrays of its own.

    A GPU copies a layer's weights out of the stacked ones whenever it comes to
    the layer. That takes as long as a decode step's own work. A rollout has
    them copied once, before it begins.
    """
    return [
      jax.tree.map(lambda leaf, index=index: leaf[index], self.layers)
      for index in range(self.config.num_layers)
    ]

  def _angles(self, positions: Int[Array, "B T"]):
    return attention.rotary_angles(
      positions,
      *rope.inverse_frequencies(self.config.rope, self.config.head_dim),
    )


def nested_group(num_layers: int) -> int:
  """Layers of a group in remat "nested": the divisor nearest to their root."""
  divisors = (d for d in range(1, num_layers + 1) if num_layers % d == 0)
  return min(divisors, key=lambda size: abs(size - num_layers**0.5))


def _lora_of(config: DecoderConfig, name: LoraTarget) -> LoraConfig | None:
  """The adapter of a projection, if it is to have one."""
  lora = config.lora
  return lora if lora is not None and name in lora.targets else None


def _adapter(
  in_size: int,
  out_size: int,
  rank: int,
  axes: tuple[str, str],
  rngs: nnx.Rngs,
) -> tuple[AdapterParam, AdapterParam]:
  """Returns A, drawn, and B, 0."""
  bound = in_size**-0.5
  a = jax.random.uniform(
    rngs.params(), (in_size, rank), jnp.float32, -bound, bound
  )
  b = jnp.zeros((rank, out_size), jnp.float32)
  return (
    AdapterParam(a, logical_axes=(axes[0], "rank")),
    AdapterParam(b, logical_axes=("rank", axes[1])),
  )


def _normal(rngs: nnx.Rngs, shape, config: DecoderConfig) -> Array:
  draw = jax.random.normal(rngs.params(), shape, jnp.float32)
  return (draw * config.initializer_range).astype(config.dtype)


def _check_blocks(name: str, length: int) -> None:
  if length <= 0 or length % attention.KV_BLOCK:
    raise ValueError(
      f"{name} must be a positive multiple of {attention.KV_BLOCK}, got "
      f"{length}; round it up."
    )
