"""What devices send each other, read off a compiled program."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

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
# What leaves a slice of TPUs is handed to the hosts, group by group of slices.
_TRANSFER = re.compile(r'= (.+?) recv\(.*_xla_megascale_transfer_type="(\w+)"')
_TRANSFERS = {
  "ALL_GATHER": "all-gather",
  "ALL_REDUCE": "all-reduce",
  "REDUCE_SCATTER": "reduce-scatter",
  "ALL_TO_ALL": "all-to-all",
  "ONE_TO_ONE": "collective-permute",
}
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}')
_LAYOUT = re.compile(r"\{[^{}]*\}")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLS = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations|called_computations)="
  r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_TRIPS = re.compile(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)')
_DEVICES = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{([\d,]+)\}")
_COUNTED_GROUPS = re.compile(
  r"replica_groups=\[(\d+),(\d+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?"
)
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of communication in a program.

  Attributes:
    op: e.g. "all-gather".
    count: how often a device takes part.
    bytes: what one device sends in all of them.
    far_bytes: what a device's link out of its island carries of them; 0 where
      there is one island.
  """

  op: str
  count: float
  bytes: float
  far_bytes: float = 0.0


def collectives(
  hlo: str,
  trips: Sequence[float],
  island: int | None = None,
  slices: int = 1,
) -> list[Collective]:
  """Counts communication in the text of a compiled program.

  Args:
    hlo: as `compiled.as_text()` gives it; shapes are those of one device.
    trips: how often loops without a known count run, by how deep they stand
      among such loops; 1 beyond what is named.
    island: devices, one after another, that a fast network joins, such as the
      GPUs of one host; None if it joins all.
    slices: of TPUs that the program runs on. Its text is that of one of them,
      with transfers to others beside its collectives.
  """
  computations, entry = _split(hlo)
  devices = _devices(hlo)
  times: dict[tuple[str, int], float] = collections.defaultdict(float)
  for name, runs in _runs(computations, entry, trips):
    for number, line in enumerate(computations[name]):
      if _COLLECTIVE.search(line) or _TRANSFER.search(line):
        times[name, number] += runs
  # A collective that is overlapped with other work stands in every piece of
  # it, loops included, by one channel. It begins once.
  begun: dict[str, tuple[float, _Begun]] = {}
  for (name, number), runs in times.items():
    line = computations[name][number]
    one = _begun(line, devices, slices)
    channel = _CHANNEL.search(line)
    # Collectives, and transfers between slices, number their channels apart.
    key = f"{one.kind} {channel[1]}" if channel else f"{name} {number}"
    if key not in begun or runs < begun[key][0]:
      begun[key] = runs, one
  counts: dict[str, float] = collections.defaultdict(float)
  sent: dict[str, float] = collections.defaultdict(float)
  far: dict[str, float] = collections.defaultdict(float)
  for runs, one in begun.values():
    wire = runs * _wire_bytes(one.op, one.size, len(one.group))
    counts[one.op] += runs
    sent[one.op] += wire
    far[one.op] += wire * _far_share(one.group, island)
  return [
    Collective(op, counts[op], sent[op], far[op]) for op in _OPS if op in counts
  ]


@dataclasses.dataclass(frozen=True)
class _Begun:
  """A collective, or a transfer between slices, as a line begins it.

  Attributes:
    kind: of the line, to tell channels of one number apart.
    op: one of `_OPS`.
    size: bytes of its result.
    group: the first of the groups of devices that take part together.
  """

  kind: str
  op: str
  size: float
  group: list[int]


def _begun(line: str, devices: int, slices: int) -> _Begun:
  """Reads a line that begins communication, on so many devices of a slice."""
  transfer = _TRANSFER.search(line)
  if transfer:
    # Devices at the same place of each slice. Where a program does not say of
    # which slices, they are taken to be all.
    target = _SLICES.search(line)
    number = target[1].count(",") + 1 if target else slices
    return _Begun(
      "transfer",
      _TRANSFERS[transfer[2]],
      _size(_entries(transfer[1])[0]),
      [devices * index for index in range(number)],
    )
  match = _COLLECTIVE.search(line)
  assert match is not None
  result, op = match[1], match[2]
  # A start returns its operands first, then its results. An all-reduce's have
  # the same shapes and are given once.
  if match[3] and op != "all-reduce":
    result = _entries(result)[1]
  return _Begun(op, op, _size(result), _group(line, devices))


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
      factor, deeper = 1.0, 0
      loop = _LOOP.search(line)
      if loop:
        known = _known_trips(line, computations, loop[1], loop[2])
        if known is None:
          factor = trips[depth] if depth < len(trips) else 1.0
          deeper = 1
        else:
          factor = known
      for calls in _CALLS.finditer(line):
        for callee in (calls[1] or calls[2]).split(","):
          callee = callee.strip().lstrip("%")
          if callee in computations:
            stack.append((callee, times * factor, depth + deeper))


def _known_trips(
  line: str, computations: dict[str, list[str]], condition: str, body: str
) -> float | None:
  """How often a loop runs, if that is known before it does.

  CPU programs say so. In those for TPU it is read off the loop. The loop counts
  from 0, by a constant, up to a constant.
  """
  if said := _TRIPS.search(line):
    return float(said[1])
  test = _definitions(computations.get(condition, ()))
  match = re.search(r" compare\((.+?)\), direction=LT", test[""])
  if match is None:
    return None
  counter, limit = (test.get(name, "") for name in _names(match[1]))
  index, end = _index(counter), _constant(limit)
  if index is None or end is None:
    return None
  return math.ceil(end / _step(_definitions(computations[body]), index))


def _step(body: dict[str, str], index: int) -> int:
  """By how much a loop's body raises entry `index` of what it carries."""
  carried = re.search(r" tuple\((.*?)\)", body[""])
  name, step = _names(carried[1])[index] if carried else "", 0
  while change := re.search(r" (?:add|copy)\((.+?)\)", body.get(name, "")):
    name = ""
    for operand in _names(change[1]):
      value = _constant(body.get(operand, ""))
      if value is None:
        name = operand
      else:
        step += value
  return max(step, 1)


def _definitions(lines: Sequence[str]) -> dict[str, str]:
  """Instructions by name; the last one, the result, by the empty name too."""
  found = {"": ""}
  for line in lines:
    match = _INSTRUCTION.match(line)
    if match:
      found[match[2]] = line
      if match[1]:
        found[""] = line
  return found


def _names(operands: str) -> list[str]:
  return re.findall(r"%([\w.\-]+)", operands)


def _constant(line: str) -> int | None:
  match = re.search(r" constant\((\d+)\)", line)
  return int(match[1]) if match else None


def _index(line: str) -> int | None:
  match = re.search(r" get-tuple-element\(.*\), index=(\d+)", line)
  return int(match[1]) if match else None


def _devices(hlo: str) -> int:
  """How many devices run the program, as its first line says."""
  return math.prod(int(n) for n in _DEVICES.findall(hlo.partition("\n")[0]))


def _entries(shapes: str) -> list[str]:
  """Entries of a tuple of shapes, which may be tuples themselves."""
  depth, entries = 0, [""]
  for character in _LAYOUT.sub("", shapes).strip()[1:-1]:
    depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
    if character == "," and depth == 0:
      entries.append("")
    else:
      entries[-1] += character
  return entries


def _size(shapes: str) -> float:
  """Bytes of all the shapes that a text names."""
  return sum(
    math.prod(int(n) for n in dims.split(",") if n) * _bits(dtype) / 8
    for dtype, dims in _SHAPE.findall(shapes)
  )


def _bits(dtype: str) -> int:
  digits = re.sub(r"^\D+", "", dtype)
  return _BITS.get(dtype) or int(digits or 32)


def _group(line: str, devices: int) -> list[int]:
  """The first of the groups of devices that take part together.

  All devices where none are named. Two that send to each other are a group.
  """
  listed = _LISTED_GROUPS.search(line) or _PAIRS.search(line)
  if listed:
    return [int(n) for n in listed[1].split(",")]
  counted = _COUNTED_GROUPS.search(line)
  if counted:
    numbers = np.arange(devices)
    if counted[3]:
      numbers = numbers.reshape([int(n) for n in counted[3].split(",")])
    if counted[4]:
      numbers = numbers.transpose([int(n) for n in counted[4].split(",")])
    return [int(n) for n in numbers.ravel()[: int(counted[2])]]
  mesh = _MESH_GROUPS.search(line)
  if mesh:
    sizes = dict(item.split("=") for item in mesh[1].split(","))
    names = [*sizes]
    grid = np.arange(devices).reshape([int(n) for n in sizes.values()])
    chosen = {names.index(axis) for axis in mesh[2].split(",")}
    first = tuple(
      slice(None) if axis in chosen else 0 for axis in range(len(names))
    )
    return [int(n) for n in grid[first].ravel()]
  return list(range(devices))


def _far_share(group: Sequence[int], island: int | None) -> float:
  """Share of what a device sends that its link out of its island carries.

  Rings go through all members of an island before they leave it. There are as
  many rings as an island has members, each with a way out of its own. So their
  links share what leaves.
  """
  if island is None or len({n // island for n in group}) == 1:
    return 0.0
  here = sum(n // island == group[0] // island for n in group)
  return 1.0 / here


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
