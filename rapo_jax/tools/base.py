"""What a tool is: a name and text in, text out."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class ToolStatus(enum.StrEnum):
  """How a call ended. A failed call is data for the agent, no exception."""

  OK = "ok"
  ERROR = "error"
  TIMEOUT = "timeout"


@dataclasses.dataclass(frozen=True)
class ToolResult:
  """What a tool answers.

  Attributes:
    text: the answer as it is; whoever shows it to the policy escapes it.
    status: how the call ended.
  """

  text: str
  status: ToolStatus


@runtime_checkable
class Tool(Protocol):
  """A tool of an agent. Both methods may be called from many threads.

  `name` is also the tool's tag. Whatever the argument holds, the methods
  return: an argument that makes no sense gives status `error`.
  """

  @property
  def name(self) -> str:
    """The tool's tag."""

  @property
  def batched(self) -> bool:
    """Whether `call_batch` is cheaper than calls side by side in threads."""

  def call(self, argument: str) -> ToolResult:
    """Runs one call."""

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Runs calls, results in order."""


def shorten(text: str, max_chars: int = 80) -> str:
  """Start of an argument, for error texts."""
  return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
