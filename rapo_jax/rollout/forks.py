"""Rollouts that fork: rules, and the rollouts of one question in the making.

A rule sees one question at a time, when each of its rollouts stands at the end
of a step or has ended. Its random numbers belong to the rollouts. So a fork
depends on no tool's delay, and on no other question.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from rapo_jax.errors import InputError

# Apart from the streams of retrieval, which begin with the same numbers.
_STREAM = 0xF0


@dataclasses.dataclass(frozen=True)
class Member:
  """A rollout of a question, at the end of a step.

  Attributes:
    entropies: `step_uncertainty` of each of its steps, copied ones too.
    parent: place in the group of the one that it was forked from; None for one
      that began at the prompt by itself.
    shared_steps: steps that were copied from the parent.
    goes_on: whether it writes another step; False once it has ended.
    wrote: whether its last step is new since the rule was asked before.
  """

  entropies: tuple[float, ...] = (0.0,)
  parent: int | None = None
  shared_steps: int = 0
  goes_on: bool = True
  wrote: bool = True

  @property
  def steps(self) -> int:
    """Steps that it has."""
    return len(self.entropies)


@dataclasses.dataclass(frozen=True)
class Group:
  """The rollouts of one question.

  Attributes:
    members: in the order in which they began.
    leaves: rollouts that the question may have in the end.
    rounds: how often members were added.
    streak: how often in a row, up to now.
  """

  members: Sequence[Member]
  leaves: int
  rounds: int = 0
  streak: int = 0

  @property
  def room(self) -> int:
    """Rollouts that may still be added."""
    return self.leaves - len(self.members)


class Fork(NamedTuple):
  """A rollout to be added.

  Attributes:
    parent: place of the member that is copied; None for one that begins at the
      prompt, in a tree of its own.
    steps: first steps of the parent that are kept.
  """

  parent: int | None
  steps: int = 0


Draw = Callable[[int, int], float]
"""A number in [0, 1) of a member's stream: its place, and a count from 0 on.

Each member has a stream for each number of steps that it has.
"""


@runtime_checkable
class ForkRule(Protocol):
  """Which rollouts of a question are forked; a frozen dataclass."""

  def roots(self, leaves: int) -> int:
    """Rollouts that begin at the prompt, of so many in the end.

    Raises:
      InputError: the rule does not give this number of leaves.
    """

  def slots(self, leaves: int) -> int:
    """Slots that a question needs at most, of so many rollouts in the end.

    Until the last of them has begun, each that has ended keeps its slot. When
    it begins, those slots are free.
    """

  def forks(self, group: Group, draw: Draw) -> list[Fork]:
    """Rollouts to be added now, at most `group.room`.

    Without any, though none goes on, a rollout begins at the prompt.

    Args:
      group: each member stands at the end of a step, or has ended.
      draw: random numbers.
    """


def step_uncertainty(
  entropies: Float[np.ndarray, " T"], *, vocabulary: int, tokens: int = 20
) -> float:
  """How unsure the policy was of a step, as fork rules measure it (ARPO).

  The sum over the first tokens of their entropies, divided by log V. It grows
  with their number, as in the authors' code. That takes the ten likeliest
  tokens of each distribution; we take all.

  Args:
    entropies: of the step's policy tokens in order, nats.
    vocabulary: number of tokens V, above 1.
    tokens: how many of the first tokens count.
  """
  return float(np.sum(entropies[:tokens]) / math.log(vocabulary))


@runtime_checkable
class Branch(Protocol):
  """A rollout in the making, as a family needs it."""

  @property
  def ended(self) -> bool:
    """Whether it writes no other step."""

  @property
  def parent(self) -> int | None:
    """See `Member`."""

  @property
  def shared_steps(self) -> int:
    """See `Member`."""

  @property
  def num_cuts(self) -> int:
    """Steps behind which it can be cut: those with an observation."""

  @property
  def uncertainties(self) -> Sequence[float]:
    """`step_uncertainty` of its steps, copied ones too, at least one."""


T = TypeVar("T", bound=Branch)


class Family(Generic[T]):
  """The rollouts of one question, which are forked by a rule.

  Attributes:
    members: that have begun, by their place.
    slots: that are reserved for those that have not.
  """

  def __init__(
    self, rule: ForkRule, rollouts: Iterable[T], key: tuple[int, ...]
  ):
    """Creates the family; none of its members has begun.

    Args:
      rule: who is forked.
      rollouts: all that the question has in the end, by their place.
      key: integers of this question alone, the same in every run.
    """
    self._rule = rule
    self._key = key
    self._waiting = collections.deque(rollouts)
    self._leaves = len(self._waiting)
    self._rounds = self._streak = 0
    self._standing: set[int] = set()
    self._known: set[int] = set()
    self.members: list[T] = []
    self.slots: list[int] = []

  @property
  def room(self) -> int:
    """Members that have not begun."""
    return len(self._waiting)

  @property
  def num_slots(self) -> int:
    """Slots that it needs."""
    return self._rule.slots(self._leaves)

  def begin_roots(self) -> list[T]:
    """The members that begin at the prompt."""
    return [self._begin() for _ in range(self._rule.roots(self._leaves))]

  def stand(self, member: T) -> None:
    """Notes that a member waits behind a step."""
    self._standing.add(self.members.index(member))

  @property
  def is_due(self) -> bool:
    """Whether each member waits behind a step or has ended."""
    return bool(self._waiting and self.members) and all(
      member.ended or place in self._standing
      for place, member in enumerate(self.members)
    )

  def grow(self) -> tuple[list[T], list[tuple[T, Fork]]]:
    """Decides on forks, once the family is due.

    Returns:
      Members that waited and go on, and new ones with what they begin from.

    Raises:
      InputError: the rule adds too many, or cuts a member where it cannot be.
    """
    group = Group(
      [self._described(place) for place in range(len(self.members))],
      self._leaves,
      self._rounds,
      self._streak,
    )
    forks = self._rule.forks(group, self._draw)
    released = [self.members[place] for place in sorted(self._standing)]
    if not forks and not released:
      forks = [Fork(None)]
    self._check(forks)
    self._standing.clear()
    self._known.update(
      place for place, member in enumerate(self.members) if member.ended
    )
    self._streak = self._streak + 1 if forks else 0
    self._rounds += bool(forks)
    return released, [(self._begin(), fork) for fork in forks]

  def _begin(self) -> T:
    member = self._waiting.popleft()
    self.members.append(member)
    return member

  def _described(self, place: int) -> Member:
    member = self.members[place]
    return Member(
      entropies=tuple(member.uncertainties),
      parent=member.parent,
      shared_steps=member.shared_steps,
      goes_on=not member.ended,
      wrote=place not in self._known,
    )

  def _draw(self, place: int, count: int) -> float:
    steps = len(self.members[place].uncertainties)
    key = (_STREAM, *self._key, place, steps, count)
    return float(np.random.default_rng(key).random())

  def _check(self, forks: Sequence[Fork]) -> None:
    if len(forks) > self.room:
      raise InputError(
        f"a fork rule adds at most {self.room} rollouts here, got "
        f"{len(forks)} of {self._rule!r}: return fewer."
      )
    for fork in forks:
      place = fork.parent
      most = -1
      if place is None:
        most = 0
      elif 0 <= place < len(self.members):
        most = self.members[place].num_cuts
      if not 0 <= fork.steps <= most:
        raise InputError(
          "a fork begins behind an observation of a member, or at the prompt, "
          f"got {fork} of {self._rule!r} with {len(self.members)} members: "
          "correct it."
        )
