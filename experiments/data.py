"""Data sets: lists them, prepares them, checks files, finds leaks.

    python -m experiments.data list
    python -m experiments.data check --source <folder>
    python -m experiments.data prepare gsm8k --source <folder>
    python -m experiments.data show gsm8k --split test --count 2
    python -m experiments.data leaks tool_star --against math500 bamboogle

`prepare` keeps a data set as ArrayRecord; a task of the same name reads it
(`--config.tasks=gsm8k`). `check` says of every file in a folder which data set
it is and how many rows load; nothing is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import rich.console
import rich.table

from experiments import cli, flags, input_errors, places
from experiments.help_text import HelpFormatter
from rapo_jax import row_files, text_files
from rapo_jax.corpora import load_corpus
from rapo_jax.datasets import DATA_SETS, DataSet, prepare
from rapo_jax.datasets.builder import default_data_dir, is_prepared
from rapo_jax.errors import InputError
from rapo_jax.retrieval import normalized

_SHOWN_LEAKS = 5
# Columns of a table that is written to a file.
_PIPED_WIDTH = 120


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  known, rest = flags.parse_arguments(make_parser(), arguments)
  if rest:
    raise InputError(f"unknown arguments {' '.join(rest)}: see --help.")
  status: int = known.run(known)
  return status


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.data"),
    description=__doc__,
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  add = functools.partial(commands.add_parser, formatter_class=HelpFormatter)
  one = add("list", help="the data sets, and where to get them")
  one.set_defaults(run=list_sets)
  one = add(
    "check", help="which data set each file is, and whether its rows load"
  )
  one.add_argument(
    "--source",
    type=places.path_argument,
    required=True,
    help="folder with files of the publishers",
  )
  one.set_defaults(run=check)
  one = add("prepare", help="keep data sets as ArrayRecord")
  _add_sets(one)
  one.add_argument(
    "--source",
    type=places.path_argument,
    help="file or folder of the publishers (default: download, where it may)",
  )
  one.set_defaults(run=prepare_sets)
  one = add("show", help="print questions and answers")
  _add_sets(one)
  one.add_argument("--split", default="test", help="train or test (default)")
  one.add_argument("--count", type=int, default=3, help="rows (default: 3)")
  one.set_defaults(run=show)
  one = add(
    "leaks", help="questions of data sets that others hold out; status 1 if any"
  )
  _add_sets(one)
  one.add_argument(
    "--against",
    nargs="+",
    choices=tuple(DATA_SETS),
    metavar="SET",
    help="data sets whose test questions count (default: all prepared ones)",
  )
  one.set_defaults(run=leaks)
  return parser


def _add_sets(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "sets",
    nargs="+",
    choices=tuple(DATA_SETS),
    metavar="SET",
    help=f"data sets: {', '.join(DATA_SETS)}",
  )
  parser.add_argument(
    "--data_dir",
    type=places.path_argument,
    help=f"folder of what is prepared (default: {default_data_dir()})",
  )


def list_sets(known: argparse.Namespace) -> int:
  """Prints the table of data sets."""
  del known
  table = rich.table.Table(box=None, pad_edge=False)
  for name in ("name", "data set", "splits", "source"):
    table.add_column(name, overflow="fold")
  for name, one in DATA_SETS.items():
    splits = dict.fromkeys(layout.split for layout in one.layouts)
    table.add_row(name, one.title, ", ".join(splits), one.source)
  width = None if sys.stdout.isatty() else _PIPED_WIDTH
  rich.console.Console(width=width).print(table)
  return 0


@dataclasses.dataclass(frozen=True)
class Checked:
  """What became of a file.

  Attributes:
    path: the file.
    what: the data set that it is.
    result: how many rows load, or why they do not.
    loads: whether they do.
  """

  path: pathlib.Path
  what: str
  result: str
  loads: bool


def check(known: argparse.Namespace) -> int:
  """Reads every file of a folder; status 1 if one does not load."""
  if not known.source.is_dir():
    raise InputError(
      f"--source must be a folder, got {known.source}: correct the path."
    )
  failed = files = 0
  for one in check_folder(known.source):
    files += 1
    failed += not one.loads
    path = one.path.relative_to(known.source)
    mark = "" if one.loads else "FAILED "
    print(f"{mark}{path}: {one.what}: {one.result}", flush=True)
  if not files:
    raise InputError(
      f"{known.source} must hold files that end in "
      f"{', '.join(row_files.SUFFIXES)}, and holds none: correct the path."
    )
  print(f"{files - failed} of {files} files load")
  return 1 if failed else 0


def check_folder(folder: pathlib.Path) -> Iterator[Checked]:
  """Reads the files of a folder, sorted by their paths.

  Of a data set with a file for each row, the files of a folder are one.
  """
  for path in row_files.files_in(folder):
    yield check_file(path)


def check_file(path: pathlib.Path) -> Checked:
  """Reads one file."""
  data_set = data_set_of(path)
  try:
    if data_set is not None:
      return Checked(path, data_set.title, _counted(data_set, path), True)
    if "search_cache" in path.name:
      cached = text_files.read_json(path)
      result = f"{len(cached)} queries"
      return Checked(path, "web search cache", result, isinstance(cached, dict))
    if "corpus" in path.name:
      result = f"{len(load_corpus(path))} documents"
      return Checked(path, "corpus", result, True)
  except InputError as error:
    what = "corpus" if data_set is None else data_set.title
    return Checked(path, what, str(error), False)
  result = "its path is of no known layout: see `list` for names and sources"
  return Checked(path, "unknown", result, False)


def data_set_of(path: pathlib.Path) -> DataSet | None:
  """The data set whose layout says most of a path; None if none fits."""
  found = {
    len(layout.pattern.replace("*", "")): one
    for one in DATA_SETS.values()
    if (layout := one.layout(path)) is not None
  }
  return found[max(found)] if found else None


def _counted(data_set: DataSet, path: pathlib.Path) -> str:
  rows, left_out = data_set.read(path)
  layout = data_set.layout(path)
  assert layout is not None
  text = f"{len(rows)} rows load ({layout.split})"
  if left_out:
    text += f", {left_out} without an answer left out"
  if layout.num_rows is not None and len(rows) + left_out != layout.num_rows:
    text += f"; the whole file has {layout.num_rows}"
  return text


def prepare_sets(known: argparse.Namespace) -> int:
  """Prepares data sets."""
  for name in known.sets:
    prepared = prepare(name, known.source, known.data_dir)
    counts = ", ".join(
      f"{len(source)} {split}" for split, source in prepared.sources.items()
    )
    folder = (known.data_dir or default_data_dir()) / name
    print(f"{name}: {counts} in {folder}")
  return 0


def show(known: argparse.Namespace) -> int:
  """Prints rows of prepared data sets as JSON, one a line."""
  if known.count < 1:
    raise InputError(
      f"--count must be at least 1, got {known.count}: raise it."
    )
  for name in known.sets:
    rows = prepare(name, None, known.data_dir).rows(known.split, known.count)
    for row in rows:
      content = {
        "set": name,
        "id": row.row_id,
        "question": row.question,
        "answers": row.answers,
        **row.extra,
      }
      print(json.dumps(content, ensure_ascii=False))
  return 0


def leaks(known: argparse.Namespace) -> int:
  """Counts training questions that stand in test sets, by their text."""
  against = known.against or [
    name for name in DATA_SETS if is_prepared(name, known.data_dir)
  ]
  total = 0
  for name in known.sets:
    prepared = prepare(name, None, known.data_dir)
    train = {
      normalized(row.question): row.question for row in prepared.rows("train")
    }
    for other in against:
      sources = prepare(other, None, known.data_dir)
      if "test" not in sources.sources:
        continue
      test = {normalized(row.question) for row in sources.rows("test")}
      shared = [question for text, question in train.items() if text in test]
      total += len(shared)
      print(f"{name} in {other}: {len(shared)} of {len(test)} questions")
      for question in shared[:_SHOWN_LEAKS]:
        print(f"  {question[:100]!r}")
  return 1 if total else 0


if __name__ == "__main__":
  sys.exit(main())
