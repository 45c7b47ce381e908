"""Shows runs, curves and all logged trajectories in a browser, live.

    python -m experiments.view --workdir runs/quickstart --open
    python -m experiments.view --workdir runs/quickstart --export page

The page is live: it follows the logs. Each view has a link of its own. An index
is kept beside the logs (`.view.sqlite3`), so that a second start is quick.

It answers this machine alone, and the page loads nothing from elsewhere. The
address holds a secret, since others may be logged in on this machine; who has
the address can read the logs. Ctrl+C ends it.

--export writes the page with its data into a file, which needs no server.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import webbrowser
from collections.abc import Sequence

from experiments import cli, http_server, input_errors, places
from experiments.help_text import HelpFormatter
from experiments.viewer import index as index_lib
from rapo_jax.errors import InputError, accessing

_HOST = "127.0.0.1"
_PORT = 8300
_END_S = 2
_MOST = 2000


@input_errors.report_input_errors
def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  known = make_parser().parse_args(arguments)
  _check_workdir(known.workdir)
  index = index_lib.TrajectoryIndex(known.workdir)
  if known.export is not None:
    return _export(known, index)
  with http_server.listen(_HOST, known.port) as listener:
    from experiments.viewer.server import view_app

    port = listener.getsockname()[1]
    url = f"http://{_HOST}:{port}/{index.secret}/"
    print(f"{known.workdir} at {url}", flush=True)
    if known.open:
      webbrowser.open_new_tab(url)
    http_server.serve(
      view_app(known.workdir, index),
      listener,
      timeout_graceful_shutdown=_END_S,
    )
  return 0


def make_parser() -> argparse.ArgumentParser:
  """The parser of the command line."""
  parser = argparse.ArgumentParser(
    prog=cli.prog("experiments.view"),
    description=__doc__,
    epilog="Exit status: 0 it was ended, 2 it cannot be started.",
    formatter_class=HelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--workdir",
    type=places.path_argument,
    required=True,
    help="work folder of a run, or folder of a study",
  )
  parser.add_argument(
    "--port",
    type=int,
    default=_PORT,
    help="port of this machine; 0 for any that is free (%(default)s)",
  )
  parser.add_argument(
    "--open", action="store_true", help="open the page in a browser"
  )
  parser.add_argument(
    "--export",
    type=places.path_argument,
    help="write index.html into this folder, and serve nothing",
  )
  parser.add_argument(
    "--most",
    type=int,
    default=_MOST,
    help="trajectories in an exported page; of more, whole questions of every"
    " run and update (%(default)s)",
  )
  return parser


def _export(known: argparse.Namespace, index: index_lib.TrajectoryIndex) -> int:
  from experiments.viewer import export

  if known.most < 0:
    raise InputError(
      f"--most must be at least 0, got {known.most}: 0 writes curves alone."
    )
  index.refresh()
  with accessing(known.export):
    count, total = export.write_page(
      known.workdir, index, known.export, known.most
    )
  path = known.export / export.PAGE_FILE
  print(f"{count:,} of {total:,} trajectories in {path}")
  return 0


def _check_workdir(workdir: pathlib.Path) -> None:
  if not workdir.is_dir():
    raise InputError(
      f"--workdir must be the folder of a run or a study, got {workdir}: give"
      " the one that experiments.run or experiments.study writes."
    )


if __name__ == "__main__":
  sys.exit(main())
