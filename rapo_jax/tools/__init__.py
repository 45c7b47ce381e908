"""Tools that agents call, and the tags that they are called with."""

from rapo_jax.tools.base import (
  CallPolicy,
  Tool,
  ToolResult,
  ToolStatus,
  call_policy,
)
from rapo_jax.tools.pages import OpenTool
from rapo_jax.tools.python import PythonTool, PythonWallError
from rapo_jax.tools.search import SearchTool
from rapo_jax.tools.tags import MalformedCall, ToolCall, escape, parse_call

__all__ = [
  "CallPolicy",
  "MalformedCall",
  "OpenTool",
  "PythonTool",
  "PythonWallError",
  "SearchTool",
  "Tool",
  "ToolCall",
  "ToolResult",
  "ToolStatus",
  "call_policy",
  "escape",
  "parse_call",
]
