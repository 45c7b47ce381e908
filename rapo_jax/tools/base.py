"""A tool: a name, how to call it, and text in, text out."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rapo_jax.errors import InputError
from rapo_jax.tools import tags


class ToolStatus(enum.StrEnum):
  """How a call ended. A failed call is data for the agent, no exception."""

  OK = "ok"
  ERROR = "error"
  """The argument made no sense to the tool, or what it asked for went wrong."""
  TIMEOUT = "timeout"
  """What was asked for, such as a program, ran longer than it may."""
  LATE = "late"
  """No answer came by the deadline, whatever was asked."""
  FAILED = "failed"
  """The tool itself is at fault: it raised, or returned no result."""
  REFUSED = "refused"
  """The call was not made: too many earlier ones have not come back, or the
  tool's budget is spent."""


@dataclasses.dataclass(frozen=True)
class ToolResult:
  """What a tool answers.

  Attributes:
    text: the answer, not escaped; the caller escapes it before the policy reads
      it.
    status: how the call ended.
  """

  text: str
  status: ToolStatus


@runtime_checkable
class Described(Protocol):
  """What the system prompt says of a tool. A tool's class may have it too."""

  @property
  def name(self) -> str:
    """The tool's name, which is also its tag."""

  @property
  def description(self) -> str:
    """How to call it and what it does, in one sentence.

    For instance "<open> a page id </open> shows the page with that id."
    """

  @property
  def example(self) -> str:
    """One step of an agent that calls it: thought, call and result."""


@runtime_checkable
class Tool(Described, Protocol):
  """A tool of an agent. Both methods may be called from many threads.

  Whatever the argument holds, the methods return. An argument that makes no
  sense gives status `error`. A tool may also have the attributes of
  `CallPolicy`, which say how it may be called, and the method of `Counting`.
  """

  @property
  def batched(self) -> bool:
    """Whether `call_batch` is cheaper than calls side by side in threads."""

  def call(self, argument: str) -> ToolResult:
    """Runs one call."""

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Runs calls, results in order."""


@runtime_checkable
class Counting(Protocol):
  """A tool that counts something itself, such as what its calls cost."""

  def numbers(self) -> Mapping[str, float]:
    """Counts since the tool was started, by name.

    The metrics of a run show them as `tools/<tool>/<name>`.
    """


@dataclasses.dataclass(frozen=True)
class CallPolicy:
  """How calls of a tool may be made.

  A tool says so by attributes of these names, each of them optional.

  Attributes:
    idempotent: whether making a call twice does no harm. Only then is a call
      made again that failed, or, alone, one whose batch failed.
    retries: times that a failed call is made again, >= 0; None leaves it to
      the rollout.
    max_concurrency: calls under way at once, >= 1 (batches, where the tool
      works in batches); None leaves it to the rollout.
    timeout_s: deadline of a call in seconds, > 0; None leaves it to the
      rollout.
  """

  idempotent: bool = False
  retries: int | None = None
  max_concurrency: int | None = None
  timeout_s: float | None = None

  def __post_init__(self) -> None:
    if self.retries is not None and self.retries < 0:
      raise InputError(
        f"a tool's retries must be at least 0, got {self.retries}: 0 never "
        "makes a call again."
      )
    if self.max_concurrency is not None and self.max_concurrency < 1:
      raise InputError(
        "a tool's max_concurrency must be at least 1, got "
        f"{self.max_concurrency}: raise it."
      )
    if self.timeout_s is not None and not self.timeout_s > 0:
      raise InputError(
        f"a tool's timeout_s must be > 0 seconds, got {self.timeout_s}: raise "
        "it."
      )


def call_policy(tool: Any) -> CallPolicy:
  """Reads a tool's policy from its attributes.

  Raises:
    InputError: one of them is out of range.
  """
  names = (field.name for field in dataclasses.fields(CallPolicy))
  stated: dict[str, Any] = {
    name: getattr(tool, name) for name in names if hasattr(tool, name)
  }
  return CallPolicy(**stated)


def own_numbers(tool: Any) -> dict[str, float]:
  """What a tool counts itself; nothing of one that is not `Counting`."""
  if not isinstance(tool, Counting):
    return {}
  return {str(name): float(n) for name, n in tool.numbers().items()}


def check_tools(tools: Mapping[str, Any]) -> tags.TagSet:
  """Checks that objects are tools, and gives their tags.

  Args:
    tools: by name.

  Raises:
    InputError: an object lacks an attribute of `Tool`, or has an example
      without a call. Or its name is not its key, or cannot be a tag.
  """
  tag_set = tags.TagSet(tuple(tools))
  for name, tool in tools.items():
    missing = [
      attribute
      for attribute in (
        *("name", "description", "example"),
        *("batched", "call", "call_batch"),
      )
      if not hasattr(tool, attribute)
    ]
    if missing:
      raise InputError(
        f"a tool must have the attributes of rapo_jax.tools.Tool, and {name!r} "
        f"({type(tool).__qualname__}) lacks {', '.join(missing)}: add them, or "
        "make the tool of a function with rapo_jax.tools.tool."
      )
    if tool.name != name:
      raise InputError(
        f"each tool must be given under its own name, and {tool.name!r} is "
        f"given as {name!r}: correct the key."
      )
    check_description(tool)
  return tag_set


def check_description(tool: Any) -> None:
  """Checks what a tool says of itself.

  Raises:
    InputError: the description is blank, or the example shows no call.
  """
  if not isinstance(tool.description, str) or not tool.description.strip():
    raise InputError(
      f"the tool {tool.name!r} must have a description, got "
      f"{tool.description!r}: say in one sentence how to call it."
    )
  if not isinstance(tool.example, str):
    raise InputError(
      f"the example of the tool {tool.name!r} must be a text, got "
      f"{type(tool.example).__name__}: write one step that calls it."
    )
  tags.check_call(tool.name, tool.example)


def shorten(text: str, max_chars: int = 80) -> str:
  """Start of an argument, for error texts."""
  return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
