"""One host loop for several processes: one leads, the others do as it does.

All processes whose devices a program uses have to launch it. All launch their
programs in the same order. Which program comes next in a rollout depends on
tools and on a clock. So one process alone runs the host loop. It tells the
others, before each launch, what it launches and with which arrays. That goes
through the key-value store with which `jax.distributed` starts the processes,
not through the devices. So processes that wait for a slow tool wait idle, and
hear of an error at any time.
"""

from __future__ import annotations

import itertools
import pickle
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from rapo_jax.errors import InputError

LEADER = 0
"""Index of the process that runs the host loop."""

_PATIENCE_MS = 24 * 60 * 60 * 1000  # A leader that dies is noticed at once.
_PIECE_BYTES = 1 << 20

Target = TypeVar("Target")
Result = TypeVar("Result")

# Each has a number: every process makes the same ones in the same order.
_numbers = itertools.count()


class LeaderFailed(RuntimeError):
  """The process that leads raised an error, which it reports itself."""


def run_led(
  mesh: jax.sharding.Mesh, target: Target, lead: Callable[[Target], Result]
) -> Result:
  """Runs a host loop in one process, and what it does to the devices in all.

  To be called by every process, in the same order.

  Args:
    mesh: devices of all processes.
    target: its methods launch programs. They take NumPy arrays, and return
      what the leader wants to know.
    lead: the host loop, given something to be called like the target. Runs in
      the leader alone.

  Returns:
    What the host loop returned, in every process; it has to be picklable.

  Raises:
    InputError: a process has no device in the mesh.
    LeaderFailed: in the others, when the host loop raised.
  """
  taking_part = {device.process_index for device in mesh.devices.flat}
  if len(taking_part) < jax.process_count():
    raise InputError(
      "a mesh over several processes must have devices of all "
      f"{jax.process_count()}, this one has those of {len(taking_part)}: make "
      "it of all devices."
    )
  channel = _Channel(next(_numbers))
  if jax.process_index() == LEADER:
    content = _lead(channel, target, lead)
    size = len(content)
  else:
    size = _follow(channel, target)
    content = bytes(size)
  result = pickle.loads(_broadcast(content))
  channel.close()
  return result


class _Call(NamedTuple):
  """A method of the target to call."""

  name: str
  arguments: tuple[Any, ...]


class _Failure(NamedTuple):
  """The end of a host loop that raised."""

  text: str


class _End(NamedTuple):
  """The end of a host loop, whose result has so many bytes."""

  size: int


class _Channel:
  """Messages from the leader to all others, in order."""

  def __init__(self, number: int):
    # Not public, and the only way there is to talk outside of device programs.
    from jax._src import distributed

    self._client: Any = distributed.global_state.client
    self._name = f"rapo_jax/led/{number}"
    self._messages = itertools.count()

  def send(self, message: _Call | _Failure | _End) -> None:
    # Little is to be sent and much of it is padding.
    content = zlib.compress(pickle.dumps(message), level=1)
    self._client.key_value_set_bytes(self._next_key(), content)

  def receive(self) -> _Call | _Failure | _End:
    content = self._client.blocking_key_value_get_bytes(
      self._next_key(), _PATIENCE_MS
    )
    return pickle.loads(zlib.decompress(content))

  def close(self) -> None:
    """Drops the messages once everybody has read them."""
    self._client.wait_at_barrier(f"{self._name}/end", _PATIENCE_MS)
    if jax.process_index() == LEADER:
      self._client.key_value_delete(self._name)

  def _next_key(self) -> str:
    return f"{self._name}/{next(self._messages)}"


class _Announced:
  """Calls a target's methods, each after telling the others."""

  def __init__(self, target: Any, channel: _Channel):
    self._target = target
    self._channel = channel

  def __getattr__(self, name: str) -> Callable[..., Any]:
    method = getattr(self._target, name)

    def call(*arguments: Any) -> Any:
      self._channel.send(_Call(name, arguments))
      return method(*arguments)

    return call


def _lead(
  channel: _Channel, target: Target, lead: Callable[[Target], Any]
) -> bytes:
  try:
    content = pickle.dumps(lead(cast(Target, _Announced(target, channel))))
  except BaseException as error:
    # Whatever ends this process must end those that wait for it.
    channel.send(_Failure(f"{type(error).__name__}: {error}"))
    raise
  channel.send(_End(len(content)))
  return content


def _follow(channel: _Channel, target: Any) -> int:
  """Does as the leader does; returns the size of the result."""
  while True:
    message = channel.receive()
    if isinstance(message, _End):
      return message.size
    if isinstance(message, _Failure):
      raise LeaderFailed(
        f"process {LEADER} runs the host loop for all and failed in it: "
        f"{message.text}; see what it reports."
      )
    getattr(target, message.name)(*message.arguments)


def _broadcast(content: bytes) -> bytes:
  """The leader's bytes, through the devices, which are faster than the store.

  Args:
    content: in the others, as many bytes of any value.
  """
  pieces = []
  for start in range(0, len(content), _PIECE_BYTES):
    # All of one shape: the program is compiled once.
    piece = np.zeros(_PIECE_BYTES, np.uint8)
    part = content[start : start + _PIECE_BYTES]
    piece[: len(part)] = np.frombuffer(part, np.uint8)
    pieces.append(
      multihost_utils.broadcast_one_to_all(
        piece, is_source=jax.process_index() == LEADER
      )
    )
  return np.concatenate(pieces).tobytes()[: len(content)]
