"""Help of all programs keeps to the columns of the terminal."""

import argparse
import importlib
import shlex

import pytest

from experiments import cli
from experiments.help_text import HelpFormatter


def _parsers():
  """Of all programs and of their commands, by name."""
  found = {"rapo": cli._make_parser()}
  for name, program in cli.PROGRAMS.items():
    found[name] = importlib.import_module(program.module).make_parser()
  for name, parser in list(found.items()):
    if name == "rapo":
      continue
    for action in parser._actions:
      if isinstance(action, argparse._SubParsersAction):
        found |= {f"{name} {key}": one for key, one in action.choices.items()}
  return found


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns, monkeypatch):
  monkeypatch.setenv("COLUMNS", str(columns))
  for name, parser in _parsers().items():
    text = parser.format_help()
    wide = [line for line in text.splitlines() if len(line) > columns]
    assert not wide, (name, wide)


def _description(text, columns, monkeypatch):
  monkeypatch.setenv("COLUMNS", str(columns))
  parser = argparse.ArgumentParser(
    prog="p", description=text, formatter_class=HelpFormatter
  )
  return parser.format_help().split("\n\n", 1)[1].split("\n\noptions:")[0]


TEXT = """Does a thing.

    python -m a.b --config quickstart --question "Who is it?" --dry_run
    GET  /healthz   what is served

A paragraph that was wrapped at
eighty columns.
"""


def test_paragraphs_are_wrapped_and_examples_kept(monkeypatch):
  # Nothing is as wide as it is.
  assert _description(TEXT, 100, monkeypatch) == (
    "Does a thing.\n\n"
    '    python -m a.b --config quickstart --question "Who is it?" --dry_run\n'
    "    GET  /healthz   what is served\n\n"
    "A paragraph that was wrapped at eighty columns."
  )


def test_a_command_that_is_broken_is_still_the_same_command(monkeypatch):
  shown = _description(TEXT, 42, monkeypatch)
  assert max(map(len, shown.splitlines())) <= 40
  first, _, rest = shown.partition("    GET")
  assert rest
  command = first.split("\n\n")[1]
  assert shlex.split(command.replace("\\\n", " ")) == shlex.split(
    'python -m a.b --config quickstart --question "Who is it?" --dry_run'
  )
  assert '--question "Who is it?"' in command


def test_a_long_usage_starts_below_the_name(monkeypatch):
  monkeypatch.setenv("COLUMNS", "60")
  parser = argparse.ArgumentParser(
    prog="python -m experiments.long_name", formatter_class=HelpFormatter
  )
  parser.add_argument("--checkpoint", required=True)
  parser.add_argument("--kind", choices=["a" * 12, "b" * 12])
  parser.add_argument("file", nargs="+")
  usage = parser.format_usage()
  assert usage.splitlines() == [
    "usage: python -m experiments.long_name [-h]",
    "    --checkpoint CHECKPOINT",
    "    [--kind {aaaaaaaaaaaa,bbbbbbbbbbbb}] file [file ...]",
  ]
