"""How far a setting can be raised, or has to be lowered, to fit a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

# Compilations, at most; a line through what is known comes close in three.
_TRIES = 5


def largest_that_fits(
  known: Mapping[int, float],
  peak_at: Callable[[int], float],
  *,
  capacity: float,
  constant: float,
  step: int,
  most: int,
  any_will_do: bool = False,
) -> int:
  """The largest value found to fit. Nothing is claimed by proportion alone.

  Memory grows with the setting along a line, or nearly: the next value to try
  lies where the line through the two nearest ones meets the capacity.

  Args:
    known: peak memory by value, of what has been compiled.
    peak_at: compiles a value and returns its peak.
    capacity: memory of a device.
    constant: what the setting has no part in; a guess to begin with.
    step: values are multiples of it.
    most: the largest value of any use.
    any_will_do: stop at the first value that fits.

  Returns:
    A value that was compiled and fits, 0 if none does.
  """
  peaks = {0: constant, **known}
  if constant > capacity:
    return 0
  for _ in range(_TRIES):
    fits = max(value for value, peak in peaks.items() if peak <= capacity)
    refused = [value for value, peak in peaks.items() if peak > capacity]
    low, high = fits + step, min([most, *(value - step for value in refused)])
    if low > high or (fits and any_will_do):
      break
    # Around the limit where both sides are known, else the two largest.
    ends = [fits, min(refused)] if refused else sorted(peaks)[-2:]
    below, above = (peaks[value] for value in ends)
    slope = max((above - below) / (ends[1] - ends[0]), 1.0)
    guess = ends[0] + (capacity - below) / slope
    value = min(max(math.floor(guess / step) * step, low), high)
    peaks[value] = peak_at(value)
  return max(value for value, peak in peaks.items() if peak <= capacity)
