"""What JAX compiles, and when.

A compilation in the middle of training costs seconds to minutes. On several
hosts, all of them wait for it. JAX reports every program that it compiles; this
module listens.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import pathlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.monitoring

# Linux gives a process so many maps (vm.max_map_count, 65,530 by default), each
# compiled program takes some, and XLA crashes where there are no more.
_MOST_MAPS = 30_000
_EVENT = "/jax/core/compile/backend_compile_duration"
_lock = threading.Lock()
_open: list[list[Compilation]] = []


class Compilation(NamedTuple):
  """A program that was compiled, or fetched from the persistent cache.

  Attributes:
    name: of the jitted function.
    seconds: that it took.
  """

  name: str
  seconds: float


@contextlib.contextmanager
def compilations() -> Iterator[list[Compilation]]:
  """Lists what is compiled in any thread, in order, until it is left."""
  _listen()
  found: list[Compilation] = []
  with _lock:
    _open.append(found)
  try:
    yield found
  finally:
    with _lock:
      # By identity: two lists may be equal.
      _open[:] = [other for other in _open if other is not found]


def forget_programs() -> None:
  """Drops compiled programs before this process has too many memory maps.

  To be called where few of them are needed again, such as between two runs.
  """
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
    jax.clear_caches()
    gc.collect()


@functools.cache
def _listen() -> None:
  """Once a process: a listener stays for good."""
  jax.monitoring.register_event_duration_secs_listener(_heard)


def _heard(event: str, duration_secs: float, **details: str | int) -> None:
  if event != _EVENT:
    return
  with _lock:
    for found in _open:
      found.append(
        Compilation(str(details.get("fun_name", "?")), duration_secs)
      )
