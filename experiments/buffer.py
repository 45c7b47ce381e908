"""Builds Step-Trace Buffers, looks into them, joins and checks them.

    python -m experiments.buffer import --output buffers/teacher \\
        teacher=Step_Trace_Buffer.jsonl webdancer=sample_traj.jsonl \\
        --reward 1 --held_out test.jsonl --overlap drop
    python -m experiments.buffer build --output buffers/endpoint \\
        --config experiments/configs/quickstart.py \\
        --endpoint http://127.0.0.1:8000/v1 --model teacher
    python -m experiments.buffer verify --buffer buffers/teacher
    python -m experiments.buffer search --buffer buffers/teacher \\
        --question "Who directed the film that won in 1995?"

`COMMAND --help` tells more of each. docs/buffer_building.md shows them at work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments import flags, input_errors
from experiments.buffers import arguments as arguments_lib
from experiments.buffers import commands
from experiments.devices import check_devices, use_compilation_cache
from experiments.stop_signal import StopSignal


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  return arguments_lib.parser(__doc__)


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = make_parser()
  known, overrides = flags.parse_arguments(parser, arguments)
  if overrides and known.run is not commands.build:
    parser.error(f"unrecognized arguments: {' '.join(overrides)}")
  known.overrides = overrides
  check_devices()
  use_compilation_cache()
  with StopSignal(
    "go on with the same command and --resume."
    if "resume" in known
    else "start it again."
  ):
    return known.run(known)


if __name__ == "__main__":
  sys.exit(main())
