"""Compiles an experiment's programs and works out memory, time and a verdict.

Nothing runs: programs are compiled ahead of time for devices that need not be
attached, and what the compiler says of their memory is what a run would take.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from experiments import input_errors
from experiments.config import ExperimentConfig
from experiments.planner import chips, collectives, jaxpr_cost
from experiments.planner.programs import (
  Program,
  Programs,
  Workload,
  device_bytes,
)
from rapo_jax import models
from rapo_jax.models import sharding

# What the runtime keeps for itself.
_USABLE = 0.95


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Least time of one run of a program on one kind of chip.

  Attributes:
    seconds: the longest of the three below.
    bound: "compute", "memory" or "network".
    compute_s: FLOPs at the chip's peak.
    memory_s: bytes at its memory's bandwidth.
    network_s: what is sent at its links' bandwidth.
  """

  seconds: float
  bound: str
  compute_s: float
  memory_s: float
  network_s: float


@dataclasses.dataclass(frozen=True)
class ProgramReport:
  """What one device needs for one run of a program.

  Attributes:
    name: of the program.
    calls: runs in one RAPO update.
    argument_bytes: inputs.
    output_bytes: results that do not take an input's place.
    temporary_bytes: what is alive in between.
    flops: of matrix products.
    memory_bytes: read and written, see `experiments.planner.jaxpr_cost`.
    network_bytes: sent to other devices.
    collectives: by kind; none are known of a program that the compiler refused
      for lack of memory.
    compile_s: time the compiler took.
    rooflines: by chip.
  """

  name: str
  calls: float
  argument_bytes: int
  output_bytes: int
  temporary_bytes: int
  flops: float
  memory_bytes: float
  network_bytes: float
  collectives: list[collectives.Collective]
  compile_s: float
  rooflines: dict[str, Roofline]

  @property
  def peak_bytes(self) -> int:
    """Memory while it runs."""
    return self.argument_bytes + self.output_bytes + self.temporary_bytes


@dataclasses.dataclass(frozen=True)
class Plan:
  """Everything that is known of an experiment on a topology.

  Attributes:
    experiment: its name.
    topology: what it was planned for.
    mesh: sizes of its axes.
    assumptions: about trajectories.
    memory: bytes on one device by kind.
    capacity_bytes: of one device; None where it is not known.
    peak_bytes: in the rollout and in the update.
    fits: whether both peaks do; None without a capacity.
    largest: most slots and rows of a micro-batch that fit.
    programs: one report each.
    update_seconds: roofline time of one RAPO update by chip.
    verdict: in words, with the change that would make it fit.
  """

  experiment: str
  topology: str
  mesh: dict[str, int]
  assumptions: dict[str, float]
  memory: dict[str, int]
  capacity_bytes: float | None
  peak_bytes: dict[str, int]
  fits: bool | None
  largest: dict[str, int]
  programs: list[ProgramReport]
  update_seconds: dict[str, float]
  verdict: str


def make_plan(
  config: ExperimentConfig,
  shape: models.DecoderConfig,
  topology: chips.Topology,
  workload: Workload,
  progress: Callable[[str], None],
) -> Plan:
  """Compiles everything and judges it.

  Args:
    config: the experiment.
    shape: of the policy.
    topology: devices to compile for.
    workload: what trajectories are like.
    progress: told what is under way.

  Raises:
    InputError: the mesh does not use the devices, or does not divide a
      dimension of the model or of the batch; names what would work.
  """
  with input_errors.from_outside():
    axes = config.mesh.shape(len(topology.devices))
    mesh = sharding.make_mesh(**axes, devices=topology.devices)
    sharding.check_rows("rollout.num_slots", config.rollout.num_slots, mesh)
    sharding.check_rows(
      "update.rows_per_microbatch", config.update.rows_per_microbatch, mesh
    )
    programs = Programs(config, shape, mesh, workload)
  reports = []
  with jax.set_mesh(mesh):
    for program in programs:
      progress(f"compiling {program.name} for {topology.name}")
      reports.append(_report(program, mesh))
  chip = chips.CHIPS.get(topology.chip)
  memory = {
    "parameters": device_bytes(programs.train_model),
    "optimizer": device_bytes(programs.opt_state),
    "rollout parameters": device_bytes(programs.rollout_model),
    "KV cache": device_bytes(programs.slots.cache),
  }
  judged = _Judged(
    config,
    mesh,
    memory,
    {r.name: r for r in reports},
    chip,
    gradient_bytes=device_bytes(models.trainable(programs.train_model)),
  )
  return Plan(
    experiment=config.name,
    topology=topology.name,
    mesh=axes,
    assumptions=dataclasses.asdict(workload)
    | {"sequence_tokens": programs.sequence_tokens, "waves": programs.waves},
    memory=memory | {"activations": judged.activation_bytes},
    capacity_bytes=judged.capacity_bytes,
    peak_bytes={"rollout": judged.rollout_peak, "update": judged.update_peak},
    fits=judged.fits,
    largest=judged.largest,
    programs=reports,
    update_seconds={
      name: sum(r.calls * r.rooflines[name].seconds for r in reports)
      for name in chips.CHIPS
    },
    verdict=judged.verdict(topology.name),
  )


def _report(program: Program, mesh: Mesh) -> ProgramReport:
  traced = program.function.trace(*program.args, **program.kwargs)
  cost = jaxpr_cost.count(traced.jaxpr, program.is_weight, program.trips)
  began = time.perf_counter()
  compiled = _compile(traced, program)
  compile_s = time.perf_counter() - began
  sent = (
    collectives.collectives(compiled.text, program.trips)
    if compiled.text is not None
    else []
  )
  flops = cost.flops / mesh.size
  moved = (
    # Weights are gathered over the other axes before they are read.
    cost.weight_bytes / mesh.shape["tensor"]
    + cost.activation_bytes / mesh.size
    + compiled.argument_bytes
    + compiled.output_bytes
  )
  network = sum(c.bytes for c in sent)
  return ProgramReport(
    name=program.name,
    calls=program.calls,
    argument_bytes=compiled.argument_bytes,
    output_bytes=max(0, compiled.output_bytes - compiled.alias_bytes),
    temporary_bytes=compiled.temporary_bytes,
    flops=flops,
    memory_bytes=moved,
    network_bytes=network,
    collectives=sent,
    compile_s=round(compile_s, 1),
    rooflines={
      name: _roofline(chip, flops, moved, network)
      for name, chip in chips.CHIPS.items()
    },
  )


@dataclasses.dataclass(frozen=True)
class _Compiled:
  """What the compiler says of a program, in bytes of one device."""

  argument_bytes: int
  output_bytes: int
  alias_bytes: int
  temporary_bytes: int
  text: str | None


def _compile(traced: Any, program: Program) -> _Compiled:
  """Compiles a program, or learns from the refusal how much it lacks.

  The compiler for TPUs refuses what the chip's memory does not hold, and names
  what it would take.
  """
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    arguments = device_bytes(program.args)
    temporary = needed_bytes(str(error))
    if temporary is None:
      raise
    return _Compiled(arguments, 0, 0, temporary, text=None)
  memory = compiled.memory_analysis()
  return _Compiled(
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes,
    memory.alias_size_in_bytes,
    memory.temp_size_in_bytes,
    compiled.as_text(),
  )


def needed_bytes(message: str) -> int | None:
  """The largest size in a refusal for lack of memory; None in another error."""
  sizes = re.findall(r"([\d.]+)([KMGT])", message)
  if "RESOURCE_EXHAUSTED" not in message or not sizes:
    return None
  powers = {"K": 10, "M": 20, "G": 30, "T": 40}
  return max(int(float(n) * 2 ** powers[unit]) for n, unit in sizes)


def _roofline(
  chip: chips.Chip, flops: float, moved: float, network: float
) -> Roofline:
  times = {
    "compute": flops / chip.flops_per_s,
    "memory": moved / chip.memory_bytes_per_s,
    "network": network / chip.link_bytes_per_s,
  }
  bound = max(times, key=lambda name: times[name])
  return Roofline(
    times[bound], bound, times["compute"], times["memory"], times["network"]
  )


class _Judged:
  """Peaks against capacity, and what could be had instead.

  While a rollout runs, the training state stays where it is; while an update
  runs, the rollout's cache is gone, and its copy of weights that are trained.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    mesh: Mesh,
    memory: dict[str, int],
    reports: dict[str, ProgramReport],
    chip: chips.Chip | None,
    *,
    gradient_bytes: int,
  ):
    self._config = config
    self._share = mesh.shape["data"] * mesh.shape["fsdp"]
    self._memory = memory
    self._update = reports["update"]
    self.capacity_bytes = None if chip is None else _USABLE * chip.memory_bytes
    self._resident = memory["parameters"] + memory["optimizer"]
    slots = reports["decode"].argument_bytes - memory["rollout parameters"]
    # What is alive between products grows with the slots too.
    between = max(
      reports[name].temporary_bytes for name in ("decode", "insert")
    )
    self._per_slot = (slots + between) / (
      config.rollout.num_slots / self._share
    )
    self.rollout_peak = self._resident + max(
      reports["decode"].peak_bytes,
      reports["insert"].peak_bytes,
      reports["prefill"].peak_bytes + slots,
    )
    # A frozen base stays where rollouts have it.
    kept = memory["rollout parameters"] if config.policy.lora else 0
    self.update_peak = self._update.peak_bytes + kept
    # Gradients lie beside the activations among what is temporary.
    self.activation_bytes = max(
      0, self._update.temporary_bytes - gradient_bytes
    )

  @property
  def fits(self) -> bool | None:
    if self.capacity_bytes is None:
      return None
    return max(self.rollout_peak, self.update_peak) <= self.capacity_bytes

  @property
  def largest(self) -> dict[str, int]:
    """Most slots and rows of a micro-batch; 0 where nothing fits."""
    if self.capacity_bytes is None:
      return {}
    slots = self._config.rollout.num_slots
    rows = self._config.update.rows_per_microbatch
    per_row = self.activation_bytes / (rows / self._share)
    return {
      "num_slots": self._more(slots, self.rollout_peak, self._per_slot),
      "rows_per_microbatch": self._more(rows, self.update_peak, per_row),
    }

  def _more(self, now: int, peak: float, each: float) -> int:
    """A setting's largest value, where each unit takes as much again."""
    assert self.capacity_bytes is not None
    more = math.floor((self.capacity_bytes - peak) / max(each, 1))
    return max(0, now + more * self._share)

  def verdict(self, topology: str) -> str:
    if self.capacity_bytes is None:
      return f"compiles; what {topology} has in memory is not known"
    if self.fits:
      return (
        f"fits {topology}: at most "
        f"{max(self.rollout_peak, self.update_peak) / 2**30:.1f} of "
        f"{self.capacity_bytes / 2**30:.1f} GiB"
      )
    changes = []
    for what, peak, name in (
      ("the rollout", self.rollout_peak, "num_slots"),
      ("the update", self.update_peak, "rows_per_microbatch"),
    ):
      if peak > self.capacity_bytes:
        section = "rollout" if name == "num_slots" else "update"
        least = self.largest[name]
        changes.append(
          f"{what} takes {peak / 2**30:.1f} GiB: "
          + (
            f"lower {section}.{name} to {least}"
            if least
            else self._cut_further()
          )
        )
    return (
      f"does not fit {topology} ({self.capacity_bytes / 2**30:.1f} GiB a "
      "device); " + "; ".join(changes)
    )

  def _cut_further(self) -> str:
    assert self.capacity_bytes is not None
    factor = math.ceil(self._resident / (0.5 * self.capacity_bytes))
    if factor > 1:
      return (
        f"the training state alone takes {self._resident / 2**30:.1f} GiB, "
        f"take {factor} times as many devices over fsdp"
      )
    return "cut the model over more devices (mesh.tensor), or shorten rows"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
  """The plan as plain values, for JSON."""
  content = dataclasses.asdict(plan)
  for program, report in zip(content["programs"], plan.programs, strict=True):
    program["peak_bytes"] = report.peak_bytes
  return content
