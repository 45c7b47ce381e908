"""The table of data sets, put together from this package's modules."""

from __future__ import annotations

import types
from collections.abc import Mapping

from rapo_jax.datasets.base import DataSet
from rapo_jax.discovery import values_of
from rapo_jax.errors import InputError


def _by_name() -> Mapping[str, DataSet]:
  found: dict[str, DataSet] = {}
  skip = ("base", "builder", "solutions", "table")
  for one in values_of("rapo_jax.datasets", "DATA_SET", skip=skip):
    if one.name in found:
      raise InputError(
        f"data sets need names of their own, got two that are called "
        f"{one.name!r}: rename one."
      )
    found[one.name] = one
  return types.MappingProxyType(found)


DATA_SETS: Mapping[str, DataSet] = _by_name()
"""All data sets by name."""
