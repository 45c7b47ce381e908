"""Log-probabilities of given tokens, without an array of all logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from rapo_jax.models import attention
from rapo_jax.models.decoder import Decoder, Remat
from rapo_jax.models.sharding import constrain

HEAD_CHUNK = 512
"""Tokens of a batch shard whose logits are alive at the same time.

Enough for the matrix units of an accelerator; on a CPU fewer were faster, see
`benchmarks/update.py`.
"""


def token_log_probs(
  model: Decoder,
  tokens: Int[Array, "B T"],
  *,
  where: Bool[Array, "B T"],
  temperature: float = 1.0,
  positions: Int[Array, "B T"] | None = None,
  segment_ids: Int[Array, "B T"] | None = None,
  prefix_ids: Int[Array, "B T"] | None = None,
  remat: Remat = "none",
  head_chunk: int | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Scores each token given what is before it in its segment.

  Entry t belongs to tokens[:, t], so it comes from the hidden state at t - 1.

    log_probs[t] = log softmax(logits[t - 1] / temperature)[tokens[t]]
    entropies[t] = entropy of softmax(logits[t - 1] / temperature)

  The output head runs on scored tokens alone, `head_chunk` of them at a time.
  The backward pass computes each chunk's logits again; where only the gradient
  of a loss is wanted, `token_loss_sum` spares that. On a mesh every batch shard
  takes the tokens of its own rows, and the vocabulary stays cut: only a maximum
  and sums over it travel.

  Args:
    model: the decoder.
    tokens: token ids.
    where: which tokens to score. A segment's first token has nothing before
      it and is never scored.
    temperature: of the distribution, above 0; the sampler's.
    positions: as for `Decoder.hidden_states`.
    segment_ids: as for `Decoder.hidden_states`.
    prefix_ids: as for `Decoder.hidden_states`.
    remat: as for `Decoder.hidden_states`.
    head_chunk: tokens of a batch shard whose logits are alive at the same
      time; `HEAD_CHUNK` if None.

  Returns:
    Float32 log-probabilities and entropies over the full vocabulary, in nats,
    both differentiable; exactly 0 where a token is not scored.
  """
  hidden = model.hidden_states(
    tokens,
    positions=positions,
    segment_ids=segment_ids,
    prefix_ids=prefix_ids,
    remat=remat,
  )
  order = _order(tokens, where, segment_ids, head_chunk)
  values = _score(
    temperature,
    order.chunk,
    *_head(model),
    order.pack(hidden, before=True),
    order.pack(tokens),
    order.num_chunks,
  )
  log_probs, entropies = (order.unpack(x) for x in values)
  return log_probs, entropies


def token_loss_sum(
  model: Decoder,
  tokens: Int[Array, "B T"],
  loss: Callable[[Float[Array, " N"], Any], Float[Array, " N"]],
  arguments: Any,
  *,
  where: Bool[Array, "B T"],
  temperature: float = 1.0,
  positions: Int[Array, "B T"] | None = None,
  segment_ids: Int[Array, "B T"] | None = None,
  prefix_ids: Int[Array, "B T"] | None = None,
  remat: Remat = "none",
  head_chunk: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
  """Sums a loss of every scored token's log-probability.

  The same as `jnp.sum(loss(log_probs, arguments))` over what `token_log_probs`
  scores, with a gradient that costs a quarter less of the head: each token's
  loss is known as soon as its logits are. So the gradients of head and hidden
  states are taken while the logits are there.

  Args:
    model: the decoder.
    tokens: token ids.
    loss: of each token by itself, given log-probabilities and entries of
      `arguments`; differentiated by the former. It closes over no arrays.
    arguments: arrays `[B, T]` in any pytree; constants to the gradient.
    where: which tokens to score, as for `token_log_probs`.
    temperature: as for `token_log_probs`.
    positions: as for `Decoder.hidden_states`.
    segment_ids: as for `Decoder.hidden_states`.
    prefix_ids: as for `Decoder.hidden_states`.
    remat: as for `Decoder.hidden_states`.
    head_chunk: as for `token_log_probs`.

  Returns:
    The sum, differentiable, and the log-probabilities, as constants.
  """
  hidden = model.hidden_states(
    tokens,
    positions=positions,
    segment_ids=segment_ids,
    prefix_ids=prefix_ids,
    remat=remat,
  )
  order = _order(tokens, where, segment_ids, head_chunk)
  total, log_probs = _loss_sum(
    loss,
    temperature,
    order.chunk,
    *_head(model),
    order.pack(hidden, before=True),
    order.pack(tokens),
    order.is_real,
    jax.tree.map(order.pack, arguments),
    order.num_chunks,
  )
  return total, jax.lax.stop_gradient(order.unpack(log_probs))


class _Order(NamedTuple):
  """The scored tokens of each of `G` batch shards, brought together.

  Attributes:
    chunk: how many are scored at a time; divides N.
    num_chunks: how many chunks hold anything.
    sources: where each comes from among the shard's tokens. The padding of the
      last chunk comes from past the end, where zeros are read and gradients are
      dropped. So a NaN in the place of others reaches nothing.
    places: where each of the shard's tokens went; past the end if not scored.
  """

  chunk: int
  num_chunks: Int[Array, ""]
  sources: Int[Array, "G N"]
  places: Int[Array, "B T"]

  @property
  def is_real(self) -> Bool[Array, "G N"]:
    return self.sources < self.places.size // len(self.sources)

  def pack(
    self, values: Shaped[Array, "B T ..."], *, before: bool = False
  ) -> Shaped[Array, "G N ..."]:
    """Entries of the scored tokens, or of those before them."""
    groups = len(self.sources)
    values = values.reshape(groups, -1, *values.shape[2:])
    index = self.sources
    if before:
      index = jnp.where(self.is_real, index - 1, values.shape[1])
    return _take(values, index)

  def unpack(self, values: Shaped[Array, "G N"]) -> Shaped[Array, "B T"]:
    """The way back; 0 where a token is not scored."""
    places = self.places.reshape(len(self.sources), -1)
    return _take(values, places).reshape(self.places.shape)


def _order(tokens, where, segment_ids, head_chunk) -> _Order:
  starts = attention.segment_starts(
    jnp.ones_like(tokens) if segment_ids is None else segment_ids
  )
  scored = (where & ~starts).reshape(_num_batch_shards(tokens.shape[0]), -1)
  size = scored.shape[1]
  chunk = min(head_chunk or HEAD_CHUNK, size)
  sources = jnp.argsort(~scored, axis=1, stable=True)
  sources = jnp.where(
    jnp.take_along_axis(scored, sources, axis=1), sources, size
  )
  sources = jnp.pad(sources, ((0, 0), (0, -size % chunk)), constant_values=size)
  places = jnp.where(scored, jnp.cumsum(scored, axis=1) - 1, sources.shape[1])
  num_chunks = -(-jnp.max(jnp.sum(scored, axis=1)) // chunk)
  return _Order(chunk, num_chunks, sources, places.reshape(tokens.shape))


def _num_batch_shards(batch: int) -> int:
  """Parts that the mesh cuts a batch of rows into; 1 if it does not."""
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
  return 1 if batch % shards else shards


@jax.vmap
def _take(values: Array, index: Int[Array, " N"]) -> Array:
  """Entries of `values`, 0 for an index past the end."""
  return values.at[index].get(mode="fill", fill_value=0)


def _head(model: Decoder) -> tuple[str, Float[Array, "_ _"]]:
  """Axes of the head, "vd" for an embedding and "dv" for a kernel; weights."""
  if model.head is None:
    return "vd", model.embedding[...]
  return "dv", model.head.kernel[...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _score(
  temperature: float,
  chunk: int,
  layout: str,
  head: Float[Array, "_ _"],
  hidden: Float[Array, "G N D"],
  targets: Int[Array, "G N"],
  num_chunks: Int[Array, ""],
) -> tuple[Float[Array, "G N"], Float[Array, "G N"]]:
  """Log-probabilities of the targets, and entropies, chunk by chunk.

  Args:
    temperature: of the distribution.
    chunk: tokens of a chunk in each group; divides N.
    layout: axes of the head.
    head: the head's weights, float32 or narrower.
    hidden: what the head reads.
    targets: token ids.
    num_chunks: how many chunks hold anything; the others stay 0.

  Returns:
    Float32 log-probabilities and entropies.
  """
  head = _gather_head(head, layout)

  def body(index, carry):
    hidden_chunk, target = _chunks(index, chunk, hidden, targets)
    softmax = _softmax(_logits(hidden_chunk, head, layout, temperature))
    log_probs = softmax.log_probs(target)
    return _write_chunk(index, chunk, carry, (log_probs, softmax.entropies()))

  zeros = jnp.zeros(targets.shape, jnp.float32)
  return jax.lax.fori_loop(0, num_chunks, body, (zeros, zeros))


def _score_forward(temperature, chunk, layout, *inputs):
  log_probs, entropies = _score(temperature, chunk, layout, *inputs)
  return (log_probs, entropies), (*inputs, entropies)


def _score_backward(temperature, chunk, layout, residuals, cotangents):
  head, hidden, targets, num_chunks, entropies = residuals

  def slopes(log_probs, arguments):
    return (jnp.zeros_like(log_probs), *arguments)

  hidden_gradient, head_gradient, _ = _gradients(
    slopes,
    temperature,
    chunk,
    layout,
    head,
    hidden,
    targets,
    (*cotangents, entropies),
    num_chunks,
  )
  return head_gradient, hidden_gradient, None, None


_score.defvjp(_score_forward, _score_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _loss_sum(
  loss: Callable[[Array, Any], Array],
  temperature: float,
  chunk: int,
  layout: str,
  head: Float[Array, "_ _"],
  hidden: Float[Array, "G N D"],
  targets: Int[Array, "G N"],
  is_real: Bool[Array, "G N"],
  arguments: Any,
  num_chunks: Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "G N"]]:
  """The sum of the real tokens' losses, and all log-probabilities.

  Args are those of `_score` and `token_loss_sum`.
  """
  log_probs, _ = _score(
    temperature, chunk, layout, head, hidden, targets, num_chunks
  )
  return jnp.sum(_masked_loss(loss, log_probs, is_real, arguments)), log_probs


def _loss_sum_forward(
  loss,
  temperature,
  chunk,
  layout,
  head,
  hidden,
  targets,
  is_real,
  arguments,
  num_chunks,
):
  def slopes(log_probs, arguments):
    losses, backward = jax.vjp(
      lambda x: _masked_loss(loss, x, *arguments), log_probs
    )
    (by_log_prob,) = backward(jnp.ones_like(losses))
    # A select passes on the NaN of a derivative that it does not take.
    return losses, jnp.where(arguments[0], by_log_prob, 0), None, None

  *gradients, (losses, log_probs) = _gradients(
    slopes,
    temperature,
    chunk,
    layout,
    head,
    hidden,
    targets,
    (is_real, arguments),
    num_chunks,
  )
  return (jnp.sum(losses), log_probs), gradients


def _loss_sum_backward(loss, temperature, chunk, layout, gradients, cotangents):
  hidden_gradient, head_gradient = (
    (x * cotangents[0]).astype(x.dtype) for x in gradients
  )
  return head_gradient, hidden_gradient, None, None, None, None


_loss_sum.defvjp(_loss_sum_forward, _loss_sum_backward)


def _masked_loss(loss, log_probs, is_real, arguments) -> Float[Array, "G N"]:
  flat = jax.tree.map(jnp.ravel, (log_probs, arguments))
  return jnp.where(is_real, loss(*flat).reshape(is_real.shape), 0)


def _gradients(
  slopes: Callable[[Array, Any], tuple[Array, Array, Array | None, Any]],
  temperature: float,
  chunk: int,
  layout: str,
  head: Float[Array, "_ _"],
  hidden: Float[Array, "G N D"],
  targets: Int[Array, "G N"],
  arguments: Any,
  num_chunks: Int[Array, ""],
) -> tuple[Array, Array, tuple[Array, Array]]:
  """Gradients by hidden states and head, of a sum over tokens.

  With p = softmax(z), z = logits / temperature, n = log Σ exp z, H = entropy:

    ∂ log p[target] / ∂z = onehot(target) - p
    ∂ H / ∂z = -p (z - n + H)

  Args:
    slopes: takes a chunk's log-probabilities and its entries of `arguments`;
      returns losses, their derivatives by the log-probabilities, those by the
      entropies, and the entropies; None for the last two if they are all 0.
    arguments: arrays `[G, N]` in a pytree. The others are those of `_score`.

  Returns:
    The gradients, and losses and log-probabilities.
  """
  head = _gather_head(head, layout)
  leaves, structure = jax.tree.flatten(arguments)

  def body(index, carry):
    hidden_gradient, head_gradient, values = carry
    hidden_chunk, target, *rest = _chunks(
      index, chunk, hidden, targets, *leaves
    )
    logits = _logits(hidden_chunk, head, layout, temperature)
    softmax = _softmax(logits)
    log_probs = softmax.log_probs(target)
    losses, by_log_prob, by_entropy, entropies = slopes(
      log_probs, jax.tree.unflatten(structure, rest)
    )
    weight = by_log_prob[..., None]
    if by_entropy is not None:
      weight += by_entropy[..., None] * (
        softmax.shifted - (softmax.log_total - entropies)[..., None]
      )
    gradient = jnp.where(
      _is_target(target, logits), by_log_prob[..., None], 0
    ) - softmax.weights * (weight / softmax.total[..., None])
    gradient = (gradient / temperature).astype(head.dtype)
    new = jnp.einsum(f"gcv,{layout}->gcd", gradient, head)
    (hidden_gradient,) = _write_chunk(
      index, chunk, (hidden_gradient,), (new.astype(hidden.dtype),)
    )
    head_gradient += jnp.einsum(
      f"gcv,gcd->g{layout}",
      gradient,
      hidden_chunk,
      preferred_element_type=jnp.float32,
    )
    values = _write_chunk(index, chunk, values, (losses, log_probs))
    return hidden_gradient, head_gradient, values

  # Each group sums into an array of its own, so that its device sends nothing
  # before the end.
  head_zeros = constrain(
    jnp.zeros((hidden.shape[0], *head.shape), jnp.float32),
    "batch",
    *_head_axes(layout),
  )
  zeros = jnp.zeros(targets.shape, jnp.float32)
  hidden_gradient, head_gradient, values = jax.lax.fori_loop(
    0,
    num_chunks,
    body,
    (jnp.zeros_like(hidden), head_zeros, (zeros, zeros)),
  )
  head_gradient = head_gradient.sum(axis=0).astype(head.dtype)
  return hidden_gradient, head_gradient, values


class _Softmax(NamedTuple):
  """What a softmax over the last axis is made of.

  Attributes:
    shifted: logits less the largest of them.
    weights: exp of that.
    total: sum of the weights.
  """

  shifted: Float[Array, "*B V"]
  weights: Float[Array, "*B V"]
  total: Float[Array, "*B"]

  @property
  def log_total(self) -> Float[Array, "*B"]:
    return jnp.log(self.total)

  def log_probs(self, target: Int[Array, "*B"]) -> Float[Array, "*B"]:
    chosen = jnp.where(_is_target(target, self.shifted), self.shifted, 0)
    return jnp.sum(chosen, axis=-1) - self.log_total

  def entropies(self) -> Float[Array, "*B"]:
    mean = jnp.sum(self.weights * self.shifted, axis=-1) / self.total
    return self.log_total - mean


def _softmax(logits: Float[Array, "*B V"]) -> _Softmax:
  shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(shifted)
  return _Softmax(shifted, weights, jnp.sum(weights, axis=-1))


def _write_chunk(
  index: Array, chunk: int, arrays: tuple[Array, ...], new: tuple[Array, ...]
) -> tuple[Array, ...]:
  return tuple(
    jax.lax.dynamic_update_slice_in_dim(x, part, index * chunk, axis=1)
    for x, part in zip(arrays, new, strict=True)
  )


def _chunks(index: Array, chunk: int, *arrays: Array) -> list[Array]:
  """One chunk of each array; on a mesh, of each group where it lies."""
  return [
    constrain(
      jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1),
      "batch",
      *(None,) * (x.ndim - 1),
    )
    for x in arrays
  ]


def _head_axes(layout: str) -> tuple[str | None, ...]:
  return tuple("vocab" if axis == "v" else None for axis in layout)


def _gather_head(head: Float[Array, "_ _"], layout: str) -> Float[Array, "_ _"]:
  """Fetches a shard's part of the vocabulary once, not once a chunk."""
  return constrain(head, *_head_axes(layout))


def _logits(
  hidden: Float[Array, "G C D"],
  head: Float[Array, "_ _"],
  layout: str,
  temperature: float,
) -> Float[Array, "G C V"]:
  """Float32 logits over the temperature."""
  logits = jnp.einsum(
    f"gcd,{layout}->gcv", hidden, head, preferred_element_type=jnp.float32
  )
  return constrain(logits, "batch", None, "vocab") / temperature


def _is_target(
  target: Int[Array, "G C"], logits: Float[Array, "G C V"]
) -> Bool[Array, "G C V"]:
  """Where the target's logit is: fused into its use, local to a shard."""
  vocabulary = jax.lax.broadcasted_iota(target.dtype, logits.shape, 2)
  return vocabulary == target[..., None]
