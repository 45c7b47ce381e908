"""Errors that a user can correct."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


class InputError(ValueError):
  """A value, a config, a file or a folder that cannot be used as it stands.

  The message states the rule, the value and the remedy. Commands print it in
  one line; any other exception is a bug of ours and keeps its traceback.
  """


class MissingInputError(InputError, FileNotFoundError):
  """A file or a folder that has to exist and does not."""


@contextlib.contextmanager
def accessing(path: str | os.PathLike[str]) -> Iterator[None]:
  """Opens, reads or makes what a user has named; a refusal is an input error.

  Args:
    path: the file or folder, for the message.

  Raises:
    MissingInputError: it does not exist.
    InputError: the system refuses.
  """
  try:
    yield
  except InputError:
    raise
  except FileNotFoundError as error:
    raise MissingInputError(
      f"{path} must exist, and does not ({error}): check the path."
    ) from error
  except OSError as error:
    raise InputError(
      f"{path} must be usable, and is not ({error}): check the path, its "
      "permissions and the disk."
    ) from error
