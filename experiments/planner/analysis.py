"""Compiles an experiment's programs and works out memory, time and a verdict.

Nothing runs. Programs are compiled ahead of time for devices that need not be
attached. The compiler's figure for their memory is that of a run.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from experiments.config import ExperimentConfig
from experiments.planner import chips, collectives, host_loop, jaxpr_cost
from experiments.planner.programs import (
  Program,
  Programs,
  Workload,
  device_bytes,
)
from experiments.planner.search import largest_that_fits
from experiments.policy_shape import Agent, policy_shape
from rapo_jax import models
from rapo_jax.algorithms import Algorithm
from rapo_jax.models import sharding
from rapo_jax.rollout.shares import of_all_hosts
from rapo_jax.training import packed_columns

# What the runtime keeps for itself.
_USABLE = 0.95

Phase = Literal["rollout", "update"]

_SETTINGS: dict[Phase, tuple[str, str]] = {
  "rollout": ("rollout", "num_slots"),
  "update": ("update", "rows_per_microbatch"),
}
"""Section and name of the setting that a phase's memory grows with."""


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Least time of one run of a program on one kind of chip.

  Attributes:
    seconds: the longest of the three below.
    bound: "compute", "memory" or "network".
    compute_s: FLOPs at the chip's peak.
    memory_s: bytes at its memory's bandwidth.
    network_s: what is sent, at the bandwidth of its links, or what leaves its
      island at that of the way out, whichever takes longer.
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
    phase: "rollout" or "update".
    calls: runs in one round.
    argument_bytes: inputs.
    output_bytes: results that do not take an input's place.
    temporary_bytes: what is alive in between.
    beside_bytes: what is alive too and the program does not touch.
    flops: of matrix products.
    memory_bytes: read and written, see `experiments.planner.jaxpr_cost`.
    network_bytes: sent to other devices.
    collectives: by kind; none are known of a refused program.
    refused: by the compiler, for lack of memory.
    compile_s: time the compiler took.
    rooflines: by chip.
  """

  name: str
  phase: Phase
  calls: float
  argument_bytes: int
  output_bytes: int
  temporary_bytes: int
  beside_bytes: int
  flops: float
  memory_bytes: float
  network_bytes: float
  collectives: list[collectives.Collective]
  refused: bool
  compile_s: float
  rooflines: dict[str, Roofline]

  @property
  def peak_bytes(self) -> int:
    """Memory of a device while it runs, everything that is alive counted."""
    return (
      self.argument_bytes
      + self.output_bytes
      + self.temporary_bytes
      + self.beside_bytes
    )


@dataclasses.dataclass(frozen=True)
class Plan:
  """Everything that is known of an experiment on a topology.

  Attributes:
    experiment: its name.
    agent: which of its agents acts.
    method: that trains it, the costliest of the experiment; None for an agent
      that is not trained.
    topology: what it was planned for.
    compiled_for: "tpu", or "cpu" where figures come from fake CPU devices.
    mesh: sizes of its axes.
    settings: those that memory and time turn on.
    assumptions: about trajectories.
    memory: bytes on one device by kind.
    capacity_bytes: of one device; None where it is not known.
    peak_bytes: by phase.
    fits: whether all peaks do; None without a capacity.
    largest: most slots and rows of a micro-batch that were compiled and fit,
      by setting; empty if not asked for and not needed.
    programs: one report each.
    round: what a round is.
    trajectories: of a round.
    device_seconds: roofline time of the programs of a round by chip.
    host: what the host adds to it, by chip.
    round_seconds: least time of a round by chip, both together.
    notes: what to bear in mind with these figures.
    verdict: in words, with the change that makes it fit.
  """

  experiment: str
  agent: Agent
  method: str | None
  topology: str
  compiled_for: str
  mesh: dict[str, int]
  settings: dict[str, Any]
  assumptions: dict[str, float]
  memory: dict[str, int]
  capacity_bytes: float | None
  peak_bytes: dict[str, int]
  fits: bool | None
  largest: dict[str, int]
  programs: list[ProgramReport]
  round: str
  trajectories: int
  device_seconds: dict[str, float]
  host: dict[str, host_loop.HostTime]
  round_seconds: dict[str, float]
  notes: list[str]
  verdict: str


def make_plan(
  config: ExperimentConfig,
  topology: chips.Topology,
  workload: Workload,
  progress: Callable[[str], None],
  *,
  agent: Agent = "base",
  largest: Collection[Phase] = (),
) -> Plan:
  """Compiles everything and judges it.

  Args:
    config: the experiment.
    topology: devices to compile for.
    workload: what trajectories are like.
    progress: called with the name of the current step.
    agent: which agent acts. The off-policy agent fills the buffer: it is
      rolled out and never trained.
    largest: phases for which to find the most slots, or rows of a micro-batch,
      that fit. This compiles a few more times. Where a phase does not fit, a
      value that does is looked for in any case.

  Raises:
    InputError: the mesh does not use the devices, or does not divide a
      dimension of the model or of the batch. The message names a mesh that
      would work. Or the shape of the agent is not known.
  """
  config, axes, mesh = _on_topology(config, topology, agent)
  phases: tuple[Phase, ...] = ("rollout",)
  if agent == "base":
    phases = ("rollout", "update")
  compiler = _Compiler(
    config,
    policy_shape(config, agent),
    topology,
    mesh,
    workload,
    agent,
    progress,
  )
  algorithm = compiler.algorithm
  programs = compiler.programs(config)
  reports = [compiler.report(program) for program in programs]
  chip = chips.CHIPS.get(topology.chip)
  capacity = None if chip is None else _USABLE * chip.memory_bytes
  peaks = {phase: _peak(reports, phase) for phase in phases}
  found = {
    phase: compiler.largest(
      phase, peaks[phase], capacity, any_will_do=phase not in largest
    )
    for phase in phases
    if capacity is not None and (phase in largest or peaks[phase] > capacity)
  }
  activations = {}
  if agent == "base":
    activations["activations"] = _activation_bytes(programs, reports)
  device_seconds = _seconds(reports)
  host = _host(programs, reports, len(topology.devices))
  return Plan(
    experiment=config.name,
    agent=agent,
    method=algorithm.name if algorithm else None,
    topology=topology.name,
    compiled_for=topology.compiled_for,
    mesh=axes,
    settings=_settings(config, agent),
    assumptions=programs.assumptions,
    memory=programs.memory | activations,
    capacity_bytes=capacity,
    peak_bytes={str(phase): peak for phase, peak in peaks.items()},
    fits=None if capacity is None else max(peaks.values()) <= capacity,
    largest={
      ".".join(_SETTINGS[phase]): value for phase, value in found.items()
    },
    programs=reports,
    round=f"a {algorithm.label} update"
    if algorithm
    else f"{programs.sequences} trajectories for the buffer",
    trajectories=programs.sequences,
    device_seconds=device_seconds,
    host=host,
    round_seconds={
      name: seconds + host[name].seconds
      for name, seconds in device_seconds.items()
    },
    notes=_notes(topology, reports, algorithm),
    verdict=_verdict(
      topology,
      capacity,
      peaks,
      found,
      {phase: _constant_bytes(programs, phase) for phase in phases},
    ),
  )


def _seconds(reports: Iterable[ProgramReport]) -> dict[str, float]:
  """Least time of programs in a round, by chip."""
  found = list(reports)
  return {
    name: sum(r.calls * r.rooflines[name].seconds for r in found)
    for name in chips.CHIPS
  }


def _host(
  programs: Programs, reports: list[ProgramReport], devices: int
) -> dict[str, host_loop.HostTime]:
  assumptions = programs.assumptions
  return host_loop.host_times(
    devices=devices,
    device_seconds=_seconds(reports),
    decode_seconds=_seconds(r for r in reports if r.name == "decode"),
    trajectories=programs.sequences,
    loop_ms=assumptions["host_ms"],
    retrieval_ms=assumptions["retrieval_ms"],
    leader_ms=assumptions["leader_ms"],
  )


def _on_topology(
  config: ExperimentConfig, topology: chips.Topology, agent: Agent
) -> tuple[ExperimentConfig, dict[str, int], Mesh]:
  """The config with the shapes that the hosts of a topology roll out with.

  Returns:
    It, and the mesh over the topology: its axes by name, and itself.

  Raises:
    InputError: it does not use the devices, or does not divide the slots. Or it
      does not divide the rows of a micro-batch of a trained agent.
  """
  count = len(topology.devices)
  chip = chips.CHIPS.get(topology.chip)
  hosts = math.ceil(count / chip.host) if chip else 1
  config = dataclasses.replace(
    config, rollout=of_all_hosts(config.rollout, hosts)
  )
  axes = config.mesh.shape(count)
  mesh = sharding.make_mesh(**axes, devices=topology.devices)
  sharding.check_rows("rollout.num_slots", config.rollout.num_slots, mesh)
  if agent == "base":
    sharding.check_rows(
      "update.rows_per_microbatch", config.update.rows_per_microbatch, mesh
    )
  return config, axes, mesh


def costliest(
  config: ExperimentConfig,
  shape: models.DecoderConfig,
  mesh: Mesh,
  workload: Workload,
) -> Algorithm:
  """The trained method whose updates take most FLOPs, then most memory.

  Of equals, one that retrieves: its responses are longer.

  Args:
    config: the experiment.
    shape: of the agent.
    mesh: attached or not.
    workload: what trajectories are like.
  """
  methods = sorted(
    config.train.algorithms.values(), key=lambda m: not m.plan.hybrid
  )
  different: dict[Any, Algorithm] = {}
  for method in methods:
    settings = method.settings(config.objective)
    # All other differences are elementwise, and cost next to nothing.
    kind = (
      method.loss.segment,
      packed_columns(method),
      "proximal_log_probs" in method.loss.columns,
      settings.kl_coef > 0,
      settings.entropy_coef > 0,
    )
    different.setdefault(kind, method)
  if len(different) == 1:
    return methods[0]

  def cost(method: Algorithm) -> tuple[float, int]:
    programs = Programs(config, shape, mesh, workload, method)
    with jax.set_mesh(mesh):
      flops = sum(
        program.calls * _count(program)[1].flops
        for program in programs.phase("update")
        if program.calls
      )
    return flops, sum(programs.memory.values())

  return max(different.values(), key=cost)


class _Compiler:
  """Compiles programs of an experiment, as it is and with a setting changed."""

  def __init__(
    self,
    config: ExperimentConfig,
    shape: models.DecoderConfig,
    topology: chips.Topology,
    mesh: Mesh,
    workload: Workload,
    agent: Agent,
    progress: Callable[[str], None],
  ):
    self._config = config
    self._shape = shape
    self._topology = topology
    self._mesh = mesh
    self._workload = workload
    self._progress = progress
    self.algorithm = (
      costliest(config, shape, mesh, workload) if agent == "base" else None
    )

  def programs(self, config: ExperimentConfig) -> Programs:
    return Programs(
      config, self._shape, self._mesh, self._workload, self.algorithm
    )

  def report(self, program: Program, change: str = "") -> ProgramReport:
    self._progress(
      f"compiling {program.name} for {self._topology.name}{change}"
    )
    with jax.set_mesh(self._mesh):
      return _report(program, self._mesh, self._topology)

  def largest(
    self, phase: Phase, peak: int, capacity: float, *, any_will_do: bool
  ) -> int:
    """Most slots, or rows of a micro-batch, found to fit; 0 for none.

    No more are looked for than are of use: a slot for every trajectory of a
    round, a row for every trajectory of a minibatch.
    """
    section, name = _SETTINGS[phase]
    settings = getattr(self._config, section)
    now, step = getattr(settings, name), sharding.row_parts(self._mesh)
    programs = self.programs(self._config)
    useful = (
      programs.sequences
      if phase == "rollout"
      else programs.minibatch_trajectories
    )

    def peak_at(value: int) -> int:
      changed = dataclasses.replace(settings, **{name: value})
      config = dataclasses.replace(self._config, **{section: changed})
      reports = [
        self.report(program, f" with {section}.{name} {value}")
        for program in self.programs(config).phase(phase)
        if program.calls
      ]
      return _peak(reports, phase)

    return largest_that_fits(
      {now: peak},
      peak_at,
      capacity=capacity,
      constant=_constant_bytes(programs, phase),
      step=step,
      most=max(now, -(-useful // step) * step),
      any_will_do=any_will_do,
    )


def _settings(config: ExperimentConfig, agent: Agent) -> dict[str, Any]:
  rollout, update = config.rollout, config.update
  values: dict[str, Any] = {
    "num_slots": rollout.num_slots,
    "prefill_rows": rollout.prefill_rows,
    "decode_chunk": rollout.decode_chunk,
    "insert_chunk": rollout.insert_chunk,
  }
  if agent == "base":
    values |= {
      "rows_per_microbatch": update.rows_per_microbatch,
      "row_length": update.row_length,
      "remat": update.remat,
    }
  return values


def _peak(reports: list[ProgramReport], phase: Phase) -> int:
  """Of the programs of a phase that run at all."""
  return max(r.peak_bytes for r in reports if r.phase == phase and r.calls)


def _constant_bytes(programs: Programs, phase: Phase) -> int:
  """What a phase holds however many slots or rows there are."""
  memory = programs.memory
  kept = ("parameters", "optimizer", "reference")
  state = sum(memory.get(kind, 0) for kind in kept)
  if phase == "rollout":
    return state + memory["rollout parameters"]
  return state + _gradient_bytes(programs)


def _gradient_bytes(programs: Programs) -> int:
  return device_bytes(models.trainable(programs.train_model))


def _activation_bytes(programs: Programs, reports: list[ProgramReport]) -> int:
  """What the update has alive between, beside its gradients."""
  update = next(r for r in reports if r.name == "update")
  return max(0, update.temporary_bytes - _gradient_bytes(programs))


def _count(program: Program) -> tuple[Any, jaxpr_cost.Cost]:
  """A program, traced, and its cost on all devices together."""
  traced = program.function.trace(*program.args, **program.kwargs)
  cost = jaxpr_cost.count(traced.jaxpr, program.is_weight, program.trips)
  return traced, cost


def _report(
  program: Program, mesh: Mesh, topology: chips.Topology
) -> ProgramReport:
  traced, cost = _count(program)
  began = time.perf_counter()
  compiled = _compile(traced, program)
  compile_s = time.perf_counter() - began
  islands = {name: topology.island(chip) for name, chip in chips.CHIPS.items()}
  # What leaves an island depends on its size alone.
  sent = {
    island: collectives.collectives(
      compiled.text, program.trips, island, topology.slices
    )
    if compiled.text is not None
    else []
    for island in {mesh.size, *islands.values()}
  }
  share = program.copies / mesh.size
  flops = cost.flops * share
  moved = (
    # Weights are gathered over the other axes before they are read.
    cost.weight_bytes / mesh.shape["tensor"]
    + cost.activation_bytes * share
    + compiled.argument_bytes
    + compiled.output_bytes
  )
  network = sum(c.bytes for c in sent[mesh.size])
  return ProgramReport(
    name=program.name,
    phase=program.phase,
    calls=program.calls,
    argument_bytes=compiled.argument_bytes,
    output_bytes=max(0, compiled.output_bytes - compiled.alias_bytes),
    temporary_bytes=compiled.temporary_bytes,
    beside_bytes=program.beside_bytes,
    flops=flops,
    memory_bytes=moved,
    network_bytes=network,
    collectives=sent[islands.get(topology.chip, mesh.size)],
    refused=compiled.text is None,
    compile_s=round(compile_s, 1),
    rooflines={
      name: _roofline(
        chip,
        flops,
        moved,
        network,
        sum(c.far_bytes for c in sent[islands[name]]),
      )
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

  The compiler for TPUs refuses a program that the chip's memory does not hold.
  It names the memory that the program needs, arguments and results included.
  """
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    arguments = device_bytes(program.args)
    needed = needed_bytes(str(error))
    if needed is None:
      raise
    return _Compiled(arguments, 0, 0, max(0, needed - arguments), text=None)
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
  chip: chips.Chip, flops: float, moved: float, network: float, far: float
) -> Roofline:
  times = {
    "compute": flops / chip.flops_per_s,
    "memory": moved / chip.memory_bytes_per_s,
    "network": max(network / chip.link_bytes_per_s, far / chip.far_bytes_per_s),
  }
  bound = max(times, key=lambda name: times[name])
  return Roofline(
    times[bound], bound, times["compute"], times["memory"], times["network"]
  )


def _notes(
  topology: chips.Topology,
  reports: list[ProgramReport],
  algorithm: Algorithm | None,
) -> list[str]:
  notes = []
  if algorithm and algorithm.plan.resample:
    notes.append(
      f"{algorithm.label} rolls out up to {algorithm.plan.resample.max_rounds} "
      "times before an update: one rollout is counted"
    )
  if algorithm and algorithm.plan.teacher == "all":
    notes.append(
      f"{algorithm.label} trains without rollouts: those that are shown are of "
      "evaluation"
    )
  if topology.compiled_for == "cpu":
    is_gpu = topology.chip != "cpu"
    notes.append(
      f"compiled for {len(topology.devices)} fake CPU devices"
      + (f", not for {topology.chip}" if is_gpu else "")
      + ": there bfloat16 is widened to float32 and attention has no kernel, "
      "so that temporary memory, bytes moved by attention and bytes sent are "
      "larger than on an accelerator"
    )
    if is_gpu:
      notes.append(
        "on a GPU the weights lie there twice while it rolls out, stacked and "
        "layer by layer: one more copy than is counted here"
      )
  refused = [r.name for r in reports if r.refused]
  if refused:
    notes.append(
      f"the compiler refused {', '.join(refused)} for lack of memory: what "
      "they send is not known and not in any time"
    )
  return notes


def _verdict(
  topology: chips.Topology,
  capacity: float | None,
  peaks: dict[Phase, int],
  found: dict[Phase, int],
  constants: dict[Phase, int],
) -> str:
  name = topology.name
  if capacity is None:
    return f"compiles; what {name} has in memory is not known"
  guess = ", by what fake CPU devices take" * (topology.compiled_for == "cpu")
  if max(peaks.values()) <= capacity:
    return (
      f"fits {name}{guess}: at most {max(peaks.values()) / 2**30:.1f} of "
      f"{capacity / 2**30:.1f} GiB"
    )
  changes = [
    f"the {phase} takes {peak / 2**30:.1f} GiB: "
    + (
      f"lower {'.'.join(_SETTINGS[phase])} to {found[phase]}, which was "
      "compiled and fits"
      if found[phase]
      else _cut_further(constants[phase], capacity)
    )
    for phase, peak in peaks.items()
    if peak > capacity
  ]
  return (
    f"does not fit {name} ({capacity / 2**30:.1f} GiB a device){guess}; "
    + "; ".join(changes)
  )


def _cut_further(constant: int, capacity: float) -> str:
  """What to do where not even the fewest slots or rows fit."""
  if constant > capacity:
    return (
      f"parameters and optimizer alone take {constant / 2**30:.1f} GiB, take "
      f"at least {math.ceil(constant / capacity)} times as many devices"
    )
  return (
    "the fewest that the mesh allows do not fit: cut the model over more "
    "devices (mesh.tensor), or shorten rows"
  )


def plan_to_dict(plan: Plan) -> dict[str, Any]:
  """The plan as plain values, for JSON."""
  content = dataclasses.asdict(plan)
  for program, report in zip(content["programs"], plan.programs, strict=True):
    program["peak_bytes"] = report.peak_bytes
  return content
