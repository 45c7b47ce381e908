"""What may happen between two steps of a trajectory: a hook of the rollout.

At each step boundary the loop asks the hook's session whether it wants this
boundary. Those that it wants go to it in batches. Their trajectories wait while
others decode. The session answers when it can: with an event, and with a text
that is inserted as a step of its own, or without one.

Nothing here may depend on time or on what runs beside a trajectory. All random
draws use the boundary's `key`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence, Sized
from typing import Any, Protocol, runtime_checkable

from rapo_jax.rollout.requests import RolloutRequest
from rapo_jax.trajectory import RetrievalEvent, ToolEvent


@dataclasses.dataclass(frozen=True, eq=False)
class Boundary:
  """A trajectory between two steps, behind an observation.

  Attributes:
    owner: the loop's mark of the trajectory.
    request: the one that the trajectory answers.
    step_id: of the step that comes next.
    history: texts of the steps so far, oldest first.
    events: of the trajectory so far.
    key: integers of this boundary alone, the same in every run.
    deadline: when the trajectory stops waiting, on the monotonic clock.
  """

  owner: Any
  request: RolloutRequest
  step_id: int
  history: tuple[str, ...]
  events: tuple[ToolEvent | RetrievalEvent, ...]
  key: tuple[int, ...]
  deadline: float


@dataclasses.dataclass(frozen=True)
class Insertion:
  """An answer at a boundary.

  Attributes:
    event: what happened. If the text has no room, its outcome becomes
      "no_room" and nothing is inserted.
    text: that is inserted as a retrieved step, tags included; "" for none.
    probe: whether the trajectory is sampled once more from here on, without
      this text (`Trajectory.twins`). Nothing else changes by it.
  """

  event: RetrievalEvent
  text: str = ""
  probe: bool = False


@runtime_checkable
class BetweenSession(Protocol):
  """The boundaries of one rollout. One thread uses it and must close it."""

  @property
  def version(self) -> int | None:
    """Of the data behind the answers, as trajectories note it."""

  @property
  def busy_seconds(self) -> float:
    """In which answers were computed."""

  @property
  def open(self) -> Sized:
    """Boundaries without an answer; read with the lock held."""

  @property
  def has_news(self) -> bool:
    """Whether there is something to take; read with the lock held."""

  def left_s(self) -> float:
    """Seconds to the first deadline of what is open, with the lock held."""

  def wants(self, boundary: Boundary) -> bool:
    """Whether this boundary is to be submitted; quick, and deterministic."""

  def submit(self, boundaries: Sequence[Boundary]) -> None:
    """Takes boundaries to answer, in the order of the requests."""

  def take(self) -> list[tuple[Boundary, Insertion]]:
    """Answers that have come. Each boundary is answered once."""

  def close(self) -> None:
    """Forgets what is still open."""


@runtime_checkable
class BetweenSteps(Protocol):
  """A hook of the engine."""

  def session(self, changed: threading.Condition) -> BetweenSession:
    """The hook's part of one rollout.

    Args:
      changed: guards what threads share, and is notified of answers.
    """
