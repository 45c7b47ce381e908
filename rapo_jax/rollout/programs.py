"""The one place where a rollout launches device programs.

The host loop hands in small NumPy arrays and gets NumPy arrays back; all that
it does to the devices it does through one object's methods. On several hosts
each has a loop of its own, and `rapo_jax.rollout.joint` stands between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from rapo_jax import hosts
from rapo_jax.models import Decoder, KVCache, sharding, with_adapters_of
from rapo_jax.models.decoder import DecoderLayer
from rapo_jax.rollout import sampler
from rapo_jax.rollout.config import RolloutConfig

_ROWS_READ = 64


class Progress(NamedTuple):
  """Host copy of where `S` slots are after a chunk; see `sampler.SlotState`."""

  active: Bool[np.ndarray, " S"]
  lengths: Int[np.ndarray, " S"]
  automaton: Int[np.ndarray, " S"]


class Contents(NamedTuple):
  """Host copy of what slots of up to `L` tokens hold: of `R`, or of one.

  See `sampler.SlotState` for the fields. Read when a slot has stopped, it holds
  all that a trajectory can end on: an observation or a retrieved step is only
  inserted if the trajectory goes on.
  """

  tokens: Int[np.ndarray, "*R L"]
  log_probs: Float[np.ndarray, "*R L"]
  entropies: Float[np.ndarray, "*R L"]


@runtime_checkable
class SlotPrograms(Protocol):
  """What a host loop does to its slots: `Programs`, or its like for one host.

  The arguments are those of `Programs`.
  """

  def prefill(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
    """Computes the prompts that the next slots start from."""

  def admit(
    self,
    source: np.ndarray,
    limits: np.ndarray,
    queries: np.ndarray,
    indices: np.ndarray,
  ) -> None:
    """Starts sequences in slots."""

  def insert(
    self,
    slots: np.ndarray,
    pieces: np.ndarray,
    counts: np.ndarray,
    limits: np.ndarray,
  ) -> None:
    """Appends tokens to slots, which decode on."""

  def fork(self, *arrays: np.ndarray) -> None:
    """Starts sequences as copies of others."""

  def decode(self) -> Progress:
    """Samples a chunk, and says where the slots are then."""

  def contents(self, slots: np.ndarray) -> Contents:
    """What some slots hold."""

  def hold(self, wait: Callable[[float], None], runnable: bool) -> float | None:
    """Waits for answers before anything else is launched.

    Args:
      wait: waits for them, so many seconds at most.
      runnable: whether slots could go on without them.

    Returns:
      Seconds that it waited; None if it does not want to, and slots go on.
    """


class PromptArrays(NamedTuple):
  """Prompts that are prefilled together, in `R` rows of `P` tokens.

  Attributes:
    tokens: of each prompt, padded at the end.
    lengths: of each prompt; 0 for an unused row.
  """

  tokens: Int[np.ndarray, "R P"]
  lengths: Int[np.ndarray, " R"]


class AdmissionArrays(NamedTuple):
  """Sequences that start in `S` slots.

  Attributes:
    source: row of the prompt that each slot starts from; -1 for none.
    limits: length at which each of them stops decoding.
    queries: 32-bit number of each one's query.
    indices: index of each one in its group.
  """

  source: Int[np.ndarray, " S"]
  limits: Int[np.ndarray, " S"]
  queries: UInt32[np.ndarray, " S"]
  indices: UInt32[np.ndarray, " S"]


class InsertArrays(NamedTuple):
  """Tokens for `R` slots of each part, `N` in all; see `sampler.insert`."""

  slots: Int[np.ndarray, "parts R"]
  pieces: Int[np.ndarray, "N L"]
  counts: Int[np.ndarray, " N"]
  limits: Int[np.ndarray, " N"]


class ForkArrays(NamedTuple):
  """Sequences that start as copies, R in each part; see `sampler.fork`.

  Attributes:
    sources: slot of each one's parent, numbered within the part.
    slots: where each one starts; a number past the end of a part for none.
    lengths: tokens that are kept.
    limits: length at which each of them stops decoding.
    queries: 32-bit number of each one's query.
    indices: index of each one in its group.
  """

  sources: Int[np.ndarray, "parts R"]
  slots: Int[np.ndarray, "parts R"]
  lengths: Int[np.ndarray, " N"]
  limits: Int[np.ndarray, " N"]
  queries: UInt32[np.ndarray, " N"]
  indices: UInt32[np.ndarray, " N"]


def empty_fork(config: RolloutConfig, slot_parts: int) -> ForkArrays:
  """Rows in which nothing starts; arguments as for `empty_insert`."""
  slots = empty_insert(config, slot_parts).slots
  return ForkArrays(
    slots.copy(),
    slots,
    np.ones(slots.size, np.int32),
    np.zeros(slots.size, np.int32),
    np.zeros(slots.size, np.uint32),
    np.zeros(slots.size, np.uint32),
  )


def empty_prompts(config: RolloutConfig, prompt_width: int) -> PromptArrays:
  """Rows without a prompt."""
  rows = config.prefill_rows
  return PromptArrays(
    np.zeros((rows, prompt_width), np.int32), np.zeros(rows, np.int32)
  )


def empty_admission(config: RolloutConfig) -> AdmissionArrays:
  """Slots in which nothing starts."""
  slots = config.num_slots
  return AdmissionArrays(
    np.full(slots, -1, np.int32),
    np.zeros(slots, np.int32),
    np.zeros(slots, np.uint32),
    np.zeros(slots, np.uint32),
  )


def rows_to_read(config: RolloutConfig) -> Int[np.ndarray, " R"]:
  """Numbers of slots whose contents are read together, all 0.

  So many as stop in a chunk of a large batch. All slots would be a gigabyte
  where there are thousands.
  """
  return np.zeros(min(_ROWS_READ, config.num_slots), np.int32)


def empty_insert(config: RolloutConfig, slot_parts: int) -> InsertArrays:
  """Rows that name no slot: a number past the end of a part.

  Args:
    config: number of slots, and of rows of an insert.
    slot_parts: parts that the mesh cuts the slots into.
  """
  part_slots = config.num_slots // slot_parts
  shape = (slot_parts, min(config.insert_rows, part_slots))
  rows = shape[0] * shape[1]
  return InsertArrays(
    np.full(shape, part_slots, np.int32),
    np.zeros((rows, config.max_response_tokens), np.int32),
    np.zeros(rows, np.int32),
    np.zeros(rows, np.int32),
  )


class Call(NamedTuple):
  """A device program and its arguments, concrete or abstract.

  Attributes:
    function: jitted.
    args: arrays.
    static: static arguments by name.
  """

  function: Callable[..., Any]
  args: tuple[Any, ...]
  static: dict[str, Any]

  def __call__(self) -> Any:
    """Runs the program."""
    return self.function(*self.args, **self.static)


def prefill_call(
  model: Decoder, cache: KVCache, prompts: PromptArrays, config: RolloutConfig
) -> Call:
  """Computes the cache of prompts."""
  return Call(
    sampler.prefill,
    (model, cache, *prompts),
    {
      "attend_length": prompts.tokens.shape[1],
      "chunk": config.insert_chunk,
    },
  )


def admit_call(
  state: sampler.SlotState,
  cache: KVCache,
  prompts: PromptArrays,
  arrays: AdmissionArrays,
  keys: Any,
) -> Call:
  """Starts sequences in slots.

  Args:
    state: the slots.
    cache: of the prompts.
    prompts: the tokens that the cache is of.
    arrays: what starts where.
    keys: of `sampler.sequence_keys`, uint32 `[S, 2]`.
  """
  return Call(
    sampler.admit,
    (state, cache, *prompts, arrays.source, arrays.limits, keys),
    {},
  )


def insert_call(
  model: Decoder,
  state: sampler.SlotState,
  arrays: InsertArrays,
  config: RolloutConfig,
) -> Call:
  """Appends tokens to slots."""
  return Call(
    sampler.insert,
    (model, state, *arrays),
    {
      "attend_length": state.tokens.shape[1],
      "chunk": config.insert_chunk,
    },
  )


def fork_call(state: sampler.SlotState, arrays: ForkArrays, keys: Any) -> Call:
  """Starts sequences as copies of others.

  Args:
    state: the slots.
    arrays: what starts where.
    keys: of `sampler.sequence_keys`, uint32 `[N, 2]`.
  """
  return Call(
    sampler.fork,
    (state, arrays.sources, arrays.slots, arrays.lengths, arrays.limits, keys),
    {},
  )


def decode_call(
  model: Decoder,
  state: sampler.SlotState,
  tables: tuple[Any, Any],
  sampling: sampler.Sampling,
  layers: list[DecoderLayer] | None,
  config: RolloutConfig,
) -> Call:
  """Samples a chunk of tokens in every active slot.

  Args:
    model: the policy.
    state: the slots.
    tables: transitions of the stop automaton, int8 `[states, V]`, and tokens
      that end the turn, bool `[V]`.
    sampling: temperature and filters.
    layers: the layers unstacked, see `sampler.layers_apart`.
    config: tokens of a chunk.
  """
  return Call(
    sampler.decode,
    (model, state, *tables, sampling, layers),
    {
      "num_tokens": config.decode_chunk,
      "attend_length": state.tokens.shape[1],
    },
  )


class Programs:
  """The device side of one rollout: its slots, and what happens to them.

  Arrays that its methods take are of the host, or whole on each device.

  Args:
    model: the policy, placed.
    config: shapes.
    mesh: devices that share the slots; None for one device.
    stop_table: transitions of the stop automaton, on the devices.
    eos: token ids that end the turn, on the devices.
    max_length: tokens that a slot holds.
    prompt_width: tokens that a prompt's row holds.
    seed: of sampling.
    update: number of updates behind the policy.
    greedy: take the likeliest tokens.
  """

  def __init__(
    self,
    model: Decoder,
    config: RolloutConfig,
    *,
    mesh: jax.sharding.Mesh | None,
    stop_table: Int[Array, "states V"],
    eos: Bool[Array, " V"],
    max_length: int,
    prompt_width: int,
    seed: int,
    update: int,
    greedy: bool,
  ):
    self._model = model
    self._config = config
    self._mesh = mesh
    self._stop_table = stop_table
    self._eos = eos
    self._seed = seed
    self._update = update
    self._sampling = sampler.GREEDY if greedy else sampler.sampling(config)
    with sharding.use_mesh(mesh):
      self._state = sampler.init_slots(model, config.num_slots, max_length)
      self._prompt_cache = sampler.init_prompt_cache(
        model, config.prefill_rows, prompt_width
      )
      self._layers = sampler.layers_apart(model)
    self._prompts = empty_prompts(config, prompt_width)

  @hosts.led
  def prefill(self, tokens: Int[Any, "R P"], lengths: Int[Any, " R"]) -> None:
    """Computes the prompts that the next slots start from, and waits."""
    self._prompts = PromptArrays(tokens, lengths)
    with sharding.use_mesh(self._mesh):
      self._prompt_cache = prefill_call(
        self._model, self._prompt_cache, self._prompts, self._config
      )()
    jax.block_until_ready(self._prompt_cache)

  @hosts.led
  def admit(
    self,
    source: Int[Any, " S"],
    limits: Int[Any, " S"],
    queries: UInt32[Any, " S"],
    indices: UInt32[Any, " S"],
  ) -> None:
    """Starts sequences in slots.

    Args:
      source: row of the prompt that each slot starts from; -1 for none.
      limits: length at which each of them stops decoding.
      queries: 32-bit number of each one's query.
      indices: index of each one in its group.
    """
    with sharding.use_mesh(self._mesh):
      keys = sampler.sequence_keys(
        self._seed, jnp.int32(self._update), queries, indices
      )
      self._state = admit_call(
        self._state,
        self._prompt_cache,
        self._prompts,
        AdmissionArrays(source, limits, queries, indices),
        keys,
      )()

  @hosts.led
  def insert(
    self,
    slots: Int[Any, "parts R"],
    pieces: Int[Any, "N L"],
    counts: Int[Any, " N"],
    limits: Int[Any, " N"],
  ) -> None:
    """Appends tokens to slots, which decode on; see `sampler.insert`. Waits."""
    with sharding.use_mesh(self._mesh):
      self._state = insert_call(
        self._model,
        self._state,
        InsertArrays(slots, pieces, counts, limits),
        self._config,
      )()
    jax.block_until_ready(self._state.lengths)

  @hosts.led
  def fork(self, *arrays: Any) -> None:
    """Starts sequences as copies of others, and waits.

    Args:
      *arrays: those of `ForkArrays`, in order.
    """
    forks = ForkArrays(*arrays)
    with sharding.use_mesh(self._mesh):
      keys = sampler.sequence_keys(
        self._seed, jnp.int32(self._update), forks.queries, forks.indices
      )
      self._state = fork_call(self._state, forks, keys)()
    jax.block_until_ready(self._state.lengths)

  def decode(self) -> Progress:
    """Samples a chunk, and says where the slots are then."""
    self.advance()
    # Copies: a view of a donated buffer would change under our hands.
    return Progress(*map(np.array, self.slot_arrays(Progress._fields)))

  @hosts.led
  def advance(self) -> None:
    """Samples a chunk."""
    with sharding.use_mesh(self._mesh):
      self._state = decode_call(
        self._model,
        self._state,
        (self._stop_table, self._eos),
        self._sampling,
        self._layers,
        self._config,
      )()

  def contents(self, slots: Int[np.ndarray, " R"]) -> Contents:
    """What some slots hold: the larger part, for when it is needed.

    Args:
      slots: their numbers, as many as `rows_to_read` has.
    """
    with sharding.use_mesh(self._mesh):
      rows = sampler.gather_rows(self.slot_arrays(Contents._fields), slots)
    return Contents(*map(np.asarray, rows))

  def hold(self, wait: Callable[[float], None], runnable: bool) -> float | None:
    """See `SlotPrograms.hold`: a host that is alone waits."""
    del runnable
    began = time.perf_counter()
    wait(math.inf)
    return time.perf_counter() - began

  def finish(self) -> None:
    """Ends the rollout; a host that is alone waits for no other."""

  def slot_arrays(self, names: Sequence[str]) -> list[Array]:
    """Fields of the slots, as they lie on the devices; see `SlotState`."""
    return [getattr(self._state, name) for name in names]

  @hosts.led
  def wait(self) -> None:
    """Waits until the devices have done what was launched."""
    jax.block_until_ready(self._state.lengths)


class DeviceSide:
  """What an engine keeps on the devices between its rollouts.

  Args:
    config: shapes.
    mesh: devices that share the slots and the policy; None for one device.
    stop_table: transitions of the stop automaton.
    eos: tokens that end the turn.
    max_length: tokens that a slot holds.
    prompt_width: tokens that a prompt's row holds.
    policy: one with adapters whose base is that of every rollout; or None.
  """

  def __init__(
    self,
    config: RolloutConfig,
    mesh: jax.sharding.Mesh | None,
    *,
    stop_table: Int[np.ndarray, "states V"],
    eos: Bool[np.ndarray, " V"],
    max_length: int,
    prompt_width: int,
    policy: Decoder | None,
  ):
    self._config = config
    self._mesh = mesh
    self._tables = sharding.replicate((stop_table, eos), mesh)
    self._max_length = max_length
    self._prompt_width = prompt_width
    self._placed: Decoder | None = None
    if policy is not None and policy.config.lora is not None:
      self._placed = self._own_copy(policy)

  def start(
    self, model: Decoder, *, seed: int, update: int, greedy: bool
  ) -> Programs:
    """Empty slots for a rollout.

    Args:
      model: the policy, wherever it lies and in whatever dtype.
      seed: of sampling.
      update: number of updates behind the policy.
      greedy: take the likeliest tokens.
    """
    stop_table, eos = self._tables
    return Programs(
      self._place(model)
      if self._placed is None
      else with_adapters_of(self._placed, model),
      self._config,
      mesh=self._mesh,
      stop_table=stop_table,
      eos=eos,
      max_length=self._max_length,
      prompt_width=self._prompt_width,
      seed=seed,
      update=update,
      greedy=greedy,
    )

  def _place(self, model: Decoder) -> Decoder:
    return sharding.place(
      model,
      mesh=self._mesh,
      rules=sharding.ROLLOUT_RULES,
      dtype=self._config.dtype,
    )

  def _own_copy(self, policy: Decoder) -> Decoder | None:
    """The policy placed, if that made arrays of its own.

    Others may be donated away by an update.
    """
    if self._mesh is None:
      return None
    placed = self._place(policy)
    return None if placed is policy else placed
