"""Quantities as people read them: three digits and a prefix."""

from __future__ import annotations


def scaled(value: float) -> str:
  """A count, e.g. "1.39 P"; "0 " for none, a unit may follow."""
  if not value:
    return "0 "
  for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
    if value >= size:
      return f"{value / size:.3g} {prefix}"
  return f"{value / 1e3:.3g} k"


def duration(seconds: float) -> str:
  """A time in seconds, milli- or microseconds."""
  for unit, size in (("s", 1.0), ("ms", 1e-3)):
    if seconds >= size or not seconds:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds * 1e6:.3g} µs"
