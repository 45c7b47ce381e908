"""Log-probabilities of given tokens, without an array of all logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rapo_jax.models import attention
from rapo_jax.models.decoder import Decoder

HEAD_CHUNK = 512
"""Tokens whose logits are alive at the same time."""


def token_log_probs(
  model: Decoder,
  tokens: Int[Array, "B T"],
  *,
  where: Bool[Array, "B T"],
  temperature: float = 1.0,
  positions: Int[Array, "B T"] | None = None,
  segment_ids: Int[Array, "B T"] | None = None,
  remat: bool = False,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Scores each token given what is before it in its segment.

  Entry t belongs to tokens[:, t], so it comes from the hidden state at t - 1.
  The output head runs on chunks of `HEAD_CHUNK` tokens whose logits are
  computed again in the backward pass, tokens in `where` first, and chunks
  without any such token are skipped.

    log_probs[t] = log softmax(logits[t - 1] / temperature)[tokens[t]]
    entropies[t] = entropy of softmax(logits[t - 1] / temperature)

  Args:
    model: the decoder.
    tokens: token ids.
    where: which tokens to score. A segment's first token has nothing before
      it and is never scored.
    temperature: of the distribution, above 0; the sampler's.
    positions: as for `Decoder.hidden_states`.
    segment_ids: as for `Decoder.hidden_states`.
    remat: as for `Decoder.hidden_states`.

  Returns:
    Float32 log-probabilities and entropies over the full vocabulary, in nats,
    both differentiable; exactly 0 where a token is not scored.
  """
  hidden = model.hidden_states(
    tokens, positions=positions, segment_ids=segment_ids, remat=remat
  )
  starts = attention.segment_starts(
    jnp.ones_like(tokens) if segment_ids is None else segment_ids
  )
  scored = (where & ~starts).ravel()
  before = jnp.roll(hidden, 1, axis=1).reshape(-1, hidden.shape[-1])
  # Selected, not multiplied: a NaN where nothing is scored must not reach
  # the head's gradient.
  before = jnp.where(scored[:, None], before, 0)

  chunk = min(HEAD_CHUNK, scored.size)
  order = jnp.argsort(~scored, stable=True)
  # Padded with an index past the end, which reads zeros and is dropped.
  order = jnp.pad(
    order, (0, -order.size % chunk), constant_values=order.size
  ).reshape(-1, chunk)

  def score(before, targets):
    logits = model.unembed(before) / temperature
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    probs = jnp.exp(logits - log_normalizer[:, None])
    entropies = log_normalizer - jnp.sum(probs * logits, axis=-1)
    return target - log_normalizer, entropies

  @jax.checkpoint
  def score_chunk(index):
    inputs = (
      before.at[index].get(mode="fill", fill_value=0),
      tokens.ravel().at[index].get(mode="fill", fill_value=0),
    )
    zeros = jnp.zeros(chunk, jnp.float32)
    any_scored = scored.at[index].get(mode="fill", fill_value=False).any()
    return jax.lax.cond(any_scored, score, lambda *_: (zeros, zeros), *inputs)

  def restore(chunks):
    flat = jnp.zeros(scored.shape, jnp.float32)
    flat = flat.at[order.ravel()].set(chunks.ravel(), mode="drop")
    return jnp.where(scored, flat, 0).reshape(tokens.shape)

  log_probs, entropies = jax.lax.map(score_chunk, order)
  return restore(log_probs), restore(entropies)
