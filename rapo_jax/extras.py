"""How to install what an optional part needs, with a clone or without one."""

from __future__ import annotations

import importlib.metadata
import shlex

_PACKAGE = "rapo_jax"


def install_command(extra: str) -> str:
  """A command of pip that installs the packages of an extra, by their names.

  The installed metadata names them. So the command works for a wheel too, for
  which `pip install -e` has no folder.

  Args:
    extra: one of `[project.optional-dependencies]` in `pyproject.toml`.
  """
  try:
    required = importlib.metadata.requires(_PACKAGE) or []
  except importlib.metadata.PackageNotFoundError:
    return f"pip install -e '.[{extra}]'"
  marker = f'extra == "{extra}"'
  names = [
    name.strip()
    for name, _, condition in (text.partition(";") for text in required)
    if marker in condition.replace("'", '"')
  ]
  return shlex.join(["pip", "install", *names])
