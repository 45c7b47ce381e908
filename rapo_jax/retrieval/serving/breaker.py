"""A circuit breaker before the Step-Trace Buffer.

A search that fails costs its time, at every step boundary of every hybrid
trajectory, and trains on nothing. Once too many have failed, no more are tried
for a while; then one is, and it decides (Nygard, "Release It!", 2007).
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Sequence

from rapo_jax.retrieval.buffer.policy import (
  Buffer,
  Failed,
  Hit,
  Miss,
  RetrievalConfig,
)

_log = logging.getLogger(__name__)


class GuardedBuffer:
  """A Step-Trace Buffer that is left alone while its searches fail.

  Args:
    buffer: the buffer.
    clock: monotonic, in seconds.
  """

  def __init__(
    self,
    buffer: Buffer,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._buffer = buffer
    self._clock = clock
    # Whether each of the last searches failed.
    self._failed: collections.deque[bool] = collections.deque()
    self._open_until: float | None = None

  @property
  def version(self) -> int:
    """Version of what is in the buffer now."""
    return self._buffer.version

  def retrieve(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    *,
    config: RetrievalConfig,
    keys: Sequence[Sequence[int]] | None = None,
  ) -> list[Hit | Miss | Failed]:
    """Does what the buffer's `retrieve` does, or nothing while it is open.

    While the breaker is open, the outcome of each history is a `Failed` that
    was not attempted.
    """
    tried_again = self._open_until is not None
    if self._open_until is not None and self._clock() < self._open_until:
      reason = "not tried: too many searches before it failed"
      return [Failed(reason, attempted=False)] * len(questions)
    outcomes = self._buffer.retrieve(
      questions, histories, config=config, keys=keys
    )
    if not outcomes:
      return outcomes
    failure = outcomes[0] if isinstance(outcomes[0], Failed) else None
    self._failed.append(failure is not None)
    while len(self._failed) > config.breaker_window:
      self._failed.popleft()
    if failure is None:
      if tried_again:
        self._failed.clear()
        _log.warning("Retrieval works again.")
      self._open_until = None
    elif tried_again or sum(self._failed) >= config.breaker_failures:
      self._open_until = self._clock() + config.breaker_cooldown_s
      if not tried_again:
        _log.error(
          "%d of the last %d searches of the Step-Trace Buffer failed: none is "
          "tried for %g s, then one at a time until one succeeds. The last: %s",
          sum(self._failed),
          len(self._failed),
          config.breaker_cooldown_s,
          failure.reason,
        )
    return outcomes
