"""Writes an experiment of your own, which runs as it is.

    python -m experiments.init my_agent
    python -m experiments.run --config my_agent/experiment.py \\
        --workdir runs/mine

The folder gets two files. `experiment.py` defines a tool, a reward, a loss, a
task and a config: change them. `questions.jsonl` has a question and an answer a
line: replace them by yours. Nothing of the package has to be edited.
"""

from __future__ import annotations

import argparse
import importlib.resources
import pathlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence

from experiments import cli, input_errors, places
from experiments.help_text import HelpFormatter
from rapo_jax.errors import InputError, accessing

FILES = ("experiment.py", "questions.jsonl")


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.init"),
    description=__doc__,
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "folder",
    type=places.path_argument,
    metavar="FOLDER",
    help="where to write; made if it is not there",
  )
  return parser


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  folder = make_parser().parse_args(arguments).folder
  write_starter(folder)
  run = cli.prog("experiments.run")
  config = shlex.quote(str(folder / FILES[0]))
  workdir = shlex.quote(f"runs/{folder.absolute().name}")
  print(
    f"wrote {' and '.join(str(folder / name) for name in FILES)}\n"
    "check it, then run it:\n"
    f"  {run} --config {config} --dry_run\n"
    f"  {run} --config {config} --workdir {workdir}"
  )
  return 0


def write_starter(folder: pathlib.Path) -> None:
  """Writes the files of an experiment into a folder.

  Args:
    folder: made if it is not there.

  Raises:
    InputError: one of the files is there already, or the folder cannot be
      written. Nothing is written then.
  """
  with accessing(folder):
    there = [name for name in FILES if (folder / name).exists()]
    if there:
      raise InputError(
        f"{folder} must not hold {' or '.join(FILES)}, and has "
        f"{' and '.join(there)}: choose another folder."
      )
    folder.mkdir(parents=True, exist_ok=True)
    source = importlib.resources.files("experiments.starter")
    # Both or neither: a full disk leaves nothing half-written.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
      for name in FILES:
        text = (source / name).read_text(encoding="utf-8")
        (pathlib.Path(scratch) / name).write_text(text, encoding="utf-8")
      for name in FILES:
        shutil.move(pathlib.Path(scratch) / name, folder / name)


if __name__ == "__main__":
  sys.exit(main())
