"""A python tool whose programs run in a remote sandbox.

Speaks the HTTP protocol of SandboxFusion (github.com/bytedance/SandboxFusion):
`POST /run_code` with a program, and its exit status and output come back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import httpx2

from rapo_jax import web_address
from rapo_jax.ranges import check_numbers
from rapo_jax.tools import python_source
from rapo_jax.tools.base import ToolResult, ToolStatus
from rapo_jax.tools.python import (
  NO_OUTPUT,
  PythonTool,
  end_of,
  lines_of,
)

# The server answers late by its own queue and by the start of a container.
_GRACE_S = 30.0


@dataclasses.dataclass(frozen=True)
class SandboxTool:
  """Runs each program in a sandbox of a server.

  What the sandbox allows, its packages and its network among them, is up to the
  server. A program that fails is status `error`, and one that takes too long
  `timeout`. Standard error is shown where a program fails, or prints nothing
  else. Where the server does not answer, or says that its sandbox is
  broken, the status is `failed`. Such a call may be made again.

  Attributes:
    url: of the server, without `/run_code`. It holds no password.
    timeout_s: seconds a program may run, > 0.
    max_output_chars: characters of output kept, >= 1.
    max_concurrency: programs under way at once, >= 1.

  Raises:
    InputError: for an invalid address, or a value out of range.
  """

  url: str
  timeout_s: float = 10.0
  max_output_chars: int = 16_384
  max_concurrency: int = 16

  _http: ClassVar[httpx2.Client]
  name = PythonTool.name
  description = PythonTool.description
  example = PythonTool.example
  batched = False
  idempotent = True

  def __post_init__(self) -> None:
    web_address.check_address(
      self.url, "a sandbox", "Put a proxy that adds them before the server."
    )
    check_numbers(self, "timeout_s", above=0, unit="seconds")
    check_numbers(self, "max_output_chars", "max_concurrency", at_least=1)
    client = httpx2.Client(
      limits=httpx2.Limits(max_connections=self.max_concurrency),
      timeout=self.timeout_s + _GRACE_S,
      trust_env=False,
    )
    object.__setattr__(self, "_http", client)
    python_source.ignore_warnings()

  def call(self, argument: str) -> ToolResult:
    """Runs one program."""
    program = python_source.read(argument)
    if not program:
      return ToolResult(python_source.EMPTY, ToolStatus.ERROR)
    question = {
      "code": program.encode("utf-8", "replace").decode(),
      "language": "python",
      "run_timeout": self.timeout_s,
    }
    url = f"{self.url.rstrip('/')}/run_code"
    try:
      response = self._http.post(url, json=question)
      answer = response.raise_for_status().json()
    except httpx2.TimeoutException:
      return ToolResult("The sandbox did not answer.", ToolStatus.LATE)
    except (httpx2.HTTPError, ValueError) as error:
      text = f"The sandbox could not be asked ({type(error).__name__})."
      return ToolResult(text, ToolStatus.FAILED)
    return self._result(answer)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Runs programs at the same time, results in order."""
    with ThreadPoolExecutor(self.max_concurrency) as threads:
      return list(threads.map(self.call, arguments))

  def close(self) -> None:
    """Closes the connections."""
    self._http.close()

  def _result(self, answer: Any) -> ToolResult:
    run = answer.get("run_result") if isinstance(answer, Mapping) else None
    # Its sandbox is broken: the program has not been run, or not to its end.
    if not isinstance(run, Mapping) or answer.get("status") == "SandboxError":
      text = "The sandbox could not run the program."
      return ToolResult(text, ToolStatus.FAILED)
    printed = str(run.get("stdout") or "")
    errors = end_of(str(run.get("stderr") or ""))
    if len(printed) > self.max_output_chars:
      note = f"[cut: more than {self.max_output_chars} characters of output]"
      printed = f"{printed[: self.max_output_chars]}\n{note}"
      return ToolResult(printed, ToolStatus.ERROR)
    printed = printed.rstrip()
    if run.get("status") == "TimeLimitExceeded":
      late = f"TimeoutError: the program ran longer than {self.timeout_s:g} s."
      return ToolResult(lines_of(printed, errors, late), ToolStatus.TIMEOUT)
    if run.get("status") == "Finished" and not run.get("return_code"):
      return ToolResult(printed or errors or NO_OUTPUT, ToolStatus.OK)
    reason = errors or f"exit status {run.get('return_code')}"
    return ToolResult(lines_of(printed, reason), ToolStatus.ERROR)
