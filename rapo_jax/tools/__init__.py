"""Tools that agents call, and the tags that they are called with."""

from rapo_jax.tools.base import (
  CallPolicy,
  Described,
  Tool,
  ToolResult,
  ToolStatus,
  call_policy,
  check_description,
  check_tools,
)
from rapo_jax.tools.functions import FunctionTool, tool
from rapo_jax.tools.pages import OpenTool
from rapo_jax.tools.python import PythonTool, PythonWallError
from rapo_jax.tools.search import SearchTool
from rapo_jax.tools.tags import MalformedCall, TagSet, ToolCall

__all__ = [
  "CallPolicy",
  "Described",
  "FunctionTool",
  "MalformedCall",
  "OpenTool",
  "PythonTool",
  "PythonWallError",
  "SearchTool",
  "TagSet",
  "Tool",
  "ToolCall",
  "ToolResult",
  "ToolStatus",
  "call_policy",
  "check_description",
  "check_tools",
  "tool",
]
