"""A method with one setting at several values, as methods of their own.

So a sweep is one run: the same questions, agents and buffer, paired seeds, and
one report.
"""

from __future__ import annotations

import colorsys
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rapo_jax.algorithms.base import Algorithm
from rapo_jax.errors import InputError

_SECTIONS = ("objective", "retrieval", "rollout")


def variants(
  base: Algorithm, setting: str, values: Sequence[Any]
) -> tuple[Algorithm, ...]:
  """A method at several values of a setting.

  Args:
    base: the method.
    setting: such as "retrieval.noise_prob": a field of `ObjectiveConfig`,
      `RetrievalConfig` or `RolloutConfig` behind its section of the config.
    values: of the setting, all different.

  Returns:
    A method a value, named `<base>_<field>_<value>`, in colours from dark to
    light.

  Raises:
    InputError: the setting is of another section or unknown, a value is out of
      range, or two values are the same.
  """
  section, _, field = setting.partition(".")
  if section not in _SECTIONS:
    raise InputError(
      f"a setting of variants must be one of {', '.join(_SECTIONS)} and a "
      f"field, such as retrieval.noise_prob, got {setting!r}: correct it."
    )
  found = []
  colours = spread_colours(len(values))
  for value, (colour, dark_colour) in zip(values, colours, strict=True):
    word = re.sub(r"[^a-z0-9]+", "_", f"{value}".lower()).strip("_")
    made = dataclasses.replace(
      base,
      name=f"{base.name}_{field}_{word}",
      label=f"{base.label}, {field} {value}",
      description=f"{base.description} With {setting} = {value}.",
      colour=colour,
      dark_colour=dark_colour,
    )
    found.append(_changed(made, section, {field: value}))
  if len({one.name for one in found}) < len(found):
    raise InputError(
      f"variants need values that differ, got {tuple(values)} of {setting}: "
      "leave one out."
    )
  return tuple(found)


def _changed(
  algorithm: Algorithm, section: str, change: Mapping[str, Any]
) -> Algorithm:
  if section == "objective":
    changes = {**algorithm.changes, **change}
    return dataclasses.replace(algorithm, changes=changes)
  plan = algorithm.plan
  if section == "retrieval":
    changes = {**plan.retrieval_changes, **change}
    plan = dataclasses.replace(plan, retrieval_changes=changes)
  else:
    changes = {**plan.rollout_changes, **change}
    plan = dataclasses.replace(plan, rollout_changes=changes)
  return dataclasses.replace(algorithm, plan=plan)


def spread_colours(count: int) -> list[tuple[str, str]]:
  """Colours from blue to orange that can be told apart.

  Args:
    count: how many.

  Returns:
    `#rrggbb` on a light page and on a dark one, of each.
  """
  hues = [
    (0.58 + place / max(count - 1, 1) * 0.5) % 1 for place in range(count)
  ]
  return [(_colour(hue, 0.36), _colour(hue, 0.7)) for hue in hues]


def _colour(hue: float, lightness: float) -> str:
  rgb = colorsys.hls_to_rgb(hue, lightness, 0.65)
  return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
