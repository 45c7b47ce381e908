"""A circuit breaker before the Step-Trace Buffer.

A search that fails costs its time, at every step boundary of every hybrid
trajectory, and trains on nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from rapo_jax.breaker import Breaker
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
    self._breaker = Breaker(clock)

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
    if self._breaker.is_open:
      reason = "not tried: too many searches before it failed"
      return [Failed(reason, attempted=False)] * len(questions)
    outcomes = self._buffer.retrieve(
      questions, histories, config=config, keys=keys
    )
    if not outcomes:
      return outcomes
    failure = outcomes[0] if isinstance(outcomes[0], Failed) else None
    change = self._breaker.count(
      failure is not None,
      window=config.breaker_window,
      failures=config.breaker_failures,
      cooldown_s=config.breaker_cooldown_s,
    )
    if change == "closed":
      _log.warning("Retrieval works again.")
    elif change == "opened" and failure is not None:
      _log.error(
        "%d of the last %d searches of the Step-Trace Buffer failed: none is "
        "tried for %g s, then one at a time until one succeeds. The last: %s",
        self._breaker.num_failed,
        self._breaker.num_calls,
        config.breaker_cooldown_s,
        failure.reason,
      )
    return outcomes
