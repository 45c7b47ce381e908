"""Functions that one host calls and that run on all of them.

Every process whose devices a program uses has to launch it, all programs in one
order. Which comes next depends on files, tools and a clock. So one process
alone decides. Functions that launch programs on devices of several processes
are decorated with `led`. Called by the leader, such a function is named to the
others first, with its arguments, and they call it too.

What a led function returns and others take stays where it is: every host keeps
its own and gives it the same number. Such objects are of classes that are
`held`. When the leader drops one, so do the others.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax

from rapo_jax.errors import InputError
from rapo_jax.hosts import plain

Send = Callable[[bytes], None]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Class = TypeVar("_Class", bound=type)

_functions: dict[str, Callable[..., Any]] = {}
_held: dict[type, Callable[[Any], Any]] = {}
_leaders: list[Leader] = []


def led(
  function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
  """Decorates a function or method that launches programs on all devices.

  It runs on all hosts where this one leads and one of its arguments is an
  object that all have. Else it is called as it stands.

  Args:
    function: takes plain values (see `plain.encode`) and held objects. It must
      do the same to the devices wherever it is called.
  """
  name = f"{function.__module__}:{function.__qualname__}"
  _functions[name] = function

  @functools.wraps(function)
  def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
    if not _leaders or not _leaders[-1].shares(args, kwargs):
      return function(*args, **kwargs)
    return _leaders[-1].run(name, function, args, kwargs)

  return call


def held(
  anchor: Callable[[Any], Any] = lambda thing: thing,
) -> Callable[[_Class], _Class]:
  """Decorates a class whose objects every host keeps.

  Args:
    anchor: the part of an object that lives as long as it and can be referred
      to weakly; the object itself by default. An anchor of a held class is
      held too.
  """

  def decorate(cls: _Class) -> _Class:
    _held[cls] = anchor
    return cls

  return decorate


class _Numbers:
  """Numbers of what led functions return, the same on every host."""

  def __init__(self, shared: Sequence[Any]):
    self.shared = tuple(shared)
    self._next = len(self.shared)

  def take(self) -> int:
    self._next += 1
    return self._next - 1

  @staticmethod
  def held_in(result: Any) -> Iterator[Any]:
    """Objects of held classes in a result, in order."""
    if type(result) in _held:
      yield result
      part = _held[type(result)](result)
      if part is not result and type(part) in _held:
        yield part
    elif isinstance(result, tuple | list):
      for item in result:
        yield from _Numbers.held_in(item)


class Doing(NamedTuple):
  """A led function that a host is in.

  Attributes:
    function: its name.
    began: when it was called, by `time.monotonic`.
  """

  function: str
  began: float


class Leader:
  """The side of the host that leads.

  Args:
    send: sends to all others.
    shared: objects that every host has from the start, in the same order.

  Attributes:
    doing: the led function that it is in, if any.
  """

  def __init__(self, send: Send, shared: Sequence[Any] = ()):
    self._send = send
    self._numbers = _Numbers(shared)
    # By class and address; the reference tells an object from a later one.
    self._known: dict[tuple[type, int], tuple[int, weakref.ref[Any]]] = {}
    self._dropped: collections.deque[int] = collections.deque()
    self.doing: Doing | None = None
    self._thread = threading.get_ident()

  def shares(self, args: Any, kwargs: Any) -> bool:
    """Whether a call has to run everywhere."""
    if self.doing is not None:
      return False  # Within a led function, which the others run whole.
    return any(
      self.number(value) is not None for value in (*args, *kwargs.values())
    )

  def run(
    self,
    name: str,
    function: Callable[..., _Result],
    args: Any,
    kwargs: Any,
  ) -> _Result:
    """Calls a function here and on all others."""
    if threading.get_ident() != self._thread:
      raise RuntimeError(
        f"what runs on all hosts starts in one thread, got {name} in "
        f"{threading.current_thread().name}: call it from the main thread."
      )
    message = {
      "function": name,
      "args": list(args),
      "kwargs": dict(kwargs),
      "dropped": self._gone(),
    }
    self._send(plain.encode(message, self.number))
    self.doing = Doing(name, time.monotonic())
    try:
      result = function(*args, **kwargs)
    finally:
      self.doing = None
    for thing in _Numbers.held_in(result):
      self._hold(thing)
    return result

  def number(self, value: Any) -> int | None:
    """Number of what every host has; None for all else."""
    if type(value) in _held:
      part = _held[type(value)](value)
      number, there = self._known.get((type(value), id(part)), (0, None))
      if there is not None and there() is part:
        return number
    for number, thing in enumerate(self._numbers.shared):
      if value is thing or (type(value) is type(thing) and value == thing):
        return number
    return None

  def _hold(self, thing: Any) -> None:
    number = self._numbers.take()
    part = _held[type(thing)](thing)
    self._known[type(thing), id(part)] = number, weakref.ref(part)
    # In whatever thread it happens: only a note is made.
    weakref.finalize(part, self._dropped.append, number).atexit = False

  def _gone(self) -> list[int]:
    """Numbers of what this host has dropped since it was asked last."""
    numbers = [self._dropped.popleft() for _ in range(len(self._dropped))]
    if numbers:
      gone = {*numbers}
      self._known = {k: v for k, v in self._known.items() if v[0] not in gone}
    return numbers


@contextlib.contextmanager
def leading(leader: Leader) -> Iterator[None]:
  """Led functions run on all hosts, until it is left."""
  _leaders.append(leader)
  try:
    yield
  finally:
    _leaders.remove(leader)


class Follower:
  """The side of a host that does as the leader does.

  Args:
    shared: as for `Leader`; equal to what the leader has.

  Attributes:
    doing: as of `Leader`.
  """

  def __init__(self, shared: Sequence[Any] = ()):
    self._numbers = _Numbers(shared)
    self._things: dict[int, Any] = dict(enumerate(self._numbers.shared))
    self.doing: Doing | None = None

  def run(self, content: bytes) -> None:
    """Does what one message of the leader names.

    Raises:
      InputError: the message names what this host does not have.
      Exception: what the function raises here.
    """
    message = plain.decode(content, self._thing)
    for number in message["dropped"]:
      self._things.pop(number, None)
    function = _functions.get(message["function"])
    if function is None:
      raise InputError(
        f"host 0 calls {message['function']}, and this host has no such "
        "function: start all hosts with the same code."
      )
    self.doing = Doing(message["function"], time.monotonic())
    try:
      result = function(*message["args"], **message["kwargs"])
    finally:
      self.doing = None
    for thing in _Numbers.held_in(result):
      self._things[self._numbers.take()] = thing

  def _thing(self, number: int) -> Any:
    if number not in self._things:
      raise KeyError(f"no object {number}")
    return self._things[number]


def is_shared(mesh: jax.sharding.Mesh | None) -> bool:
  """Whether a mesh has devices of several processes."""
  return mesh is not None and mesh.is_multi_process


def check_led(mesh: jax.sharding.Mesh) -> None:
  """Refuses a mesh of several processes in one that does not lead.

  Raises:
    InputError: it does not, or the mesh has no device of some process.
  """
  if not is_shared(mesh):
    return
  taking_part = {device.process_index for device in mesh.devices.flat}
  if len(taking_part) < jax.process_count():
    raise InputError(
      "a mesh over several processes must have devices of all "
      f"{jax.process_count()}, this one has those of {len(taking_part)}: make "
      "it of all devices."
    )
  if not _leaders or _leaders[-1].number(mesh) is None:
    raise InputError(
      "of several processes one leads and has told the others of its mesh, got "
      f"a mesh of {len(taking_part)} processes: see rapo_jax.hosts.leading."
    )
