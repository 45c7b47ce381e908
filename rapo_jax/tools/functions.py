"""Tools made of plain functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rapo_jax.errors import InputError
from rapo_jax.tools.base import (
  CallPolicy,
  ToolResult,
  ToolStatus,
  check_description,
)

Function = Callable[[str], str | ToolResult]


@dataclasses.dataclass(frozen=True)
class FunctionTool:
  """A tool that calls a function.

  A function that raises ValueError says that the argument makes no sense: the
  agent reads the message, and the status is `error`. Any other exception is a
  fault of the tool, and gives status `failed`.

  Attributes:
    function: from the argument to the answer. Many threads may call it.
    name: the tool's name, which is also its tag.
    description: how to call it and what it does, in one sentence.
    example: one step of an agent that calls it: thought, call and result.
    policy: how it may be called.

  Raises:
    InputError: the name cannot be a tag, the description is blank, or the
      example shows no call.
  """

  function: Function
  name: str
  description: str
  example: str
  policy: CallPolicy = CallPolicy()

  batched = False

  def __post_init__(self) -> None:
    if not callable(self.function):
      raise InputError(
        f"the tool {self.name!r} must be made of a function, got "
        f"{type(self.function).__name__}: give one from text to text."
      )
    check_description(self)

  @property
  def idempotent(self) -> bool:
    """See `CallPolicy`, as for the next three."""
    return self.policy.idempotent

  @property
  def retries(self) -> int | None:
    return self.policy.retries

  @property
  def max_concurrency(self) -> int | None:
    return self.policy.max_concurrency

  @property
  def timeout_s(self) -> float | None:
    return self.policy.timeout_s

  def call(self, argument: str) -> ToolResult:
    """Calls the function with an argument without outer white space.

    Raises:
      TypeError: the function returned neither a text nor a `ToolResult`.
    """
    try:
      answer = self.function(argument.strip())
    except ValueError as error:
      return ToolResult(str(error), ToolStatus.ERROR)
    if isinstance(answer, str):
      return ToolResult(answer, ToolStatus.OK)
    if isinstance(answer, ToolResult):
      return answer
    raise TypeError(
      f"the function of the tool {self.name!r} must return a text or a "
      f"ToolResult, got {type(answer).__name__}"
    )

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Calls the function for each argument, in order."""
    return [self.call(argument) for argument in arguments]


def tool(
  *,
  description: str,
  example: str,
  name: str | None = None,
  policy: CallPolicy | None = None,
) -> Callable[[Function], FunctionTool]:
  """Makes a tool of the function that it decorates.

  Args:
    description: how to call it and what it does, in one sentence.
    example: one step of an agent that calls it: thought, call and result.
    name: of the tool; None takes the name of the function.
    policy: how it may be called; None takes the default.

  Raises:
    InputError: as for `FunctionTool`.
  """

  def decorate(function: Function) -> FunctionTool:
    return FunctionTool(
      function,
      function.__name__ if name is None else name,
      description,
      example,
      policy or CallPolicy(),
    )

  return decorate
