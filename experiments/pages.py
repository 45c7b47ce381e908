"""What the HTML pages of experiments share."""

from __future__ import annotations

import jinja2


def template(name: str, **filters: object) -> jinja2.Template:
  """A template of the report, of a buffer's page or of the viewer.

  They share a style sheet.

  Args:
    name: its file.
    filters: that it uses, by name.
  """
  environment = jinja2.Environment(
    loader=jinja2.ChoiceLoader(
      [
        jinja2.PackageLoader("experiments.report"),
        jinja2.PackageLoader("experiments.buffers"),
        jinja2.PackageLoader("experiments.viewer"),
      ]
    ),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(filters)
  return environment.get_template(name)
