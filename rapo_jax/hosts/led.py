"""Functions that one host calls and that run on all of them.

Every process whose devices a program uses has to launch it, all programs in one
order. Which comes next depends on files, tools and a clock. So one process
alone decides. Functions that launch programs on devices of several processes
are decorated with `led`. Called by the leader, such a function is named to the
others first, with its arguments, and they call it too.

What a led function returns and others take stays where it is: every host keeps
its own and gives it the same number. Such objects are of classes that are
`held`. When the leader drops one, so do the others.

Hosts need not do the same in a led function. An argument that is `PerHost`
gives each its own, and `gather` brings what each has made to the leader.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import (
  Any,
  NamedTuple,
  ParamSpec,
  Protocol,
  TypeVar,
  runtime_checkable,
)

import jax

from rapo_jax.errors import InputError
from rapo_jax.hosts import plain
from rapo_jax.hosts.link import Place


@runtime_checkable
class Post(Protocol):
  """Messages between the leader and the others; see `Link`."""

  @property
  def place(self) -> Place:
    """Where this host stands among them."""

  def send(self, message: bytes) -> None:
    """Sends to the leader, or from the leader to all others."""

  def send_to(self, index: int, message: bytes) -> None:
    """Sends from the leader to one other host."""

  def receive(self) -> tuple[int, Any]:
    """Waits for the next message: a host's index, and what it said."""


class PerHost(NamedTuple):
  """An argument of a led function of which each host gets its own part.

  Attributes:
    parts: one for each host, in order.
  """

  parts: tuple[Any, ...]


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Class = TypeVar("_Class", bound=type)

_functions: dict[str, Callable[..., Any]] = {}
_held: dict[type, Callable[[Any], Any]] = {}
_sides: list[Leader | Follower] = []


def led(
  function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
  """Decorates a function or method that launches programs on all devices.

  It runs on all hosts where this one leads and one of its arguments is an
  object that all have. Else it is called as it stands.

  Args:
    function: takes plain values (see `plain.encode`), held objects, and
      `PerHost` ones. It must launch the same programs wherever it is called.
  """
  name = f"{function.__module__}:{function.__qualname__}"
  _functions[name] = function

  @functools.wraps(function)
  def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
    side = _sides[-1] if _sides else None
    if side is not None and side.doing is not None:
      # Within a led function, which every host runs whole.
      with side.within(name):
        return function(*args, **kwargs)
    if isinstance(side, Leader) and side.shares(args, kwargs):
      return side.run(name, function, args, kwargs)
    return function(*args, **kwargs)

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


class _Side:
  """A host as it runs led functions.

  Attributes:
    post: to and from the others.
    doing: the led function that it is in, if any: the innermost.
  """

  def __init__(self, post: Post):
    self.post = post
    self.doing: Doing | None = None
    self._thread = threading.get_ident()

  @contextlib.contextmanager
  def within(self, name: str) -> Iterator[None]:
    """Notes that a led function runs, perhaps within another one."""
    if threading.get_ident() != self._thread:
      yield  # What helps it, in another thread.
      return
    outer = self.doing
    self.doing = Doing(name, time.monotonic())
    try:
      yield
    finally:
      # It goes on: what it has done so far did end.
      self.doing = outer and Doing(outer.function, time.monotonic())


class Leader(_Side):
  """The side of the host that leads.

  Args:
    post: to and from the others.
    shared: objects that every host has from the start, in the same order.
  """

  def __init__(self, post: Post, shared: Sequence[Any] = ()):
    super().__init__(post)
    self._count = post.place.count
    self._numbers = _Numbers(shared)
    # By class and address; the reference tells an object from a later one.
    self._known: dict[tuple[type, int], tuple[int, weakref.ref[Any]]] = {}
    self._dropped: collections.deque[int] = collections.deque()

  def shares(self, args: Any, kwargs: Any) -> bool:
    """Whether a call has to run everywhere."""
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
    message = {"function": name, "dropped": self._gone()}
    if any(isinstance(v, PerHost) for v in (*args, *kwargs.values())):
      for index in range(1, self._count):
        self.post.send_to(
          index, self._call(message, *_own(args, kwargs, index))
        )
      args, kwargs = _own(args, kwargs, 0)
    else:
      self.post.send(self._call(message, args, kwargs))
    with self.within(name):
      result = function(*args, **kwargs)
    for thing in _Numbers.held_in(result):
      self._hold(thing)
    return result

  def _call(self, message: dict[str, Any], args: Any, kwargs: Any) -> bytes:
    call = {**message, "args": list(args), "kwargs": dict(kwargs)}
    return plain.encode(call, self.number)

  def gather(self, value: Any) -> list[Any]:
    """What each host has made, in order; this one's own comes first."""
    parts: dict[int, Any] = {0: value}
    while len(parts) < self._count:
      index, content = self.post.receive()
      parts[index] = plain.decode(content)
    return [parts[index] for index in range(self._count)]

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
def leading(leader: Leader) -> Iterator[Leader]:
  """Led functions run on all hosts, until it is left."""
  with _taking_part(leader):
    yield leader


@contextlib.contextmanager
def _taking_part(side: Leader | Follower) -> Iterator[None]:
  _sides.append(side)
  try:
    yield
  finally:
    _sides.remove(side)


def gather(value: _Result) -> list[_Result] | None:
  """Brings what each host has made to the leader; for led functions.

  Args:
    value: of this host; see `plain.encode`.

  Returns:
    On the leader one of each host, in order. None on the others.
  """
  side = _sides[-1] if _sides else None
  if isinstance(side, Follower):
    side.post.send(plain.encode(value))
    return None
  if side is None or side.doing is None:
    return [value]
  return side.gather(value)


def count() -> int:
  """How many hosts there are, of which this is one."""
  return _sides[-1].post.place.count if _sides else 1


def share_of(total: int) -> int:
  """This host's part of a number that all hosts share; the parts add up."""
  if not _sides:
    return total
  place = _sides[-1].post.place
  return total // place.count + (place.index < total % place.count)


def _own(args: Any, kwargs: Any, index: int) -> tuple[list[Any], Any]:
  """Arguments as one host gets them."""

  def one(value: Any) -> Any:
    return value.parts[index] if isinstance(value, PerHost) else value

  return [one(v) for v in args], {k: one(v) for k, v in kwargs.items()}


class Follower(_Side):
  """The side of a host that does as the leader does.

  Args:
    post: to and from the leader.
    shared: as for `Leader`; equal to what the leader has.
  """

  def __init__(self, post: Post, shared: Sequence[Any] = ()):
    super().__init__(post)
    self._numbers = _Numbers(shared)
    self._things: dict[int, Any] = dict(enumerate(self._numbers.shared))

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
    with _taking_part(self), self.within(message["function"]):
      result = function(*message["args"], **message["kwargs"])
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
  """Refuses a mesh of several processes outside what all of them run.

  Raises:
    InputError: this is no led function that all of them run, or the mesh has no
      device of some process.
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
  if not _sides or _sides[-1].doing is None:
    raise InputError(
      "what uses a mesh of several processes is made in a function that all of "
      f"them run, got a mesh of {len(taking_part)} outside of one: decorate it "
      "with rapo_jax.hosts.led, see also rapo_jax.hosts.leading."
    )
