"""Ranges of the numbers in a config: the rule, the value and the remedy.

A config is a frozen dataclass; its `__post_init__` calls `check_numbers` for
every field that holds a number. NaN and infinity are never in range, and what
an int32 or a float32 cannot hold is in a range that says so alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np

from rapo_jax.errors import InputError

MAX_INT = 2**31 - 1
"""Programs compute in int32."""
MAX_FLOAT = float(np.finfo(np.float32).max)
"""Programs compute in float32."""
MAX_SEED = MAX_INT


def check_numbers(
  config: Any,
  *names: str,
  at_least: float | None = None,
  above: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
  unit: str = "",
) -> None:
  """Checks fields that share a range: numbers, or tuples of numbers.

  None is a number that is not set, and passes.

  Args:
    config: holds the fields as attributes.
    *names: of the fields.
    at_least: smallest value in range.
    above: largest value below the range; instead of `at_least`.
    at_most: largest value in range. Without it and `below`, what a program
      can hold: `MAX_INT` for integers, `MAX_FLOAT` for others.
    below: smallest value above the range; instead of `at_most`.
    unit: of the numbers, for the message.

  Raises:
    InputError: a number is out of range, NaN or infinite, or a field holds
      something else, such as a float where its type is int.
  """
  for name in names:
    field = getattr(config, name)
    whole = _is_whole(config, name)
    for value in field if isinstance(field, tuple) else (field,):
      if whole and isinstance(value, float):
        raise InputError(
          f"{name} must be an integer, got {value}: leave out what is behind "
          "the point."
        )
      if value is not None:
        check_number(
          name,
          value,
          at_least=at_least,
          above=above,
          at_most=at_most,
          below=below,
          unit=unit,
        )


def _is_whole(config: Any, name: str) -> bool:
  """Whether the type of a field of a dataclass takes integers alone."""
  if not dataclasses.is_dataclass(config):
    return False
  kinds = {field.name: field.type for field in dataclasses.fields(config)}
  words = re.findall(r"\w+", str(kinds.get(name)))
  return "int" in words and "float" not in words


def check_number(
  name: str,
  value: Any,
  *,
  at_least: float | None = None,
  above: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
  unit: str = "",
  of: str = "",
) -> None:
  """Checks a number; see `check_numbers`.

  Args:
    name: of the number, for the message.
    value: of the number.
    at_least: see `check_numbers`, as of the other bounds and the unit.
    above: instead of `at_least`.
    at_most: largest value in range.
    below: instead of `at_most`.
    unit: of the number.
    of: what the number is set for, where one name has several.

  Raises:
    InputError: it is out of range, NaN, infinite or no number.
  """
  rule = _rule(at_least, above, at_most, below) + (f" {unit}" if unit else "")
  got = f"got {value}" + (f" for {of}" if of else "")
  if not isinstance(value, int | float) or isinstance(value, bool):
    raise InputError(
      f"{name} must be a number, got {value!r} ({type(value).__name__}): "
      "write a number without quotes."
    )
  # Not of integers, which may be too large for a float.
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(
      f"{name} must {rule} and be finite, {got}: give a finite number."
    )
  low = at_least is not None and value < at_least
  if low or (above is not None and value <= above):
    raise InputError(f"{name} must {rule}, {got}: raise it.")
  high = at_most is not None and value > at_most
  if high or (below is not None and value >= below):
    raise InputError(f"{name} must {rule}, {got}: lower it.")
  kind = "an int32" if isinstance(value, int) else "a float32"
  most = MAX_INT if isinstance(value, int) else MAX_FLOAT
  if at_most is None and below is None and abs(value) > most:
    raise InputError(
      f"{name} must lie in [{-most:.10g}, {most:.10g}], as {kind} does, {got}: "
      "take a number of smaller magnitude."
    )


def check_seeds(config: Any, *names: str) -> None:
  """Checks fields that hold a seed, or a tuple of seeds.

  Raises:
    InputError: a seed is negative or above `MAX_SEED`, or no number.
  """
  check_numbers(config, *names, at_least=0, at_most=MAX_SEED)


def check_multiple(config: Any, name: str, divisor: int, of: str = "") -> None:
  """Checks that a field is a multiple of a number.

  Args:
    config: holds the field as an attribute.
    name: of the field.
    divisor: at least 1.
    of: names the divisor, if it is made of other fields.

  Raises:
    InputError: it is not.
  """
  value = getattr(config, name)
  if value % divisor:
    larger = value + divisor - value % divisor
    rule = f"{of} ({divisor})" if of else f"{divisor}"
    raise InputError(
      f"{name} must be a multiple of {rule}, got {value}: set it to {larger}."
    )


def _rule(
  at_least: float | None,
  above: float | None,
  at_most: float | None,
  below: float | None,
) -> str:
  """`be at least 1`, `be > 0`, `lie in [0, 1)`, `be a number`."""
  low = at_least if at_least is not None else above
  high = at_most if at_most is not None else below
  if low is None and high is None:
    return "be a number"
  if high is None:
    return f"be at least {low}" if at_least is not None else f"be > {low}"
  if low is None:
    return f"be at most {high}" if at_most is not None else f"be < {high}"
  opening = "[" if at_least is not None else "("
  closing = "]" if at_most is not None else ")"
  return f"lie in {opening}{low}, {high}{closing}"
