"""Tools that a task can be given by name, on the command line."""

from __future__ import annotations

import types
from collections.abc import Mapping

from rapo_jax.tasks.tools import PythonSpec, SearchSpec, ToolSpec
from rapo_jax.tasks.web_tools import WebPageSpec, WebSearchSpec
from rapo_jax.tools import Tool

TOOLS: Mapping[str, Tool | ToolSpec] = types.MappingProxyType(
  {
    "search": SearchSpec(),
    "python": PythonSpec(),
    "web_search": WebSearchSpec(),
    "open": WebPageSpec(),
  }
)
"""By the names that the command line takes; `web_search` is called `search`."""
