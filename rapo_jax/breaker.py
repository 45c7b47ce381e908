"""A circuit breaker: what fails too often is left alone for a while.

A call that fails costs its time. Once too many have failed, no more are tried
for a while; then one is, and it decides (Nygard, "Release It!", 2007).
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Literal

Change = Literal["", "opened", "closed"]


class Breaker:
  """Counts failures and decides whether to try. Any thread may use it.

  Args:
    clock: monotonic, in seconds.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._lock = threading.Lock()
    # Whether each of the last calls failed.
    self._failed: collections.deque[bool] = collections.deque()
    self._open_until: float | None = None

  @property
  def is_open(self) -> bool:
    """Whether nothing is to be tried now."""
    with self._lock:
      until = self._open_until
      return until is not None and self._clock() < until

  @property
  def num_failed(self) -> int:
    """Failures among the last calls."""
    with self._lock:
      return sum(self._failed)

  @property
  def num_calls(self) -> int:
    """The last calls that it remembers."""
    with self._lock:
      return len(self._failed)

  def count(
    self, failed: bool, *, window: int, failures: int, cooldown_s: float
  ) -> Change:
    """Takes in how a call ended.

    Args:
      failed: whether it failed.
      window: calls that count.
      failures: failures among them at which the breaker opens.
      cooldown_s: for how many seconds it stays open.

    Returns:
      Whether the breaker has opened or closed, the first time that it does.
    """
    with self._lock:
      tried_again = self._open_until is not None
      self._failed.append(failed)
      while len(self._failed) > window:
        self._failed.popleft()
      if not failed:
        self._open_until = None
        if tried_again:
          self._failed.clear()
          return "closed"
      elif tried_again or sum(self._failed) >= failures:
        self._open_until = self._clock() + cooldown_s
        return "" if tried_again else "opened"
      return ""
