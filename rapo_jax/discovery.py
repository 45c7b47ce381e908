"""Values that the modules of a package define, so that a file adds one.

A field of a dataclass may say which values can be chosen for it by a name.
"""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
from collections.abc import Collection
from typing import Any

KNOWN = "known"
"""Metadata of such a field: the values by name."""


def values_of(
  package: str, name: str, *, skip: Collection[str] = ()
) -> list[Any]:
  """Values that a package's modules define under one name.

  Args:
    package: full name of a package whose folder is here.
    name: of the variable, such as "ALGORITHM". A module that defines several
      values holds them in a sequence of this name with an S.
    skip: modules of the package that are not looked at.

  Returns:
    The values, in the order of the modules' names.
  """
  found: list[Any] = []
  file = importlib.import_module(package).__file__
  assert file is not None, f"{package} has no folder"
  for info in pkgutil.iter_modules([str(pathlib.Path(file).parent)]):
    if info.name not in skip:
      module = importlib.import_module(f"{package}.{info.name}")
      if hasattr(module, name):
        found.append(getattr(module, name))
      found.extend(getattr(module, f"{name}S", ()))
  return found
