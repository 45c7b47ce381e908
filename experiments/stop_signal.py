"""Ends a command in good order on SIGTERM and on Ctrl+C (SIGINT)."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SHOW_CURSOR = b"\x1b[?25h"
# Functions that Python calls and whose exceptions it drops.
_DROPPING = frozenset({"_xla_gc_callback", "__del__"})
_RETRY_S = 0.05

_Item = TypeVar("_Item")


class Stopped(BaseException):
  """The command has saved what it had and ends, as it was asked to.

  No `Exception`: code that handles errors must not handle this.

  Args:
    message: what was reached, and how to go on.
    number: of the signal.
  """

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.exit_status = 128 + number


class StopSignal:
  """What SIGTERM and SIGINT do while it is entered.

  The first one raises `Stopped` at once, or waits while a loop is `deferred`.
  A second one ends the process at once.

  Args:
    resume: how the user goes on, as a sentence without its first capital.
    tell: called with a line for the user while a signal waits, in a thread of
      its own.
  """

  def __init__(self, resume: str, tell: Callable[[str], None] = print) -> None:
    self._resume = resume
    self._tell = tell
    self._number: int | None = None
    self._deferred = False
    self._before: dict[int, Any] = {}

  @property
  def requested(self) -> bool:
    """Whether a signal has come."""
    return self._number is not None

  def __enter__(self) -> StopSignal:
    self._before = {n: signal.signal(n, self._handle) for n in _SIGNALS}
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if self.requested:
      return  # A second signal ends what is left without a traceback.
    for number, before in self._before.items():
      signal.signal(number, before)

  def deferred(self, updates: Iterable[_Item]) -> Iterator[_Item]:
    """The updates, while a signal waits; the loop looks at `requested`."""
    self._deferred = True
    try:
      yield from updates
    finally:
      self._deferred = False

  def check(self) -> None:
    """Raises `Stopped` if a signal has come; work calls it now and then.

    What the handler raises may be lost in a callback of a library's.
    """
    if self.requested and not self._deferred:
      raise self.stop("stopped")

  def stop(self, where: str) -> Stopped:
    """What to raise once the signal has been heeded.

    Args:
      where: what was reached: "stopped after update 3".
    """
    return Stopped(f"{where}: {self._resume}", self._number or signal.SIGTERM)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self._number = number
    if not self._deferred and _is_dropping(frame):
      _send_again(number)
      return
    for other in _SIGNALS:
      signal.signal(other, signal.SIG_DFL)
    # The live display hides it, and a second signal leaves no time.
    if sys.stdout.isatty():
      os.write(sys.stdout.fileno(), _SHOW_CURSOR)
    if not self._deferred:
      raise self.stop("stopped")
    line = "stopping after the update under way; Ctrl+C again ends at once"
    # A handler must not print: it may have interrupted a print.
    threading.Thread(target=self._tell, args=(line,), daemon=True).start()


def interrupt(number: int, frame: FrameType | None) -> None:
  """Handles SIGINT as Python does, where what is raised reaches the program.

  Raises:
    KeyboardInterrupt: now, or when the signal comes again.
  """
  if _is_dropping(frame):
    _send_again(number)
  else:
    raise KeyboardInterrupt


def _send_again(number: int) -> None:
  again = threading.Timer(_RETRY_S, os.kill, (os.getpid(), number))
  again.daemon = True
  again.start()


def _is_dropping(frame: FrameType | None) -> bool:
  """Whether what is raised in a frame would not reach the program."""
  while frame is not None:
    if frame.f_code.co_name in _DROPPING:
      return True
    frame = frame.f_back
  return False
