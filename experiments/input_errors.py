"""What a user got wrong, told in a line; everything else keeps its traceback.

A library raises ValueError for a bad mesh and for its own bugs alike, so that
the type alone does not tell whose mistake it was. The place does: what reads a
config, a folder or a checkpoint, or holds one against another, runs under
`from_outside`, and what computes does not. A ValueError out of a jitted program
in the middle of training is a bug, and is shown as one.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Callable, Iterator
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")

EXIT_STATUS = 2


class InputError(ValueError):
  """A config, a file or a folder that cannot be used as it stands."""


@contextlib.contextmanager
def from_outside() -> Iterator[None]:
  """Takes what fails here for an input error; decorates functions as well.

  Raises:
    InputError: for a ValueError or an OSError, with its message and notes.
  """
  try:
    yield
  except InputError:
    raise
  except (ValueError, OSError) as error:
    lines = (str(error), *getattr(error, "__notes__", ()))
    raise InputError("\n".join(lines)) from error


def told_in_a_line(
  main: Callable[_Arguments, int],
) -> Callable[_Arguments, int]:
  """Decorates a command: input errors go to standard error, with status 2."""

  @functools.wraps(main)
  def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
      # A locale of Latin-1 has no arrows and no Chinese.
      sys.stdout.reconfigure(errors="backslashreplace")
    try:
      return main(*args, **kwargs)
    except InputError as error:
      print(f"error: {error}", file=sys.stderr)
      return EXIT_STATUS

  return wrapped
