"""Hosts that compute for ever: where each one stands, and an end.

A host that is stuck in a loop of its own still answers. So each of them looks
at itself: whoever is in one function of all hosts for too long says so, and the
leader asks all where they stand.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from rapo_jax import hosts

STALL_S = 1800.0
"""Seconds in one function after which a host is stuck. Compiling a large
program takes minutes."""
STALL_VARIABLE = "RAPO_STALL_S"
_LOOKS = 20


class Watch:
  """Looks, in a thread, whether this host is stuck.

  Args:
    doing: what the main thread is in, if anything.
    stuck: called once, in the thread, when that lasts for too long.
  """

  def __init__(
    self, doing: Callable[[], hosts.Doing | None], stuck: Callable[[], None]
  ):
    self._doing = doing
    self._stuck = stuck
    self._most = float(os.environ.get(STALL_VARIABLE, STALL_S))
    threading.Thread(target=self._run, daemon=True, name="stalls").start()

  def here(self) -> str:
    """Where this host stands: the function, for how long, and the line."""
    line = _line_of_main_thread()
    doing = self._doing()
    if doing is None:
      return f"in no function of all hosts, at {line}"
    seconds = time.monotonic() - doing.began
    return f"in {doing.function} for {seconds:.0f} s, at {line}"

  def _run(self) -> None:
    while True:
      time.sleep(self._most / _LOOKS)
      doing = self._doing()
      if doing is not None and time.monotonic() - doing.began > self._most:
        self._stuck()
        return


def _line_of_main_thread() -> str:
  frame = sys._current_frames().get(threading.main_thread().ident or 0)
  if frame is None:
    return "an unknown line"
  last = traceback.extract_stack(frame)[-1]
  return f"{last.filename}:{last.lineno} ({last.name})"
