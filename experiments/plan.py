"""Plans on any machine whether an experiment fits a topology, and its bound.

    python -m experiments.plan \\
        --config experiments/configs/qwen2_5_7b_reasoning.py \\
        --topology v5p:4x4x2

Compiles the programs of one update, by the costliest of the experiment's
methods, for devices that need not be there:
TPUs with `libtpu` (the extra `plan`), `cpu:8` with fake CPU devices.
`v5p:4x4x2*4` is four slices of TPUs, joined by the data-centre network.
GPUs (`h100:8`) are worked out from the programs that fake CPU devices get.
`--agent off_policy` plans the rollouts that fill the buffer instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from experiments import cli, config_places, flags, input_errors, places
from experiments.config import ExperimentConfig
from experiments.help_text import HelpFormatter
from experiments.planner import chips, host_loop, units
from experiments.planner.analysis import (
  Phase,
  Plan,
  ProgramReport,
  make_plan,
  plan_to_dict,
)
from experiments.planner.programs import Workload
from experiments.workdir import write_json
from rapo_jax.errors import InputError

_LARGEST: dict[str | None, tuple[Phase, ...]] = {
  None: (),
  "slots": ("rollout",),
  "rows": ("update",),
  "both": ("rollout", "update"),
}
# Columns of a table that is written to a file.
_PIPED_WIDTH = 120


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  known, overrides = flags.parse_arguments(make_parser(), arguments)
  config = flags.apply_overrides(flags.load_config(known.config), overrides)
  config = config_places.local_config(config)
  topology = chips.open_topology(known.topology)
  plan = make_plan(
    config,
    topology,
    _workload(config, known),
    lambda text: print(text, file=sys.stderr),
    agent=known.agent,
    largest=_LARGEST[known.largest],
  )
  if known.json is not None:
    write_json(known.json, plan_to_dict(plan))
  if known.json is None or sys.stdout.isatty():
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    show(plan, rich.console.Console(width=width))
  return 0 if plan.fits is not False else 1


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.plan"),
    description=__doc__,
    epilog="Exit status: 0 it fits, 1 it does not, 2 it cannot be planned.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--config",
    type=places.text_argument,
    required=True,
    help="Python config file",
  )
  parser.add_argument(
    "--topology",
    required=True,
    help="chip and shape: v5p:4x4x2, v5e:4x4, v6e:2x2, h100:8, cpu:8; slices "
    "of TPUs: v5p:4x4x2*4",
  )
  parser.add_argument(
    "--agent",
    choices=("base", "off_policy"),
    default="base",
    help="base: the policy, rolled out and trained (default); off_policy: the "
    "agent that fills the buffer, rolled out alone",
  )
  parser.add_argument(
    "--largest",
    choices=("slots", "rows", "both"),
    help="find the most slots, rows of a micro-batch, or both, that fit and "
    "are of use, by compiling a few more times",
  )
  parser.add_argument(
    "--json", type=places.path_argument, help="write the plan here"
  )
  parser.add_argument(
    "--policy_tokens",
    type=int,
    help="mean tokens that the policy writes in a trajectory (default: a "
    "quarter of rollout.max_response_tokens)",
  )
  parser.add_argument(
    "--tool_calls",
    type=float,
    help="mean tool calls of a trajectory (default: 2, at most "
    "rollout.max_tool_calls)",
  )
  parser.add_argument(
    "--tool_tokens",
    type=int,
    help="tokens of a tool's result (default: half of rollout.max_tool_tokens)",
  )
  parser.add_argument(
    "--longest_response",
    type=int,
    help="tokens of a rollout's longest response, which ends last (default: "
    "rollout.max_response_tokens)",
  )
  parser.add_argument(
    "--host_ms",
    type=float,
    default=host_loop.LOOP_MS,
    help="milliseconds a trajectory of the loop that each host runs for its "
    "own slots (default: %(default)s, measured by benchmarks/host_scaling.py)",
  )
  parser.add_argument(
    "--retrieval_ms",
    type=float,
    default=host_loop.RETRIEVAL_MS,
    help="milliseconds a trajectory of embedding and searching, which run "
    "beside decoding (default: %(default)s, measured there too)",
  )
  parser.add_argument(
    "--leader_ms",
    type=float,
    default=host_loop.LEADER_MS,
    help="milliseconds a trajectory in which one host scores and packs those "
    "of all (default: %(default)s, measured by benchmarks/score_and_pack.py)",
  )
  return parser


def _workload(config: ExperimentConfig, known: argparse.Namespace) -> Workload:
  """What was given of a trajectory, and shares of its budgets for the rest.

  Raises:
    InputError: it does not go into the budgets.
  """
  rollout = config.rollout

  def given(name: str, default: float) -> Any:
    value = getattr(known, name)
    return default if value is None else value

  workload = Workload(
    policy_tokens=given("policy_tokens", rollout.max_response_tokens // 4),
    tool_calls=given("tool_calls", min(2.0, rollout.max_tool_calls)),
    tool_tokens=given("tool_tokens", rollout.max_tool_tokens // 2),
    longest_response=given("longest_response", rollout.max_response_tokens),
    host_ms=known.host_ms,
    retrieval_ms=known.retrieval_ms,
    leader_ms=known.leader_ms,
  )
  for name, limit in (
    ("longest_response", "max_response_tokens"),
    ("tool_tokens", "max_tool_tokens"),
    ("tool_calls", "max_tool_calls"),
  ):
    if getattr(workload, name) > getattr(rollout, limit):
      raise InputError(
        f"{name} must be at most rollout.{limit} ({getattr(rollout, limit)}), "
        f"got {getattr(workload, name):g}: lower it or raise the budget."
      )
  return workload


def show(plan: Plan, console: rich.console.Console) -> None:
  """Prints a plan for people."""
  agent = "" if plan.agent == "base" else ", the off-policy agent,"
  console.print(
    f"[bold]{plan.experiment}[/bold]{agent} on {plan.topology}: "
    + " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
  )
  console.print(f"settings: {_listed(plan.settings)}")
  console.print(f"assumed of a trajectory: {_listed(plan.assumptions)}\n")
  console.print(_memory_table(plan))
  console.print(_program_table(plan))
  console.print(_time_table(plan))
  for program in plan.programs:
    if program.collectives:
      console.print(f"{program.name} sends: {_collectives(program)}")
  chip = plan.topology.partition(":")[0]
  if chip in chips.CHIPS:
    console.print(host_loop.weak_scaling(plan.host[chip], chip))
  for note in plan.notes:
    console.print(f"note: {note}")
  if plan.largest:
    console.print(f"most that was compiled and fits: {_listed(plan.largest)}")
  console.print(f"[bold]{plan.verdict}[/bold]")


def _listed(values: Mapping[str, Any]) -> str:
  return ", ".join(
    f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
    for name, value in values.items()
  )


def _memory_table(plan: Plan) -> rich.table.Table:
  table = rich.table.Table(title="memory of one device")
  table.add_column("what")
  table.add_column("GiB", justify="right")
  for name, size in plan.memory.items():
    table.add_row(name, _gib(size))
  for name, size in plan.peak_bytes.items():
    table.add_row(f"peak of the {name}", _gib(size), style="bold")
  if plan.capacity_bytes is not None:
    table.add_row("usable", _gib(plan.capacity_bytes))
  return table


def _program_table(plan: Plan) -> rich.table.Table:
  table = rich.table.Table(
    title=f"programs, one run on one device; runs in {plan.round}"
  )
  for name in (
    "program",
    "runs",
    "arguments GiB",
    "temporary GiB",
    "peak GiB",
    "FLOP",
    "bytes moved",
    "bytes sent",
    "compiled in",
  ):
    table.add_column(name, justify="left" if name == "program" else "right")
  for p in plan.programs:
    table.add_row(
      p.name,
      f"{p.calls:g}",
      _gib(p.argument_bytes),
      _gib(p.temporary_bytes),
      _gib(p.peak_bytes),
      units.scaled(p.flops),
      units.scaled(p.memory_bytes),
      units.scaled(p.network_bytes),
      f"{p.compile_s:g} s",
    )
  return table


def _time_table(plan: Plan) -> rich.table.Table:
  table = rich.table.Table(
    title="least time by chip, with as many of them, and what bounds it"
  )
  table.add_column("program")
  for name in chips.CHIPS:
    table.add_column(name, justify="right")
  for p in plan.programs:
    cells = (p.rooflines[name] for name in chips.CHIPS)
    table.add_row(
      p.name, *(f"{units.duration(c.seconds)} {c.bound}" for c in cells)
    )
  table.add_row(
    "host loop",
    *(units.duration(plan.host[name].loop_s) for name in chips.CHIPS),
  )
  table.add_row(
    "retrieval beyond decoding",
    *(units.duration(plan.host[name].retrieval_s) for name in chips.CHIPS),
  )
  table.add_row(
    "scoring and packing",
    *(units.duration(plan.host[name].leader_s) for name in chips.CHIPS),
  )
  table.add_row(
    plan.round,
    *(units.duration(plan.round_seconds[name]) for name in chips.CHIPS),
    style="bold",
  )
  return table


def _collectives(program: ProgramReport) -> str:
  return ", ".join(
    f"{c.count:g} {c.op} ({units.scaled(c.bytes)}B"
    + (f", {units.scaled(c.far_bytes)}B of it far)" if c.far_bytes else ")")
    for c in program.collectives
  )


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f}"


if __name__ == "__main__":
  sys.exit(main())
