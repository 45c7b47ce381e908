"""Ends a run in good order when the machine is taken away (SIGTERM)."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
  """The run has saved what it had and ends, as it was asked to."""


class StopSignal:
  """Remembers a SIGTERM while it is entered, instead of dying of it.

  Pre-emptible machines send one and leave some seconds. A second one ends the
  process at once.
  """

  def __init__(self) -> None:
    self.requested = False
    self._before: Any = None

  def __enter__(self) -> StopSignal:
    self._before = signal.signal(signal.SIGTERM, self._remember)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    signal.signal(signal.SIGTERM, self._before)

  def _remember(self, number: int, frame: FrameType | None) -> None:
    self.requested = True
    signal.signal(signal.SIGTERM, self._before)
