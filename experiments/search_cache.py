"""Caches of the web: fills one from a file, and shows what it holds.

    python -m experiments.search_cache import --cache web.sqlite <file.json>
    python -m experiments.search_cache show --cache web.sqlite --find bridge

A file to import holds one JSON object from queries to texts, as ARPO's
`search_cache.json` does. A search tool with this cache answers these queries by
these texts.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence

from experiments import cli, flags, input_errors, places
from experiments.help_text import HelpFormatter
from rapo_jax.errors import InputError
from rapo_jax.tools.web_cache import WebCache, import_answers


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
    prog=cli.prog("experiments.search_cache"),
    description=__doc__,
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  add = functools.partial(commands.add_parser, formatter_class=HelpFormatter)
  one = add("import", help="keep the answers of JSON files")
  _add_cache(one)
  one.add_argument(
    "files", nargs="+", type=places.path_argument, metavar="FILE"
  )
  one.set_defaults(run=import_files)
  one = add("show", help="count answers, and print some")
  _add_cache(one)
  one.add_argument("--find", default="", help="text that a query must hold")
  one.add_argument("--count", type=int, default=3, help="answers (default: 3)")
  one.set_defaults(run=show)
  return parser


def _add_cache(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--cache",
    type=places.path_argument,
    required=True,
    help="file of the cache, the `path` of a tool's cache",
  )


def import_files(known: argparse.Namespace) -> int:
  """Keeps the answers of files."""
  cache = WebCache(known.cache)
  try:
    for path in known.files:
      print(f"{path}: {import_answers(cache, path)} queries in {known.cache}")
  finally:
    cache.close()
  return 0


def show(known: argparse.Namespace) -> int:
  """Prints the number of answers of each service, and some of them as JSON."""
  cache = WebCache(known.cache, read_only=True)
  try:
    for (kind, endpoint), count in cache.counts().items():
      print(f"{kind} {endpoint}".rstrip() + f": {count} answers")
    for key, value in cache.find(known.find, max(known.count, 0)):
      content = {"kind": key.kind, "query": key.query, "answer": value}
      print(json.dumps(content, ensure_ascii=False))
  finally:
    cache.close()
  return 0


if __name__ == "__main__":
  sys.exit(main())
