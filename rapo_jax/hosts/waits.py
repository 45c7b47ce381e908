"""How long this host has waited for others, in all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

_waits: list[float] = [0.0]


@contextlib.contextmanager
def waiting() -> Iterator[None]:
  """Counts the time within as waiting for other hosts; one thread does."""
  began = time.monotonic()
  try:
    yield
  finally:
    _waits[0] += time.monotonic() - began


def waited_s() -> float:
  """Seconds that this process has waited for other hosts so far."""
  return _waits[0]
