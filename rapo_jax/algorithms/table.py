"""The table of methods, put together from this package's modules."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping

from rapo_jax.algorithms.base import Algorithm
from rapo_jax.discovery import values_of
from rapo_jax.errors import InputError

_NOT_METHODS = ("base", "checks", "guidance", "settings", "table")


def unique(algorithms: Iterable[Algorithm]) -> dict[str, Algorithm]:
  """Algorithms by name.

  Raises:
    InputError: two of them share a name.
  """
  found: dict[str, Algorithm] = {}
  for algorithm in algorithms:
    if algorithm.name in found:
      raise InputError(
        "algorithms need names of their own, got two that are called "
        f"{algorithm.name!r}: rename one."
      )
    found[algorithm.name] = algorithm
  return found


def find_algorithm(method: str | Algorithm) -> Algorithm:
  """The algorithm of that name, or the value itself.

  Raises:
    InputError: no algorithm has that name.
  """
  if isinstance(method, Algorithm):
    return method
  if method not in ALGORITHMS:
    raise InputError(
      f"a method must be one of {', '.join(ALGORITHMS)}, got {method!r}: "
      "correct the name, or hand in an Algorithm."
    )
  return ALGORITHMS[method]


def _assemble() -> Mapping[str, Algorithm]:
  """All methods of this package, sorted by name."""
  algorithms: list[Algorithm] = values_of(
    "rapo_jax.algorithms", "ALGORITHM", skip=_NOT_METHODS
  )
  algorithms.sort(key=lambda algorithm: algorithm.name)
  return types.MappingProxyType(unique(algorithms))


ALGORITHMS: Mapping[str, Algorithm] = _assemble()
"""All methods by name."""
