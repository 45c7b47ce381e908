"""Paths as people write them on a command line."""

from __future__ import annotations

import argparse
import pathlib
import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def place(text: str) -> pathlib.Path:
  """Reads the path of a file or folder on this machine; a type for argparse.

  `~` is expanded. `.` and `..` get the name of their folder, so that another
  name can be made of it.

  Raises:
    argparse.ArgumentTypeError: it is a URL, or of an unknown user.
  """
  if _SCHEME.match(text):
    raise argparse.ArgumentTypeError(
      f"{text!r} must be a path on this machine, not a URL: copy or mount it,"
      " and give the path."
    )
  try:
    path = pathlib.Path(text).expanduser()
  except RuntimeError as error:
    raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
  return path.resolve() if path.name in ("", "..") else path
