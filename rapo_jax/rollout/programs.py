"""The one place where a rollout launches device programs.

The host loop hands in small NumPy arrays and gets NumPy arrays back; all that
it does to the devices it does through one object's methods. On several
processes the calls of one can therefore be repeated by the others, see
`rapo_jax.rollout.processes`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from rapo_jax.models import Decoder, sharding
from rapo_jax.rollout import sampler
from rapo_jax.rollout.config import RolloutConfig


class Progress(NamedTuple):
  """Host copy of where `S` slots are after a chunk; see `sampler.SlotState`."""

  active: Bool[np.ndarray, " S"]
  lengths: Int[np.ndarray, " S"]
  automaton: Int[np.ndarray, " S"]


class Contents(NamedTuple):
  """Host copy of what `S` slots of up to `L` tokens hold.

  See `sampler.SlotState` for the fields. Read when a slot has stopped, it holds
  all that a trajectory can end on: an observation or a retrieved step is only
  inserted if the trajectory goes on.
  """

  tokens: Int[np.ndarray, "S L"]
  log_probs: Float[np.ndarray, "S L"]
  entropies: Float[np.ndarray, "S L"]


class Programs:
  """The device side of one rollout: its slots, and what happens to them.

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
    self._max_length = max_length
    self._prompt_width = prompt_width
    self._seed = seed
    self._update = update
    self._sampling = sampler.GREEDY if greedy else sampler.sampling(config)
    with sharding.use_mesh(mesh):
      self._state = sampler.init_slots(model, config.num_slots, max_length)
      self._prompt_cache = sampler.init_prompt_cache(
        model, config.prefill_rows, prompt_width
      )
      self._layers = sampler.layers_apart(model)
    self._prompts = (np.zeros((0, 0), np.int32), np.zeros(0, np.int32))

  def prefill(
    self, tokens: Int[np.ndarray, "R P"], lengths: Int[np.ndarray, " R"]
  ) -> None:
    """Computes the prompts that the next slots start from, and waits."""
    self._prompts = (tokens, lengths)
    with sharding.use_mesh(self._mesh):
      self._prompt_cache = sampler.prefill(
        self._model,
        self._prompt_cache,
        *self._prompts,
        attend_length=self._prompt_width,
        chunk=self._config.insert_chunk,
      )
    jax.block_until_ready(self._prompt_cache)

  def admit(
    self,
    source: Int[np.ndarray, " S"],
    limits: Int[np.ndarray, " S"],
    queries: UInt32[np.ndarray, " S"],
    indices: UInt32[np.ndarray, " S"],
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
      self._state = sampler.admit(
        self._state, self._prompt_cache, *self._prompts, source, limits, keys
      )

  def insert(
    self,
    slots: Int[np.ndarray, "parts R"],
    pieces: Int[np.ndarray, "N L"],
    counts: Int[np.ndarray, " N"],
    limits: Int[np.ndarray, " N"],
  ) -> None:
    """Appends tokens to slots, which decode on; see `sampler.insert`. Waits."""
    with sharding.use_mesh(self._mesh):
      self._state = sampler.insert(
        self._model,
        self._state,
        slots,
        pieces,
        counts,
        limits,
        attend_length=self._max_length,
        chunk=self._config.insert_chunk,
      )
    jax.block_until_ready(self._state.lengths)

  def decode(self) -> Progress:
    """Samples a chunk, and says where the slots are then."""
    with sharding.use_mesh(self._mesh):
      self._state = sampler.decode(
        self._model,
        self._state,
        self._stop_table,
        self._eos,
        self._sampling,
        self._layers,
        num_tokens=self._config.decode_chunk,
        attend_length=self._max_length,
      )
    return Progress(*self._read(Progress._fields))

  def contents(self) -> Contents:
    """What the slots hold: the larger part, for when it is needed."""
    return Contents(*self._read(Contents._fields))

  def _read(self, fields: tuple[str, ...]) -> list[np.ndarray]:
    arrays = [getattr(self._state, name) for name in fields]
    if self._mesh is not None and self._mesh.is_multi_process:
      with sharding.use_mesh(self._mesh):
        arrays = sampler.gather(arrays)
    # Copies: a view of a donated buffer would change under our hands.
    return [np.array(array) for array in arrays]
