"""Ranges of the numbers in a config: the rule, the value and the remedy.

A config is a frozen dataclass; its `__post_init__` calls `check_numbers` for
every field that holds a number. NaN and infinity are never in range.
"""

from __future__ import annotations

import math
from typing import Any

from rapo_jax.errors import InputError

MAX_SEED = 2**31 - 1
"""Programs take a seed as an int32."""


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
    at_most: largest value in range.
    below: smallest value above the range; instead of `at_most`.
    unit: of the numbers, for the message.

  Raises:
    InputError: a number is out of range, NaN or infinite, or a field holds
      something else.
  """
  rule = _rule(at_least, above, at_most, below) + (f" {unit}" if unit else "")
  for name in names:
    field = getattr(config, name)
    for value in field if isinstance(field, tuple) else (field,):
      if value is None:
        continue
      if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(
          f"{name} must be a number, got {value!r} ({type(value).__name__}): "
          "write a number without quotes."
        )
      # Not of integers, which may be too large for a float.
      if isinstance(value, float) and not math.isfinite(value):
        raise InputError(
          f"{name} must {rule} and be finite, got {value}: give a "
          "finite number."
        )
      low = at_least is not None and value < at_least
      if low or (above is not None and value <= above):
        raise InputError(f"{name} must {rule}, got {value}: raise it.")
      high = at_most is not None and value > at_most
      if high or (below is not None and value >= below):
        raise InputError(f"{name} must {rule}, got {value}: lower it.")


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
