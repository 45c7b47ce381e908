"""Copies a work folder from an object store to this machine.

    python -m experiments.pull gs://bucket/runs/mine --output runs/mine

The copy is for looking at runs (`experiments.view`), for exports and for other
programs. Started again, it takes the place of the earlier copy. To go on with
the run itself, give its URL to `experiments.run`.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import sys
from collections.abc import Sequence

from experiments import cli, input_errors, mirror, object_store, places
from experiments.help_text import HelpFormatter
from rapo_jax import files
from rapo_jax.errors import InputError

_SOURCE_FILE = ".copied_from"


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  known = make_parser().parse_args(arguments)
  count = pull(known.url, known.output)
  print(f"wrote {known.output}: {count} files of {known.url}")
  return 0


def pull(url: str, output: pathlib.Path) -> int:
  """Copies a work folder from an object store; returns how many files.

  Args:
    url: that `experiments.run` was given.
    output: folder to make, or an earlier copy of the same URL.

  Raises:
    InputError: something else lies there, or the URL holds no work folder.
  """
  source = output / _SOURCE_FILE
  if output.exists() and not (
    source.is_file() and source.read_text(encoding="utf-8") == url
  ):
    raise InputError(
      f"--output must be new or an earlier copy of {url}, got {output}: choose "
      "another folder."
    )
  with (
    mirror.opened(url, only_read=True) as tree,
    files.replaced_folder(output) as new,
  ):
    there = [path for path in tree.rglob("*") if path.is_file()]
    if not there:
      raise InputError(
        f"{url} must hold a work folder, and holds nothing: correct it."
      )
    shutil.copytree(tree, new, dirs_exist_ok=True)
    (new / _SOURCE_FILE).write_text(url, encoding="utf-8")
  return len(there)


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.pull"),
    description=__doc__,
    epilog="Exit status: 0 written, 2 nothing was written.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("url", type=_url, help="gs://… or s3://…")
  parser.add_argument(
    "--output",
    type=places.path_argument,
    required=True,
    help="folder to make, or an earlier copy to replace",
  )
  return parser


def _url(text: str) -> str:
  if not object_store.is_url(text):
    raise argparse.ArgumentTypeError(
      f"must be gs://bucket/… or s3://bucket/…, got {text!r}"
    )
  return text


if __name__ == "__main__":
  sys.exit(main())
