"""Values as bytes between hosts: JSON and raw arrays, nothing that executes.

A host does what it is sent. So it is sent values and names of functions that
it has itself, never code and no pickles.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import pathlib
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.errors import InputError

Refer = Callable[[Any], int | None]
"""Number of an object that every host has; None for any other value."""
Resolve = Callable[[int], Any]
"""The object of a number."""

_HEADER = struct.Struct(">I")
_KINDS = "biufV"  # Of NumPy dtypes: no objects and no strings.
_travelling: dict[str, type] = {}

_Class = TypeVar("_Class", bound=type)


def travels(cls: _Class) -> _Class:
  """Decorates a dataclass, NamedTuple or enumeration that is sent by value.

  Args:
    cls: its constructor takes all fields by name, or the value of a member.
  """
  _travelling[f"{cls.__module__}:{cls.__qualname__}"] = cls
  return cls


def encode(value: Any, refer: Refer = lambda _: None) -> bytes:
  """A value as bytes.

  Args:
    value: None, numbers, strings, paths, arrays, tuples, lists, dicts with
      string keys, classes that travel, and what `refer` knows. A subclass of a
      number or a string has to travel itself.
    refer: finds objects that every host has.

  Raises:
    InputError: it holds something else.
  """
  arrays: list[np.ndarray] = []
  text = json.dumps(_packed(value, arrays, refer)).encode()
  return b"".join(
    [_HEADER.pack(len(text)), text, *(a.tobytes() for a in arrays)]
  )


def decode(content: bytes, resolve: Resolve = lambda _: None) -> Any:
  """Undoes `encode`.

  Args:
    content: of `encode`.
    resolve: the object of a number that `refer` gave.

  Raises:
    InputError: it is not of `encode`.
  """
  try:
    (size,) = _HEADER.unpack_from(content)
    start = _HEADER.size + size
    tree = json.loads(content[_HEADER.size : start])
    return _Unpacker(memoryview(content)[start:], resolve).value(tree)
  except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
    raise InputError(
      f"a message between hosts must be as it was sent, and is not ({error}): "
      "start all hosts with the same code."
    ) from error


def _packed(value: Any, arrays: list[np.ndarray], refer: Refer) -> Any:
  """A value as JSON; arrays go to the list."""
  number = refer(value)
  if number is not None:
    return {"object": number}
  if value is None or type(value) in (bool, int, float, str):
    return value
  if isinstance(value, np.generic | np.ndarray | jax.Array):
    return _packed_array(np.asarray(value), arrays)
  if isinstance(value, pathlib.PurePath):
    return {"path": str(value)}
  name = f"{type(value).__module__}:{type(value).__qualname__}"
  if name in _travelling and isinstance(value, enum.Enum):
    return {"member": value.value, "class": name}
  if name in _travelling:
    fields = {
      field: _packed(getattr(value, field), arrays, refer)
      for field in _field_names(type(value))
    }
    return {"fields": fields, "class": name}
  if type(value) in (tuple, list):
    items = [_packed(item, arrays, refer) for item in value]
    return items if type(value) is list else {"tuple": items}
  if isinstance(value, dict) and all(type(key) is str for key in value):
    return {"dict": {k: _packed(v, arrays, refer) for k, v in value.items()}}
  raise InputError(
    "hosts send each other plain values, arrays and objects that all of them "
    f"have, got a {name}: register it with `hosts.travels` or `hosts.held`."
  )


def _packed_array(array: np.ndarray, arrays: list[np.ndarray]) -> Any:
  if array.dtype.kind not in _KINDS:
    raise InputError(
      f"an array between hosts must hold numbers, got {array.dtype}: convert "
      "it."
    )
  arrays.append(array)
  return {"array": [array.dtype.name, list(array.shape)]}


def _field_names(cls: type) -> list[str]:
  if dataclasses.is_dataclass(cls):
    return [field.name for field in dataclasses.fields(cls)]
  return list(cls._fields)  # type: ignore[attr-defined]


class _Unpacker:
  """Makes values of JSON and the bytes of their arrays, in order."""

  def __init__(self, content: memoryview, resolve: Resolve):
    self._content = content
    self._at = 0
    self._resolve = resolve

  def value(self, tree: Any) -> Any:
    if isinstance(tree, list):
      return [self.value(item) for item in tree]
    if not isinstance(tree, dict):
      return tree
    if "object" in tree:
      return self._resolve(int(tree["object"]))
    if "array" in tree:
      return self._array(*tree["array"])
    if "path" in tree:
      return pathlib.Path(tree["path"])
    if "tuple" in tree:
      return tuple(self.value(item) for item in tree["tuple"])
    if "member" in tree:
      return _travelling[tree["class"]](tree["member"])
    if "dict" in tree:
      return {key: self.value(item) for key, item in tree["dict"].items()}
    fields = {key: self.value(item) for key, item in tree["fields"].items()}
    return _travelling[tree["class"]](**fields)

  def _array(self, name: str, shape: list[int]) -> np.ndarray:
    dtype = jnp.dtype(name)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    part = self._content[self._at : self._at + size]
    self._at += size
    # A copy: those of a message are read-only and need not be aligned.
    return np.frombuffer(part, dtype).reshape(shape).copy()
