"""The viewer's page: served with its data apart, or whole in one file."""

from __future__ import annotations

import pathlib

from experiments import pages
from experiments.workdir import Workdir, read_config

SERVED_POLICY = (
  "default-src 'none'; style-src 'self'; script-src 'self'; connect-src "
  "'self'; img-src data:; base-uri 'none'; form-action 'none'; "
  "frame-ancestors 'none'"
)
"""Content security policy of the served page: nothing comes from elsewhere."""


def served(root: pathlib.Path) -> str:
  """The page that asks this server for everything."""
  return pages.template("view.html.j2").render(title=title(root), data=None)


def style() -> str:
  """The style sheet: the report's, and what the viewer adds."""
  return pages.template("view.css").render()


def script() -> str:
  """The script, with the parts that it shares with the report."""
  return pages.template("view.js").render()


def title(root: pathlib.Path) -> str:
  """Name of the experiment, and of the folder."""
  workdir = Workdir(root)
  config = read_config(workdir) if workdir.config.exists() else {}
  folder = root.resolve().name
  name = str(config.get("name", folder))
  return name if name == folder else f"{name}, {folder}"
