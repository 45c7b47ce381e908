"""What devices send each other, read off a compiled program."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

_OPS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(_OPS)})(-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLS = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations|called_computations)="
  r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_TRIPS = re.compile(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)')
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of communication in a program.

  Attributes:
    op: e.g. "all-gather".
    count: how often a device takes part.
    bytes: what one device sends in all of them.
  """

  op: str
  count: float
  bytes: float


def collectives(hlo: str, trips: Sequence[float]) -> list[Collective]:
  """Counts communication in the text of a compiled program.

  Args:
    hlo: as `compiled.as_text()` gives it; shapes are those of one device.
    trips: how often loops without a known count run, by how deep they stand
      among such loops; 1 beyond what is named.
  """
  computations, entry = _split(hlo)
  counts: dict[str, float] = collections.defaultdict(float)
  sent: dict[str, float] = collections.defaultdict(float)
  for name, times in _runs(computations, entry, trips):
    for line in computations[name]:
      match = _COLLECTIVE.search(line)
      if match:
        op = match[2]
        size = _result_bytes(match[1], started=bool(match[3]))
        counts[op] += times
        sent[op] += times * _wire_bytes(op, size, _group_size(line))
  return [Collective(op, counts[op], sent[op]) for op in _OPS if op in counts]


def _split(hlo: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation, and the name of the first one to run."""
  computations: dict[str, list[str]] = {}
  entry = current = ""
  for line in hlo.splitlines():
    if line and not line.startswith((" ", "}")) and line.endswith("{"):
      match = _COMPUTATION.match(line)
      if match:
        current = match[1]
        computations[current] = []
        entry = current if line.startswith("ENTRY") else entry
    elif current and line.startswith("  "):
      computations[current].append(line)
  return computations, entry


def _runs(
  computations: dict[str, list[str]], entry: str, trips: Sequence[float]
) -> Iterator[tuple[str, float]]:
  """Each computation with how often it runs, once for every way to it."""
  stack: list[tuple[str, float, int]] = [(entry, 1.0, 0)]
  while stack:
    name, times, depth = stack.pop()
    yield name, times
    for line in computations.get(name, ()):
      loop = " while(" in line
      known = _TRIPS.search(line)
      factor, deeper = 1.0, 0
      if loop and known:
        factor = float(known[1])
      elif loop:
        factor = trips[depth] if depth < len(trips) else 1.0
        deeper = 1
      for calls in _CALLS.finditer(line):
        for callee in (calls[1] or calls[2]).split(","):
          callee = callee.strip().lstrip("%")
          if callee in computations:
            stack.append((callee, times * factor, depth + deeper))


def _result_bytes(shapes: str, *, started: bool) -> float:
  sizes = [
    math.prod(int(n) for n in dims.split(",") if n) * _bits(dtype) / 8
    for dtype, dims in _SHAPE.findall(shapes)
  ]
  # An asynchronous start returns its operand beside its result.
  return max(sizes) if started and len(sizes) > 1 else float(sum(sizes))


def _bits(dtype: str) -> int:
  digits = re.sub(r"^\D+", "", dtype)
  return _BITS.get(dtype) or int(digits or 32)


def _group_size(line: str) -> int:
  """Devices that take part together; 2 for a permutation's pairs."""
  listed = _LISTED_GROUPS.search(line)
  if listed:
    return len(listed[1].split(","))
  counted = _COUNTED_GROUPS.search(line)
  if counted:
    return int(counted[2])
  mesh = _MESH_GROUPS.search(line)
  if mesh:
    sizes = dict(item.split("=") for item in mesh[1].split(","))
    return math.prod(int(sizes[axis]) for axis in mesh[2].split(","))
  return 2


def _wire_bytes(op: str, size: float, group: int) -> float:
  """Bytes that a device sends around a ring, `size` being the result's."""
  others = (group - 1) / group
  return {
    "all-gather": size * others,
    "all-reduce": 2 * size * others,
    # The result is one part of what is summed.
    "reduce-scatter": size * (group - 1),
    "all-to-all": size * others,
    "collective-permute": size,
  }[op]
