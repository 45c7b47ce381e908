"""Tools that agents call, and the tags that they are called with."""

from rapo_jax.tools.base import (
  CallPolicy,
  Counting,
  Described,
  Tool,
  ToolResult,
  ToolStatus,
  call_policy,
  check_description,
  check_tools,
  own_numbers,
)
from rapo_jax.tools.functions import FunctionTool, tool
from rapo_jax.tools.pages import OpenTool
from rapo_jax.tools.python import PythonTool, PythonWallError
from rapo_jax.tools.search import SearchTool
from rapo_jax.tools.tags import MalformedCall, TagSet, ToolCall
from rapo_jax.tools.web_cache import CacheConfig
from rapo_jax.tools.web_search import SERPER, SearchApi
from rapo_jax.tools.web_service import WebLimits

__all__ = [
  "SERPER",
  "CacheConfig",
  "CallPolicy",
  "Counting",
  "Described",
  "FunctionTool",
  "MalformedCall",
  "OpenTool",
  "PythonTool",
  "PythonWallError",
  "SearchApi",
  "SearchTool",
  "TagSet",
  "Tool",
  "ToolCall",
  "ToolResult",
  "ToolStatus",
  "WebLimits",
  "call_policy",
  "check_description",
  "check_tools",
  "own_numbers",
  "tool",
]
