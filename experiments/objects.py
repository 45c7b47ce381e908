"""How functions and objects are named on disk, so that a later start can tell.

A function or a class is named by its module and qualified name. An object is
its class with the arguments that it was made of. What a later start could not
find by such a name is refused: a lambda, a function inside a function, and an
object that keeps its arguments to itself.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

from rapo_jax.errors import InputError

OBJECT = "object"
"""Under which a plain object has the name of its class."""
FUNCTION = "function"
"""Under which a plain function or class has its name."""
_OWN = ("rapo_jax", "experiments", "functools")
# Config files are run under names of their own, as two may share a stem.
_config_modules: dict[str, str] = {}


def register_config(module: types.ModuleType, path: pathlib.Path) -> None:
  """Lets what a config file defines be named by the file's stem."""
  _config_modules[module.__name__] = path.stem


def name_of(value: Any) -> str:
  """Module and qualified name of a function or class, such as `sums:exact`.

  Raises:
    InputError: it cannot be found by a name.
  """
  name = getattr(value, "__qualname__", "")
  if not name or "<" in name:
    raise InputError(
      "what a config holds must be found again by its name, and "
      f"{name or repr(value)[:80]} cannot be: define it with `def` or `class` "
      "at the top of a module."
    )
  module = _config_modules.get(value.__module__, value.__module__)
  return f"{module}:{name}"


def describe(value: Any) -> dict[str, Any]:
  """A plain form of a function, class or object.

  Returns:
    The name of a function or class under `FUNCTION`. Of an object the name of
    its class under `OBJECT`, and its fields, not yet plain.

  Raises:
    InputError: it cannot be found by a name, or its arguments cannot be seen.
  """
  if isinstance(value, functools.partial):
    name = name_of(functools.partial)
    arguments = {"arguments": value.args, "keywords": value.keywords}
    return {OBJECT: name, "called": value.func, **arguments}
  owner = getattr(value, "__self__", None)
  if owner is not None and not isinstance(owner, type | types.ModuleType):
    raise InputError(
      "what a config holds must show the arguments that it was made of, and "
      f"the method {value.__qualname__} has those of its object: give the "
      "object a `__call__`, and hand in the object."
    )
  if isinstance(value, type) or hasattr(value, "__qualname__"):
    return {FUNCTION: name_of(value)}
  name = name_of(type(value))
  if dataclasses.is_dataclass(value):
    # What it counts while it works is no argument of it.
    fields = [field for field in dataclasses.fields(value) if field.init]
    return {OBJECT: name} | {f.name: getattr(value, f.name) for f in fields}
  if not _is_stateless(value):
    raise InputError(
      "what a config holds must show the arguments that it was made of, and an "
      f"object of {name} does not: make the class a frozen dataclass, or "
      "write numbers, texts and tuples."
    )
  return {OBJECT: name}


def _is_stateless(value: Any) -> bool:
  """Whether an object is a class's only one, by what pickle would keep."""
  try:
    made, arguments, *state = value.__reduce_ex__(2)
  except Exception:
    return False
  only_class = made is copyreg.__newobj__ and arguments == (type(value),)  # type: ignore[attr-defined]
  return only_class and not any(state)


def names_from_outside(plain: Any) -> Iterator[str]:
  """Names within a plain config that are not this project's own."""
  if isinstance(plain, Mapping):
    for key, value in plain.items():
      if key not in (OBJECT, FUNCTION) or not isinstance(value, str):
        yield from names_from_outside(value)
      elif value.partition(":")[0].partition(".")[0] not in _OWN:
        yield value
  elif isinstance(plain, list | tuple):
    for value in plain:
      yield from names_from_outside(value)
