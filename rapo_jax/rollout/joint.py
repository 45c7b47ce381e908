"""The device programs of several hosts, each of which runs a loop of its own.

Every host has to launch each program, all in one order. So before each one the
hosts say what they would launch next, and the first kind in `_Wish` is launched
by all: one that has nothing for it takes part with empty rows. What a loop
hands in goes to the devices of all hosts; what it reads lies on its own.

A chunk is decoded when nobody has anything else to launch. One whose slots all
wait for tools takes part without waiting for them. One that would rather wait
for answers goes on as soon as another decodes. So no tool holds up another
host's slots.
"""

from __future__ import annotations

import collections
import enum
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt32

from rapo_jax import hosts
from rapo_jax.rollout import sampler
from rapo_jax.rollout.config import RolloutConfig
from rapo_jax.rollout.exchange import Exchange
from rapo_jax.rollout.programs import (
  Contents,
  Programs,
  Progress,
  empty_admission,
  empty_fork,
  empty_insert,
  empty_prompts,
)
from rapo_jax.rollout.shares import Shares

_POLL_S = 0.005
"""Seconds that all wait for answers before they ask each other again."""


class _Wish(enum.IntEnum):
  """What a host would do next; of two the greater comes first."""

  END = 0
  """It has no trajectory left."""
  IDLE = 1
  """All its slots wait for answers."""
  HOLD = 2
  """Most do, so it would rather wait for those than decode the others."""
  DECODE = 3
  FORK = 4
  INSERT = 5
  ADMIT = 6
  PREFILL = 7


class JointPrograms:
  """What `Programs` is for a host alone, for one of several.

  Slots, parts and prompts are this host's, numbered from 0.

  Args:
    programs: of all slots.
    config: shapes of this host's loop.
    shares: which parts of the slots are its own.
    mesh: the devices.
    prompt_width: tokens that a prompt's row holds.

  Attributes:
    decode_seconds: in which its devices decoded, and it read what came out.
    cache_seconds: in which they did anything else.
    waited_seconds: in which it waited for the wishes of others.
  """

  def __init__(
    self,
    programs: Programs,
    config: RolloutConfig,
    shares: Shares,
    mesh: jax.sharding.Mesh,
    *,
    prompt_width: int,
  ):
    self._programs = programs
    self._config = config
    self._shares = shares
    self._exchange = Exchange(mesh)
    self._part_slots = config.num_slots // max(len(shares.own), 1)
    # Those that wait for slots; they are computed again for other hosts'.
    self._prompts = empty_prompts(config, prompt_width)
    self.decode_seconds = self.cache_seconds = self.waited_seconds = 0.0

  def prefill(
    self, tokens: Int[np.ndarray, "R P"], lengths: Int[np.ndarray, " R"]
  ) -> None:
    """See `Programs.prefill`."""
    self._prompts = type(self._prompts)(tokens, lengths)
    self._take_turn(_Wish.PREFILL, self._prompts)

  def admit(
    self,
    source: Int[np.ndarray, " S"],
    limits: Int[np.ndarray, " S"],
    queries: UInt32[np.ndarray, " S"],
    indices: UInt32[np.ndarray, " S"],
  ) -> None:
    """See `Programs.admit`."""
    self._take_turn(_Wish.ADMIT, (source, limits, queries, indices))

  def insert(
    self,
    slots: Int[np.ndarray, "parts R"],
    pieces: Int[np.ndarray, "N L"],
    counts: Int[np.ndarray, " N"],
    limits: Int[np.ndarray, " N"],
  ) -> None:
    """See `Programs.insert`."""
    self._take_turn(_Wish.INSERT, (slots, pieces, counts, limits))

  def fork(self, *arrays: np.ndarray) -> None:
    """See `Programs.fork`."""
    self._take_turn(_Wish.FORK, arrays)

  def decode(self) -> Progress:
    """See `Programs.decode`."""
    self._take_turn(_Wish.DECODE, ())
    return self._progress()

  def contents(self, slots: Int[np.ndarray, " R"]) -> Contents:
    """See `Programs.contents`; other hosts take no part."""
    began = time.perf_counter()
    parts = slots // self._part_slots
    found: Contents | None = None
    for part in np.unique(parts):
      arrays = [
        self._own(array)[part]
        for array in self._programs.slot_arrays(Contents._fields)
      ]
      rows = sampler.gather_rows(arrays, slots % self._part_slots)
      if found is None:
        found = Contents(*map(np.array, rows))
      else:
        here = parts == part
        for array, row in zip(found, rows, strict=True):
          array[here] = np.asarray(row)[here]
    assert found is not None  # There is a row at least.
    self.decode_seconds += time.perf_counter() - began
    return found

  def hold(self, wait: Callable[[float], None], runnable: bool) -> float | None:
    """See `Programs.hold`; takes part in what other hosts launch meanwhile."""
    wish = _Wish.HOLD if runnable else _Wish.IDLE
    chosen = self._agreed(wish)
    if chosen is None:
      return None if runnable else 0.0
    if chosen > _Wish.HOLD:
      self._take_part(chosen)
      return 0.0
    began = time.perf_counter()
    wait(_POLL_S)
    return time.perf_counter() - began

  def finish(self) -> None:
    """Takes part in what other hosts launch, until all have ended."""
    while (chosen := self._agreed(_Wish.END)) is not _Wish.END:
      if chosen is not None and chosen > _Wish.HOLD:
        self._take_part(chosen)

  def _agreed(self, wish: _Wish) -> _Wish | None:
    """What all do next; None where those that hold go on first."""
    began = time.perf_counter()
    with hosts.waiting():
      [wishes] = self._exchange([np.array([[wish]], np.int32)])
      there = collections.Counter(map(_Wish, np.asarray(wishes).tolist()))
    self.waited_seconds += time.perf_counter() - began
    first = max(there)
    if first is _Wish.DECODE and _Wish.HOLD in there:
      return None
    return first

  def _take_turn(self, wish: _Wish, arrays: Sequence[np.ndarray]) -> None:
    """Launches a program, after those that come first."""
    while (chosen := self._agreed(wish)) is not wish:
      if chosen is not None:
        self._take_part(chosen)
    self._launch(wish, arrays)

  def _take_part(self, wish: _Wish) -> None:
    """Launches a program that only others have something for."""
    config, parts = self._config, max(len(self._shares.own), 1)
    arrays: Sequence[np.ndarray] = ()
    if wish is _Wish.PREFILL:
      arrays = self._prompts
    elif wish is _Wish.ADMIT:
      arrays = empty_admission(config)
    elif wish is _Wish.INSERT:
      arrays = empty_insert(config, parts)
    elif wish is _Wish.FORK:
      arrays = empty_fork(config, parts)
    self._launch(wish, arrays)

  def _launch(self, wish: _Wish, arrays: Sequence[np.ndarray]) -> None:
    """Launches a program with what is this host's, and waits for a chunk."""
    began = time.perf_counter()
    if wish is _Wish.DECODE:
      self._programs.advance()
      self._programs.wait()
      self.decode_seconds += time.perf_counter() - began
      return
    if wish is _Wish.PREFILL:
      self._programs.prefill(*self._exchange([a[None] for a in arrays]))
    elif wish is _Wish.ADMIT:
      source, *rest = arrays
      # The prompts of all hosts are numbered through.
      first = self._shares.host * self._config.prefill_rows
      source = np.where(source < 0, source, source + first).astype(np.int32)
      self._programs.admit(*self._of_all([source, *rest]))
    elif wish is _Wish.INSERT:
      self._programs.insert(*self._of_all(arrays))
    else:
      self._programs.fork(*self._of_all(arrays))
    self.cache_seconds += time.perf_counter() - began

  def _of_all(self, arrays: Sequence[np.ndarray]) -> list[Any]:
    """Arrays of the parts of all hosts, from those of this host's parts."""
    own, most = max(len(self._shares.own), 1), self._shares.most
    filled = []
    for array in arrays:
      # Some have an axis of parts, others the rows of one part after another.
      parts = array.reshape(own, -1, *array.shape[1:])
      filled.append(np.zeros((most, *parts.shape[1:]), array.dtype))
      filled[-1][:own] = parts
    return self._exchange(filled, self._shares.places)

  def _progress(self) -> Progress:
    """Where this host's slots are."""
    return Progress(
      *(
        np.concatenate([np.asarray(part) for part in self._own(array)])
        for array in self._programs.slot_arrays(Progress._fields)
      )
    )

  def _own(self, array: Any) -> list[Any]:
    """The parts of an array of all slots that are this host's, on one device.

    Args:
      array: `[S, ...]`.
    """
    size = self._part_slots
    there = {
      (shard.index[0].start or 0) // size: shard.data
      for shard in array.addressable_shards
      if len(shard.data) == size
    }
    return [there[part] for part in self._shares.own]
