"""FLOPs and bytes of a program, counted on its jaxpr.

XLA's own count takes the body of a loop once, however often it runs. Here every
scan counts with its length. The length of a while loop is known only at run
time; it counts with the caller's number of trips.

Only matrix products are counted. They are nearly all of the FLOPs. A good
compiler fuses the operations between them into them. The remaining traffic is
reading their operands and writing their results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.extend.core as jex

# What a weight goes through on its way into a product, still itself.
_KEEPS = frozenset(
  {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "dynamic_slice",
    "name",
    "optimization_barrier",
    "reshape",
    "sharding_constraint",
    "slice",
    "squeeze",
    "transpose",
  }
)


@dataclasses.dataclass
class Cost:
  """Of a whole program, on all devices together.

  Attributes:
    flops: of matrix products, a multiplication and an addition each counted.
    weight_bytes: weights read by them.
    activation_bytes: everything else read or written by them.
  """

  flops: float = 0.0
  weight_bytes: float = 0.0
  activation_bytes: float = 0.0

  def add(self, other: Cost, times: float = 1.0) -> None:
    self.flops += times * other.flops
    self.weight_bytes += times * other.weight_bytes
    self.activation_bytes += times * other.activation_bytes


def count(
  jaxpr: Any, is_weight: Sequence[bool], trips: Sequence[float]
) -> Cost:
  """Counts a program.

  Args:
    jaxpr: closed jaxpr of the program.
    is_weight: for each of its inputs, whether it is a weight.
    trips: how often while loops run: those that stand in no other first, then
      those inside these, and so on; 1 beyond what is named.
  """
  return _walk(jaxpr.jaxpr, is_weight, tuple(trips))[0]


def _walk(
  jaxpr: Any, is_weight: Sequence[bool], trips: tuple[float, ...]
) -> tuple[Cost, list[bool]]:
  """Cost, and which outputs are weights still."""
  weights = {
    var for var, flag in zip(jaxpr.invars, is_weight, strict=True) if flag
  }
  cost = Cost()
  for eqn in jaxpr.eqns:
    flags = [_is(var, weights) for var in eqn.invars]
    name = eqn.primitive.name
    if name == "dot_general":
      cost.add(_product(eqn, flags))
      continue
    if name in _KEEPS:
      if flags[0]:
        weights.update(eqn.outvars)
      continue
    inner, outputs = _inner(eqn, name, flags, trips)
    cost.add(inner)
    weights.update(
      var for var, flag in zip(eqn.outvars, outputs, strict=False) if flag
    )
  return cost, [_is(var, weights) for var in jaxpr.outvars]


def _is(var: Any, weights: set[Any]) -> bool:
  return not isinstance(var, jex.Literal) and var in weights


def _product(eqn: Any, flags: Sequence[bool]) -> Cost:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  left = eqn.invars[0].aval
  out = eqn.outvars[0].aval
  cost = Cost(
    flops=2.0
    * math.prod(out.shape)
    * math.prod(left.shape[axis] for axis in contracted),
    activation_bytes=_bytes(out),
  )
  for var, weight in zip(eqn.invars, flags, strict=True):
    if weight:
      cost.weight_bytes += _bytes(var.aval)
    else:
      cost.activation_bytes += _bytes(var.aval)
  return cost


def _inner(
  eqn: Any, name: str, flags: list[bool], trips: tuple[float, ...]
) -> tuple[Cost, list[bool]]:
  """Cost of the programs inside an equation, as often as they run."""
  params = eqn.params
  total = Cost()
  if name == "scan":
    body, _ = _walk(params["jaxpr"].jaxpr, flags, trips)
    total.add(body, params["length"])
    return total, []
  if name == "while":
    body_flags = flags[params["cond_nconsts"] :]
    body, _ = _walk(params["body_jaxpr"].jaxpr, body_flags, trips[1:])
    total.add(body, trips[0] if trips else 1.0)
    return total, []
  if name == "cond":
    walked = [_walk(b.jaxpr, flags[1:], trips) for b in params["branches"]]
    # The dearer branch: work that is skipped at times is not counted as saved.
    total.add(max((c for c, _ in walked), key=lambda c: c.flops))
    return total, walked[0][1]
  if name == "pallas_call":
    kernel = params["jaxpr"]
    body, _ = _walk(kernel, [False] * len(kernel.invars), trips)
    total.add(
      Cost(flops=body.flops),
      _steps(params["name"], params["grid_mapping"].grid),
    )
    total.activation_bytes += sum(
      _bytes(var.aval) for var in (*eqn.invars, *eqn.outvars)
    )
    return total, []
  outputs: list[bool] = []
  # A shard_map's program is that of one device.
  copies = math.prod(
    params["mesh"].shape[axis] for axis in params.get("newly_manual_axes", ())
  )
  for jaxpr in _jaxprs(params):
    if len(jaxpr.invars) == len(flags):
      body, outputs = _walk(jaxpr, flags, trips)
      total.add(body, copies)
  return total, outputs


def _steps(kernel: str, grid: Sequence[int]) -> float:
  """Steps of a kernel's grid in which it computes anything.

  The splash kernels pass over the blocks that the causal mask hides. The last
  two axes of their grid are blocks of queries and of keys, in either order.
  """
  if not kernel.startswith("splash_"):
    return math.prod(grid)
  *others, rows, columns = grid
  reached = sum(-(-(row + 1) * columns // rows) for row in range(rows))
  return math.prod(others) * reached


def _jaxprs(params: Mapping[str, Any]) -> Iterable[Any]:
  """Programs that stand in an equation, e.g. of a nested jit."""
  for value in params.values():
    if isinstance(value, jex.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, jex.Jaxpr):
      yield value


def _bytes(aval: Any) -> float:
  return float(math.prod(aval.shape)) * aval.dtype.itemsize
