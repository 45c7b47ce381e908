"""The device side of a rollout: pure functions over fixed-shape state.

One invariant makes prefill, decoding and insertion the same thing: *the cache
of a slot covers every token but the last*. A decode step feeds the last token
and samples one more; inserting tokens appends them and feeds all that are now
behind the last one. No position of any sequence runs through the model twice.

`num_slots`, `max_length` and `chunk` fix all shapes. Attention reads the cache
in fixed blocks (see `rapo_jax.models`). Every sequence samples with a key of
its own, folded with the token's position. So, at a fixed `num_slots`, a
sequence's tokens and log-probabilities depend neither on its slot nor on its
neighbours. Nor do they depend on when a tool answered.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from rapo_jax.models import Decoder, KVCache, attention, sharding
from rapo_jax.models.decoder import DecoderLayer
from rapo_jax.rollout.config import RolloutConfig

# Tokens whose probabilities are summed up before those of single ones. As wide
# as a vector unit: sums over rows of 128 are the fastest on a CPU, too.
_BLOCK = 128


class SlotState(NamedTuple):
  """Everything that the device holds about `S` sequences of up to `L` tokens.

  Attributes:
    cache: keys and values of positions before `lengths - 1`.
    tokens: token ids; what lies at and after `lengths` is meaningless.
    log_probs: log-probability of each sampled token in the full measure, which
      is the trainer's. It is softmax of the logits over the temperature, of the
      whole vocabulary whatever filter is on. 0 for tokens that were not
      sampled.
    entropies: entropy of that measure in nats; 0 for tokens that were not
      sampled.
    lengths: number of tokens of each sequence.
    limits: length at which decoding stops.
    active: slots that decode.
    automaton: state of the stop automaton.
    keys: key data of each sequence's own random stream.
  """

  cache: KVCache
  tokens: Int[Array, "S L"]
  log_probs: Float[Array, "S L"]
  entropies: Float[Array, "S L"]
  lengths: Int[Array, " S"]
  limits: Int[Array, " S"]
  active: Bool[Array, " S"]
  automaton: Int[Array, " S"]
  keys: UInt32[Array, "S 2"]


class Sampling(NamedTuple):
  """How a token is drawn. None switches off, and then costs nothing.

  A None is part of the program; numbers are inputs of it, so that other numbers
  compile nothing. Filters apply in this order, which is Hugging Face's. (vLLM
  has min-p first, so that its top-p is a share of what min-p leaves.) All
  tokens that are as likely as the least likely kept one are kept.

  Attributes:
    temperature: divides the logits, > 0; None takes the likeliest token, reads
      no filter, and stores log-probabilities of temperature 1.
    top_k: keeps so many of the likeliest tokens, >= 1.
    top_p: keeps the smallest set of tokens whose probability is at least p, of
      what `top_k` left, in (0, 1).
    min_p: keeps tokens at least this times as likely as the likeliest.
  """

  temperature: Float[Array, ""] | None = None
  top_k: Int[Array, ""] | None = None
  top_p: Float[Array, ""] | None = None
  min_p: Float[Array, ""] | None = None


GREEDY = Sampling()


def sampling(config: RolloutConfig) -> Sampling:
  """How rollouts sample; filters that let everything pass are left out."""
  return Sampling(
    temperature=jnp.float32(config.temperature),
    top_k=jnp.int32(config.top_k) if config.top_k else None,
    top_p=jnp.float32(config.top_p) if config.top_p < 1 else None,
    min_p=jnp.float32(config.min_p) if config.min_p > 0 else None,
  )


@functools.partial(jax.jit, static_argnames=("num_slots", "max_length"))
def init_slots(model: Decoder, num_slots: int, max_length: int) -> SlotState:
  """Empty slots for sequences of up to `max_length` tokens."""
  grid = (num_slots, max_length)
  return _constrain(
    SlotState(
      cache=model.init_cache(num_slots, max_length),
      tokens=jnp.zeros(grid, jnp.int32),
      log_probs=jnp.zeros(grid, jnp.float32),
      entropies=jnp.zeros(grid, jnp.float32),
      lengths=jnp.zeros(num_slots, jnp.int32),
      limits=jnp.zeros(num_slots, jnp.int32),
      active=jnp.zeros(num_slots, bool),
      automaton=jnp.zeros(num_slots, jnp.int32),
      keys=jnp.zeros((num_slots, 2), jnp.uint32),
    )
  )


@functools.partial(jax.jit, static_argnames=("rows", "max_length"))
def init_prompt_cache(model: Decoder, rows: int, max_length: int) -> KVCache:
  """An empty cache for prompts, to be copied into slots."""
  return constrain_cache(model.init_cache(rows, max_length))


def constrain_cache(cache: KVCache) -> KVCache:
  """Cuts a cache's rows and heads over the mesh that is set, if one is."""
  return jax.tree.map(
    lambda x: sharding.constrain(
      x, None, None, "batch", "kv_heads", None, None
    ),
    cache,
  )


def _constrain(state: SlotState) -> SlotState:
  """The same for all that the device holds about slots."""
  return SlotState(
    constrain_cache(state.cache),
    *(
      sharding.constrain(x, "batch", *[None] * (x.ndim - 1)) for x in state[1:]
    ),
  )


@functools.partial(jax.jit, static_argnames="seed")
def sequence_keys(
  seed: int,
  update: Int[Array, ""],
  queries: UInt32[Array, " S"],
  indices: UInt32[Array, " S"],
) -> UInt32[Array, "S 2"]:
  """Key data of sequences, a function of what they are and not of where.

  Args:
    seed: seed of the run.
    update: number of updates behind the policy.
    queries: 32-bit number of each sequence's query.
    indices: index of each sequence in its group.
  """

  def one(query: Array, index: Array) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), update)
    key = jax.random.fold_in(jax.random.fold_in(key, query), index)
    return jax.random.key_data(key)

  return jax.vmap(one)(queries, indices)


@functools.partial(
  jax.jit, static_argnames=("attend_length", "chunk"), donate_argnames="cache"
)
def prefill(
  model: Decoder,
  cache: KVCache,
  tokens: Int[Array, "R L"],
  lengths: Int[Array, " R"],
  *,
  attend_length: int,
  chunk: int,
) -> KVCache:
  """Runs `R` distinct prompts through the model, all but their last tokens.

  Args:
    model: the policy.
    cache: buffers for `R` sequences; their old content is overwritten.
    tokens: prompts, padded at the end.
    lengths: tokens of each prompt; 0 for an unused row.
    attend_length: static bound on the lengths, a multiple of the KV block.
    chunk: static number of positions that run through the model at a time.
  """
  return _cache_up_to(
    model,
    cache,
    tokens,
    jnp.zeros_like(lengths),
    lengths - 1,
    attend_length=attend_length,
    chunk=chunk,
  )


@functools.partial(jax.jit, donate_argnames="state")
def admit(
  state: SlotState,
  prompt_cache: KVCache,
  prompt_tokens: Int[Array, "R P"],
  prompt_lengths: Int[Array, " R"],
  source: Int[Array, " S"],
  limits: Int[Array, " S"],
  keys: UInt32[Array, "S 2"],
) -> SlotState:
  """Starts sequences in slots from prompts that have been prefilled.

  Args:
    state: the slots.
    prompt_cache: cache of `R` prompts of up to `P` tokens.
    prompt_tokens: the prompts.
    prompt_lengths: tokens of each prompt.
    source: prompt row that each slot starts from; -1 leaves the slot alone.
    limits: length at which each started slot stops decoding.
    keys: key data of each started sequence.
  """
  starts = source >= 0
  row = jnp.maximum(source, 0)
  width = prompt_tokens.shape[1]

  def copy(slots: Array, prompts: Array) -> Array:
    # [layers, blocks, rows, heads, positions of a block, head_dim]
    chosen = starts[:, None, None, None]
    blocks = prompts.shape[1]
    head = jnp.where(chosen, prompts[:, :, row], slots[:, :blocks])
    return jax.lax.dynamic_update_slice_in_dim(slots, head, 0, axis=1)

  cache = jax.tree.map(copy, state.cache, prompt_cache)
  column = starts[:, None]
  tokens = jax.lax.dynamic_update_slice_in_dim(
    state.tokens,
    jnp.where(column, prompt_tokens[row], state.tokens[:, :width]),
    0,
    axis=1,
  )
  return _constrain(
    SlotState(
      cache=cache,
      tokens=tokens,
      log_probs=jnp.where(column, 0.0, state.log_probs),
      entropies=jnp.where(column, 0.0, state.entropies),
      lengths=jnp.where(starts, prompt_lengths[row], state.lengths),
      limits=jnp.where(starts, limits, state.limits),
      active=state.active | starts,
      automaton=jnp.where(starts, 0, state.automaton),
      keys=jnp.where(column, keys, state.keys),
    )
  )


@functools.partial(
  jax.jit, static_argnames=("attend_length", "chunk"), donate_argnames="state"
)
def insert(
  model: Decoder,
  state: SlotState,
  slots: Int[Array, "parts R"],
  pieces: Int[Array, "N L"],
  counts: Int[Array, " N"],
  limits: Int[Array, " N"],
  *,
  attend_length: int,
  chunk: int,
) -> SlotState:
  """Appends observation or retrieved tokens to some slots, which decode on.

  Only these run through the model. Their number N = parts * R is static.
  Changing it changes rounding, as does changing the number of slots.

  Args:
    model: the policy.
    state: the slots.
    slots: R of the slots of each part, none twice, numbered within the part.
      The parts are the slices of a mesh that slots are cut over; one without a
      mesh. One past the end of its part stands for no slot.
    pieces: token ids to append to each of them, padded at the end.
    counts: how many of them are real, at least 1; 0 for no slot.
    limits: new decoding limit of each.
    attend_length: static bound on the new lengths.
    chunk: static number of positions that run through the model at a time.
  """
  starts = attention.take_rows(state.lengths, slots)
  offsets = jnp.arange(pieces.shape[1])
  positions = jnp.where(
    offsets < counts[:, None],
    starts[:, None] + offsets,
    state.tokens.shape[1],
  )
  tokens = attention.write_rows(
    attention.take_rows(state.tokens, slots), positions, pieces
  )
  cache = _cache_up_to(
    model,
    state.cache,
    tokens,
    starts - 1,
    jnp.where(counts > 0, starts + counts - 1, 0),
    attend_length=attend_length,
    chunk=chunk,
    rows=slots,
  )
  put = functools.partial(attention.put_rows, chosen=slots)
  return _constrain(
    state._replace(
      cache=cache,
      tokens=put(state.tokens, values=tokens),
      lengths=put(state.lengths, values=starts + counts),
      limits=put(state.limits, values=limits),
      active=put(state.active, values=counts > 0),
      automaton=put(state.automaton, values=jnp.zeros_like(counts)),
    )
  )


@functools.partial(jax.jit, donate_argnames="state")
def fork(
  state: SlotState,
  sources: Int[Array, "parts R"],
  slots: Int[Array, "parts R"],
  lengths: Int[Array, " N"],
  limits: Int[Array, " N"],
  keys: UInt32[Array, "N 2"],
) -> SlotState:
  """Starts sequences in slots from the first tokens of others.

  Nothing runs through the model: the cache of a prefix is a prefix of the
  cache. What is read is what was there before.

  Args:
    state: the slots.
    sources: the slot that each one is copied from, numbered within its part as
      for `insert`. One past the end of its part stands for none.
    slots: where each one starts, of the same part, none twice. It may be its
      own source.
    lengths: tokens of each that are kept, at least 1.
    limits: length at which each stops decoding.
    keys: key data of each one's own random stream.
  """

  kept = jnp.arange(state.tokens.shape[1]) < lengths[:, None]

  def copy(rows: Array) -> Array:
    # What the parent has sampled since is not the copy's.
    taken = jnp.where(kept, attention.take_rows(rows, sources), 0)
    return attention.put_rows(rows, slots, taken)

  def copy_cache(cache: Array) -> Array:
    # [layers, blocks, slots, heads, positions of a block, head_dim]
    by_slot = (*cache.shape[:2], len(slots), -1, *cache.shape[3:])
    parts = cache.reshape(by_slot)

    def one(part: Array, source: Array, slot: Array) -> Array:
      taken = part.at[:, :, source].get(mode="clip")
      return part.at[:, :, slot].set(taken, mode="drop")

    copied = jax.vmap(one, in_axes=(2, 0, 0), out_axes=2)(parts, sources, slots)
    return copied.reshape(cache.shape)

  put = functools.partial(attention.put_rows, chosen=slots)
  return _constrain(
    SlotState(
      cache=jax.tree.map(copy_cache, state.cache),
      tokens=copy(state.tokens),
      log_probs=copy(state.log_probs),
      entropies=copy(state.entropies),
      lengths=put(state.lengths, values=lengths),
      limits=put(state.limits, values=limits),
      active=put(state.active, values=jnp.ones_like(lengths, bool)),
      automaton=put(state.automaton, values=jnp.zeros_like(lengths)),
      keys=put(state.keys, values=keys),
    )
  )


def layers_apart(model: Decoder) -> list[DecoderLayer] | None:
  """The policy's layers as `decode` wants them on these devices.

  Apart on a GPU, which costs a second copy of their weights, see
  `Decoder.unstack`; None elsewhere.
  """
  return _unstack(model) if attention.platform() == "gpu" else None


_unstack = jax.jit(Decoder.unstack)


@functools.partial(
  jax.jit,
  static_argnames=("num_tokens", "attend_length"),
  donate_argnames="state",
)
def decode(
  model: Decoder,
  state: SlotState,
  stop_table: Int[Array, "states V"],
  eos: Bool[Array, " V"],
  sampling: Sampling,
  layers: list[DecoderLayer] | None = None,
  *,
  num_tokens: int,
  attend_length: int,
) -> SlotState:
  """Samples up to `num_tokens` tokens in every active slot.

  Ends early when no slot decodes any more. A slot stops when a stop string is
  completed, at an end-of-sequence token, or at its limit. It keeps the token
  that made it stop.

  Args:
    model: the policy.
    state: the slots.
    stop_table: transitions of the stop automaton, last state "matched".
    eos: token ids that end the turn.
    sampling: how tokens are drawn. Stored log-probabilities and entropies are
      those of the full measure, see `SlotState`: a filter restricts what may be
      drawn and nothing else.
    layers: what `layers_apart` returned for the policy.
    num_tokens: static bound on the tokens a slot can gain.
    attend_length: static bound on the lengths afterwards.
  """
  matched = stop_table.shape[0] - 1
  max_length = state.tokens.shape[1]

  def step(carry: tuple[SlotState, Array]) -> tuple[SlotState, Array]:
    state, count = carry
    last = state.lengths - 1
    hidden, cache = model.extend(
      state.cache,
      jnp.take_along_axis(state.tokens, last[:, None], axis=1),
      last,
      state.active.astype(jnp.int32),
      attend_length=attend_length,
      layers=layers,
    )
    logits = model.unembed(hidden[:, 0])
    if sampling.temperature is not None:
      logits = logits / sampling.temperature
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    if sampling.temperature is None:
      sampled = jnp.argmax(logits, axis=-1)
    else:
      sampled = _inverse_cdf(
        _filter(_in_blocks(probs), sampling),
        _uniforms(state.keys, state.lengths),
      )
    sampled = sampled.astype(jnp.int32)
    entropies = -jnp.sum(probs * log_probs, axis=-1)
    position = jnp.where(state.active, state.lengths, max_length)[:, None]
    lengths = state.lengths + state.active
    automaton = jnp.where(
      state.active, stop_table[state.automaton, sampled], state.automaton
    )
    stopped = (automaton == matched) | eos[sampled] | (lengths >= state.limits)
    state = state._replace(
      cache=cache,
      tokens=attention.write_rows(state.tokens, position, sampled[:, None]),
      log_probs=attention.write_rows(
        state.log_probs,
        position,
        jnp.take_along_axis(log_probs, sampled[:, None], axis=1),
      ),
      entropies=attention.write_rows(
        state.entropies, position, entropies[:, None]
      ),
      lengths=lengths,
      active=state.active & ~stopped,
      automaton=automaton,
    )
    return state, count + 1

  def unfinished(carry: tuple[SlotState, Array]) -> Array:
    state, count = carry
    return (count < num_tokens) & jnp.any(state.active)

  state, _ = jax.lax.while_loop(unfinished, step, (state, jnp.int32(0)))
  return _constrain(state)


@jax.jit
def gather(arrays: list[Array]) -> list[Array]:
  """Arrays of the slots whole on every device, for each process to read."""
  return [sharding.constrain(x, *[None] * x.ndim) for x in arrays]


@jax.jit
def gather_rows(arrays: list[Array], slots: Int[Array, " R"]) -> list[Array]:
  """What some slots have in such arrays, whole on every device."""
  return gather([x[slots] for x in arrays])


def _uniforms(
  keys: UInt32[Array, "S 2"], positions: Int[Array, " S"]
) -> Float[Array, " S"]:
  def one(key: Array, position: Array) -> Array:
    folded = jax.random.fold_in(jax.random.wrap_key_data(key), position)
    return jax.random.uniform(folded)

  return jax.vmap(one)(keys, positions)


def _in_blocks(probs: Float[Array, "S V"]) -> Float[Array, "S N B"]:
  """Cuts the vocabulary into blocks, the last one filled up with zeros."""
  size = min(_BLOCK, probs.shape[1])
  probs = jnp.pad(probs, ((0, 0), (0, -probs.shape[1] % size)))
  return probs.reshape(len(probs), -1, size)


def _filter(
  probs: Float[Array, "S N B"], sampling: Sampling
) -> Float[Array, "S N B"]:
  """Probabilities, not normalised, with 0 for what may not be drawn.

  The likeliest token always stays.
  """
  ones = jnp.ones((), probs.dtype)
  if sampling.top_k is not None:
    # float32 counts exactly up to 2^24.
    probs = _keep_most(probs, ones, sampling.top_k.astype(probs.dtype))
  if sampling.top_p is not None:
    total = jnp.sum(jnp.sum(probs, axis=1), axis=1)
    probs = _keep_most(probs, probs, sampling.top_p * total)
  if sampling.min_p is not None:
    least = sampling.min_p * jnp.max(probs, axis=(1, 2), keepdims=True)
    probs = jnp.where(probs >= least, probs, 0)
  return probs


def _keep_most(
  probs: Float[Array, "S N B"],
  weights: Float[Array, "S N B"] | Float[Array, ""],
  target: Float[Array, " S"] | Float[Array, ""],
) -> Float[Array, "S N B"]:
  """The smallest set of tokens whose weights reach `target`; zeros elsewhere.

  Bisects the bits of the least probability that is kept: those of floats that
  are not negative rise with them. That takes at most 30 sums over the
  vocabulary. On a CPU they are many times faster than sorting it. On a mesh
  they leave the vocabulary cut. Sums of a fixed order never fall when an addend
  joins, so the outcome is exact for those very sums.
  """

  def likely(bits: Int[Array, " S"]) -> Bool[Array, "S N B"]:
    # Floats are compared, so that each sum reads only one array.
    least = jax.lax.bitcast_convert_type(bits, probs.dtype)
    return probs >= least[:, None, None]

  def reaches(bits: Int[Array, " S"]) -> Bool[Array, " S"]:
    kept = jnp.where(likely(bits), weights, 0)
    return jnp.sum(jnp.sum(kept, axis=1), axis=1) >= target

  def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = low + (high - low + 1) // 2
    enough = reaches(middle)
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

  high = jax.lax.bitcast_convert_type(jnp.max(probs, axis=(1, 2)), jnp.int32)
  least, _ = jax.lax.while_loop(
    lambda bounds: jnp.any(bounds[0] < bounds[1]),
    halve,
    (jnp.zeros_like(high), high),
  )
  return jnp.where(likely(least), probs, 0)


def _inverse_cdf(
  blocks: Float[Array, "S N B"], uniforms: Float[Array, " S"]
) -> Int[Array, " S"]:
  """The first id whose cumulative probability exceeds the uniform number.

  One random number a row, as Gumbel noise over the vocabulary costs several
  times the output head on a CPU. And sums of blocks first, as cumulative sums
  of the whole vocabulary cost as much as the head.

  Args:
    blocks: probabilities from `_in_blocks`, normalised or not.
    uniforms: in [0, 1).
  """
  reached = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
  threshold = uniforms[:, None] * reached[:, -1:]
  block = _first_above(reached, threshold)
  before = jnp.where(
    block > 0, jnp.take_along_axis(reached, block - 1, axis=1), 0
  )
  inside = jnp.take_along_axis(blocks, block[..., None], axis=1)[:, 0]
  within = _first_above(jnp.cumsum(inside, axis=-1), threshold - before)
  return (block * blocks.shape[2] + within)[:, 0]


def _first_above(
  sums: Float[Array, "S N"], threshold: Float[Array, "S 1"]
) -> Int[Array, "S 1"]:
  """Where rising sums first exceed the threshold, at the latest at their end.

  An addend of 0 repeats the sum before it and is never chosen. This holds even
  where rounding has put the threshold at the end of the sums.
  """
  threshold = jnp.minimum(threshold, jnp.nextafter(sums[:, -1:], 0))
  return jnp.sum(sums <= threshold, axis=-1, keepdims=True)


def _cache_up_to(
  model: Decoder,
  cache: KVCache,
  tokens: Int[Array, "N L"],
  start: Int[Array, " N"],
  end: Int[Array, " N"],
  *,
  attend_length: int,
  chunk: int,
  rows: Int[Array, "parts R"] | None = None,
) -> KVCache:
  """Caches positions [start, end) of each row, `chunk` positions at a time."""
  offsets = jnp.arange(chunk)

  def body(carry: tuple[KVCache, Array]) -> tuple[KVCache, Array]:
    cache, begin = carry
    positions = jnp.minimum(begin[:, None] + offsets, tokens.shape[1] - 1)
    counts = jnp.clip(end - begin, 0, chunk)
    _, cache = model.extend(
      cache,
      jnp.take_along_axis(tokens, positions, axis=1),
      begin,
      counts,
      attend_length=attend_length,
      rows=rows,
    )
    return cache, begin + chunk

  def unfinished(carry: tuple[KVCache, Array]) -> Array:
    return jnp.any(carry[1] < end)

  begin = jnp.maximum(start, 0)
  cache, _ = jax.lax.while_loop(unfinished, body, (cache, begin))
  return constrain_cache(cache)
