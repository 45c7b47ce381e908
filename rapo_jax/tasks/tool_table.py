"""The tools that a task can be given by name, on the command line."""

from __future__ import annotations

from collections.abc import Mapping

from rapo_jax.tasks.tools import PythonSpec, SearchSpec, ToolSpec
from rapo_jax.tasks.web_tools import WebPageSpec, WebSearchSpec
from rapo_jax.tools import Tool

TOOLS: Mapping[str, Tool | ToolSpec] = {
  "search": SearchSpec(),
  "python": PythonSpec(),
  "web_search": WebSearchSpec(),
  "web_page": WebPageSpec(),
}
"""Those that need no more than a key; others are set in a config file."""
