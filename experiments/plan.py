"""Whether an experiment fits a topology, and what bounds it, told anywhere.

    python -m experiments.plan \\
        --config experiments/configs/qwen2_5_7b_reasoning.py \\
        --topology v5p:4x4x2

Compiles the programs of one RAPO update for devices that need not be there:
TPUs with `libtpu` (`pip install -e '.[plan]'`), `cpu:8` with fake CPU devices.
GPUs (`h100:8`) are worked out from the programs that fake CPU devices get.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import rich.console
import rich.table

from experiments import flags, input_errors
from experiments.config import ExperimentConfig
from experiments.planner import chips
from experiments.planner.analysis import (
  Plan,
  ProgramReport,
  make_plan,
  plan_to_dict,
)
from experiments.planner.programs import Workload
from experiments.policy_shape import policy_shape
from experiments.workdir import write_json

# Columns of a table that is written to a file.
_PIPED_WIDTH = 120


@input_errors.told_in_a_line
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  known, overrides = _parser().parse_known_args(arguments)
  config = flags.apply_overrides(flags.load_config(known.config), overrides)
  topology = chips.open_topology(known.topology)
  with input_errors.from_outside():
    shape = policy_shape(config)
  plan = make_plan(
    config,
    shape,
    topology,
    _workload(config, known),
    lambda text: print(text, file=sys.stderr),
  )
  if known.json is not None:
    write_json(known.json, plan_to_dict(plan))
  if known.json is None or sys.stdout.isatty():
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    show(plan, rich.console.Console(width=width))
  return 0 if plan.fits is not False else 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m experiments.plan",
    description=__doc__,
    epilog="Exit status: 0 it fits, 1 it does not, 2 it cannot be planned.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--config", required=True, help="Python config file")
  parser.add_argument(
    "--topology",
    required=True,
    help="chip and shape: v5p:4x4x2, v5e:4x4, v6e:2x2, h100:8, cpu:8",
  )
  parser.add_argument("--json", type=pathlib.Path, help="write the plan here")
  parser.add_argument(
    "--policy_tokens",
    type=int,
    help="mean tokens that the policy writes in a trajectory (default: a "
    "quarter of rollout.max_response_tokens)",
  )
  parser.add_argument(
    "--tool_calls",
    type=float,
    default=2.0,
    help="mean tool calls of a trajectory (default: 2)",
  )
  parser.add_argument(
    "--tool_tokens",
    type=int,
    help="mean tokens of a tool's result (default: half of "
    "rollout.max_tool_tokens)",
  )
  return parser


def _workload(config: ExperimentConfig, known: argparse.Namespace) -> Workload:
  rollout = config.rollout
  return Workload(
    policy_tokens=known.policy_tokens or rollout.max_response_tokens // 4,
    tool_calls=known.tool_calls,
    tool_tokens=known.tool_tokens or rollout.max_tool_tokens // 2,
  )


def show(plan: Plan, console: rich.console.Console) -> None:
  """Prints a plan for people."""
  mesh = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
  console.print(f"[bold]{plan.experiment}[/bold] on {plan.topology}: {mesh}")
  given = ", ".join(
    f"{name} {value:g}" for name, value in plan.assumptions.items()
  )
  console.print(f"assumed of a trajectory: {given}\n")
  console.print(_memory_table(plan))
  console.print(_program_table(plan))
  console.print(_time_table(plan))
  for program in plan.programs:
    if program.collectives:
      console.print(f"{program.name} sends: {_collectives(program)}")
  if plan.largest:
    fitting = ", ".join(f"{k} {v}" for k, v in plan.largest.items())
    console.print(f"most that fit: {fitting}")
  console.print(f"[bold]{plan.verdict}[/bold]")


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
  table = rich.table.Table(title="programs, one run on one device")
  for name in (
    "program",
    "runs an update",
    "arguments GiB",
    "temporary GiB",
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
      _scaled(p.flops),
      _scaled(p.memory_bytes),
      _scaled(p.network_bytes),
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
    table.add_row(p.name, *(f"{_time(c.seconds)} {c.bound}" for c in cells))
  table.add_row(
    "a RAPO update",
    *(_time(plan.update_seconds[name]) for name in chips.CHIPS),
    style="bold",
  )
  return table


def _collectives(program: ProgramReport) -> str:
  return ", ".join(
    f"{c.count:g} {c.op} ({_scaled(c.bytes)}B)" for c in program.collectives
  )


def _scaled(value: float) -> str:
  """Three digits and a prefix, e.g. "1.39 P"."""
  if not value:
    return "0 "
  for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
    if value >= size:
      return f"{value / size:.3g} {prefix}"
  return f"{value / 1e3:.3g} k"


def _time(seconds: float) -> str:
  for unit, size in (("s", 1.0), ("ms", 1e-3)):
    if seconds >= size:
      return f"{seconds / size:.3g} {unit}"
  return f"{seconds * 1e6:.3g} µs"


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f}"


if __name__ == "__main__":
  sys.exit(main())
