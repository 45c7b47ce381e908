"""Errors that a user can correct."""


class InputError(ValueError):
  """A value, a config, a file or a folder that cannot be used as it stands.

  The message states the rule, the value and the remedy. Commands print it in
  one line; any other exception is a bug of ours and keeps its traceback.
  """


class MissingInputError(InputError, FileNotFoundError):
  """A file or a folder that has to exist and does not."""
