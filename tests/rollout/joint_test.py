"""Hosts whose loops want different things launch the same in the same order.

Each host is a thread here; what their devices exchange goes through a barrier.
"""

import concurrent.futures
import threading
import types

import jax
import numpy as np
import pytest

from rapo_jax.models import sharding
from rapo_jax.rollout import RolloutConfig, joint
from rapo_jax.rollout.programs import (
  Contents,
  Programs,
  empty_admission,
  empty_fork,
  empty_insert,
  empty_prompts,
)
from rapo_jax.rollout.shares import Shares

TIMEOUT_S = 60
KINDS = ("prefill", "admit", "insert", "fork", "decode", "hold")
MESH = sharding.make_mesh(devices=jax.devices()[:1])
OWNERS = (1, 0, 2, 1)
PART_SLOTS = 2
CONFIG = RolloutConfig(
  num_slots=PART_SLOTS * len(OWNERS),
  prefill_rows=6,
  insert_rows=2,
  max_response_tokens=4,
)


class Room:
  """Where hosts meet: each gets what all have brought."""

  def __init__(self, count):
    self._brought = [None] * count
    self._barrier = threading.Barrier(count, timeout=TIMEOUT_S)

  def exchange(self, host, arrays, places=None):
    self._brought[host] = arrays
    self._barrier.wait()
    found = []
    for parts in zip(*self._brought, strict=True):
      whole = np.concatenate(parts)
      whole = whole if places is None else whole[list(places)]
      found.append(whole.reshape(-1, *whole.shape[2:]))
    self._barrier.wait()
    return found


def keeping(name):
  def call(self, *arrays):
    self.calls.append((name, [np.array(array).tolist() for array in arrays]))

  return call


class Launched(Programs):
  """Device programs that keep what they were launched with."""

  def __init__(self):
    self.calls = []

  prefill = keeping("prefill")
  admit = keeping("admit")
  insert = keeping("insert")
  fork = keeping("fork")
  advance = keeping("advance")

  def wait(self):
    pass

  def slot_arrays(self, names):
    """Slots that are active where their number is even."""
    values = np.arange(CONFIG.num_slots)
    if names == Contents._fields:
      values = np.repeat(values[:, None], 3, axis=1)
    parts = np.split(values, len(OWNERS))
    shards = [
      types.SimpleNamespace(
        index=(slice(n * PART_SLOTS, (n + 1) * PART_SLOTS),), data=part
      )
      for n, part in enumerate(parts)
    ]
    return [types.SimpleNamespace(addressable_shards=shards) for _ in names]


@pytest.fixture
def meet(monkeypatch):
  """Runs a function for each host, side by side."""

  def run(act, count=3):
    room = Room(count)
    here = threading.local()
    monkeypatch.setattr(
      joint,
      "Exchange",
      lambda mesh: lambda *args, host=here.host: room.exchange(host, *args),
    )

    def one(host):
      here.host = host
      launched, shares = Launched(), Shares(OWNERS, count, host)
      programs = joint.JointPrograms(
        *(launched, shares.of_one(CONFIG), shares, MESH), prompt_width=4
      )
      return act(host, programs), launched.calls

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
      return list(pool.map(one, range(count), timeout=TIMEOUT_S))

  return run


def arrays_of(kind, host):
  """What a host hands in: its number plus one, everywhere."""
  shares = Shares(OWNERS, 3, host)
  config, parts = shares.of_one(CONFIG), len(shares.own)
  made = {
    "prefill": lambda: empty_prompts(config, 4),
    "admit": lambda: empty_admission(config),
    "insert": lambda: empty_insert(config, parts),
    "fork": lambda: empty_fork(config, parts),
  }[kind]()
  return type(made)(*(np.full_like(array, host + 1) for array in made))


@pytest.mark.parametrize("seed", range(8))
def test_all_launch_the_same_whatever_each_wants(meet, seed):
  handed = [[] for _ in range(3)]

  def act(host, programs):
    rng = np.random.default_rng([seed, host])
    for _ in range(rng.integers(0, 12)):
      kind = rng.choice(KINDS)
      if kind == "decode":
        programs.decode()
      elif kind == "hold":
        # One that could go on does so when it is asked to.
        runnable = bool(rng.integers(2))
        if programs.hold(lambda most_s: None, runnable) is None:
          assert runnable
          programs.decode()
      else:
        getattr(programs, kind)(*arrays_of(kind, host))
        handed[host].append(kind)
    programs.finish()

  launched = [calls for _, calls in meet(act)]
  assert launched[0] == launched[1] == launched[2]
  # Each host's rows went in as often as it handed some in, in their places.
  for kind in ("admit", "insert", "fork"):
    times = [0, 0, 0]
    for name, arrays in launched[0]:
      if name == kind:
        by_part = np.array(arrays[-1]).reshape(len(OWNERS), -1)
        for owner, own in zip(OWNERS, by_part, strict=True):
          assert {*own.tolist()} <= {0, owner + 1}
        for host in range(3):
          times[host] += int(np.any(by_part == host + 1))
    assert times == [own.count(kind) for own in handed]


def test_prompts_that_wait_are_computed_again_for_those_of_others(meet):
  def act(host, programs):
    if host < 2:
      programs.prefill(*arrays_of("prefill", host))
    if host == 1:
      programs.prefill(*arrays_of("prefill", host))
      source = np.full(2 * PART_SLOTS, -1, np.int32)
      source[1] = 1
      zeros = np.zeros(2 * PART_SLOTS, np.uint32)
      programs.admit(source, zeros.astype(np.int32), zeros, zeros)
    programs.finish()

  [first, second, admitted] = meet(act)[0][1]
  lengths = [1, 1, 2, 2, 0, 0]
  assert first[0] == second[0] == "prefill"
  assert first[1][1] == second[1][1] == lengths
  # Its second prompt, in the second slot of its first part.
  assert admitted[1][0] == [-1, 3, -1, -1, -1, -1, -1, -1]


def test_a_host_whose_slots_wait_takes_part_in_decoding(meet):
  def act(host, programs):
    waited = []
    if host == 0:
      programs.decode()
    else:
      waited.append(programs.hold(lambda most_s: 1 / 0, runnable=False))
      assert programs.decode_seconds > 0
    programs.finish()
    return waited

  found = meet(act)
  assert [waited for waited, _ in found] == [[], [0.0], [0.0]]
  assert [name for name, _ in found[1][1]] == ["advance"]


def test_a_host_that_holds_goes_on_when_another_decodes(meet):
  def act(host, programs):
    if host == 2:
      assert programs.hold(lambda most_s: 1 / 0, runnable=True) is None
      programs.insert(*arrays_of("insert", host))
    programs.decode()
    programs.finish()

  # What it inserts comes before the chunk.
  for _, calls in meet(act):
    assert [name for name, _ in calls] == ["insert", "advance"]


def test_where_all_wait_they_ask_each_other_again_soon(meet):
  def act(host, programs):
    waits = []
    seconds = programs.hold(waits.append, runnable=host == 1)
    programs.finish()
    return waits, seconds

  for (waits, seconds), calls in meet(act):
    assert waits == [joint._POLL_S]
    assert 0 <= seconds < 1
    assert not calls


def test_a_host_reads_its_own_slots_alone(meet):
  def act(host, programs):
    progress = programs.decode()
    slots = np.arange(len(progress.lengths))[::-1]
    contents = programs.contents(slots) if host else None
    programs.finish()
    return progress.lengths.tolist(), contents

  found = [own for own, _ in meet(act)]
  assert [lengths for lengths, _ in found] == [[2, 3], [0, 1, 6, 7], [4, 5]]
  for lengths, contents in found[1:]:
    rows = np.repeat(np.array(lengths[::-1])[:, None], 3, axis=1)
    np.testing.assert_array_equal(contents.tokens, rows)
    np.testing.assert_array_equal(contents.entropies, rows)


def test_a_host_without_slots_only_takes_part(meet):
  def act(host, programs):
    if host < 3:
      programs.decode()
    programs.finish()

  assert [len(calls) for _, calls in meet(act, count=4)] == [1] * 4
