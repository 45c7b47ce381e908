"""Tools of MCP servers (Model Context Protocol) as tools of an agent.

The client is the official SDK, `mcp`. It runs in an event loop in a thread of
its own, one for each server; the tools of a server share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import logging
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx2

from rapo_jax import extras, web_address
from rapo_jax.breaker import Breaker
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.tools.base import ToolResult, ToolStatus
from rapo_jax.tools.tags import TagSet
from rapo_jax.tools.web_service import key_of, plain

_RELAY = pathlib.Path(__file__).with_name("mcp_relay.py")
_MAX_PAGES = 100
_MAX_DESCRIPTION_CHARS = 1000
_SHOWN_CHARS = 300
# Starts in a row that fail, and calls in a row that are late.
_FAILED_STARTS, _COOLDOWN_S = 3, 30.0
_LATE_CALLS = 3
# The SDK gives a server six seconds to end.
_CLOSE_S = 10.0
_GRACE_S = 5.0
# Codes of JSON-RPC.
_CLOSED, _INVALID_PARAMS = -32000, -32602
_EXAMPLES: Mapping[str, Any] = {
  "string": "…",
  "integer": 1,
  "number": 1.5,
  "boolean": True,
  "array": [],
  "object": {},
}
# Of a JSON schema; they say nothing to an agent.
_LEFT_OUT = ("title", "$schema")
_log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class McpAddress:
  """Where an MCP server is: a command that starts it, or a URL.

  Attributes:
    command: program and arguments of a server over stdio.
    url: of a server over streamable HTTP; it holds no password.
    environment: names of the variables that a command is given, beside PATH,
      HOME and the like.
    token: variable of the environment with a bearer token for the URL.
    start_timeout_s: seconds in which a server must start, > 0.
    max_bytes: most bytes of a message over stdio, >= 1.

  Raises:
    InputError: a value is out of range, or not one of command and URL is given.
  """

  command: tuple[str, ...] = ()
  url: str | None = None
  environment: tuple[str, ...] = ()
  token: str | None = None
  start_timeout_s: float = 30.0
  max_bytes: int = 4 * 2**20

  def __post_init__(self) -> None:
    check_numbers(self, "start_timeout_s", above=0, unit="seconds")
    check_numbers(self, "max_bytes", at_least=1)
    if bool(self.command) == (self.url is not None):
      raise InputError(
        "an MCP server must have a command or a URL, got command="
        f"{self.command} and url={self.url!r}: give one of them."
      )
    if self.url is not None:
      web_address.check_address(
        self.url,
        "an MCP server",
        "Name the variable of a bearer token in `token`.",
      )

  def __str__(self) -> str:
    return f"the MCP server {self.url or ' '.join(self.command)}"


@dataclasses.dataclass(frozen=True)
class McpDefinition:
  """What a server says of a tool.

  Attributes:
    name: the server's.
    description: what it does.
    schema: JSON schema of its arguments.
  """

  name: str
  description: str
  schema: Mapping[str, Any]

  @property
  def lone_text(self) -> str | None:
    """The only parameter, if it is a text: it needs no JSON."""
    properties = _properties(self.schema)
    if len(properties) != 1:
      return None
    ((name, one),) = properties.items()
    return name if _kind(one) == "string" and "enum" not in one else None

  def describe(self, tag: str) -> str:
    """How the tool is called and what it does, in one line."""
    what = " ".join(plain(self.description).split())[:_MAX_DESCRIPTION_CHARS]
    what = f": {what}" if what else " is a tool."
    if self.lone_text is not None:
      text = f"<{tag}> {self.lone_text} </{tag}>{what}"
    else:
      schema = json.dumps(_short(self.schema), ensure_ascii=False)
      text = (
        f"<{tag}> a JSON object </{tag}>{what} JSON schema of the object: "
        f"{plain(schema)}"
      )
    # The call itself is not escaped.
    start = text.index(f"</{tag}>") + len(tag) + 3
    return text[:start] + TagSet((tag,)).escape(text[start:])

  def example(self, tag: str) -> str:
    """One step of an agent that calls the tool."""
    argument = self._sample_argument()
    return (
      f"<think> I call {tag}. </think>"
      f"<{tag}> {TagSet((tag,)).escape(argument)} </{tag}><result> … </result>"
    )

  def arguments(self, text: str) -> dict[str, Any]:
    """The arguments that an agent wrote.

    Raises:
      ValueError: they are no JSON object; says so to the agent.
    """
    text = plain(text).strip()
    if not text and self.lone_text is None and not self.schema.get("required"):
      return {}
    try:
      value = json.loads(text)
    except (ValueError, RecursionError) as error:
      value, fault = None, str(error)
    else:
      fault = f"got {type(value).__name__}"
    lone = self.lone_text
    if isinstance(value, dict) and (lone is None or set(value) == {lone}):
      return value
    if lone is not None and text:
      return {lone: text}
    raise ValueError(
      "The argument must be a JSON object, such as "
      f"{self._sample_argument()} ({fault})."
    )

  def _sample_argument(self) -> str:
    """An argument as an agent may write it."""
    if self.lone_text is not None:
      return "…"
    properties = _properties(self.schema)
    required = self.schema.get("required")
    names = required if isinstance(required, list) and required else properties
    given = {
      name: _example(properties.get(name, {}))
      for name in names
      if isinstance(name, str)
    }
    return json.dumps(given, ensure_ascii=False)


class McpError(Exception):
  """A call that a server did not do.

  Attributes:
    result: what the agent reads.
  """

  def __init__(self, text: str, status: ToolStatus):
    super().__init__(text)
    self.result = ToolResult(text, status)


@dataclasses.dataclass(eq=False)
class _Life:
  """One start of a server, up to its end.

  Attributes:
    ready: the client, once the server has started.
    end: set when it is to end.
    task: runs it.
    late_calls: calls in a row that it did not answer in time.
    fault: why it has to end.
  """

  ready: asyncio.Future[Any]
  end: asyncio.Event
  task: asyncio.Task[None] | None = None
  late_calls: int = 0
  fault: str = ""


class McpConnection:
  """A server that starts with the first call, and again after it has died.

  Any thread may call it.

  Args:
    address: where it is.

  Raises:
    InputError: `mcp` is not installed, the program is not there, or a variable
      of the environment is not set.
  """

  def __init__(self, address: McpAddress):
    check_address(address)
    what = str(address)
    self._environment = {
      name: key_of(name, what) or "" for name in address.environment
    }
    token = key_of(address.token, what)
    self._headers = (
      {} if token is None else {"authorization": f"Bearer {token}"}
    )
    self._address = address
    self._breaker = Breaker()
    self._life: _Life | None = None
    self._lives: set[asyncio.Task[None]] = set()
    self.num_starts = 0
    self._logged = False
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(
      target=self._loop.run_forever, name="mcp", daemon=True
    )
    self._thread.start()

  @property
  def start_timeout_s(self) -> float:
    """Seconds in which the server must start."""
    return self._address.start_timeout_s

  def definitions(self) -> dict[str, McpDefinition]:
    """The tools of the server, by name.

    Raises:
      InputError: it does not start, or does not say.
    """

    async def listed(client: Any) -> dict[str, McpDefinition]:
      found, cursor = {}, None
      for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        for one in page.tools:
          found[one.name] = McpDefinition(
            one.name, one.description or "", one.input_schema
          )
        cursor = page.next_cursor
        if cursor is None:
          break
      return found

    try:
      definitions: dict[str, McpDefinition] = self._run(
        listed, self._address.start_timeout_s
      )
    except McpError as error:
      raise InputError(
        f"{self._address} must list its tools, and does not ({error}): correct "
        f"its command, URL or environment.{_because(error)}"
      ) from error
    return definitions

  def call(
    self, name: str, arguments: Mapping[str, Any], timeout_s: float
  ) -> Any:
    """The server's result of a call.

    Raises:
      McpError: it gives none.
    """
    return self._run(
      lambda client: client.call_tool(name, dict(arguments)), timeout_s
    )

  def close(self) -> None:
    """Ends the server and the thread."""
    if self._loop.is_closed():
      return
    ended = asyncio.run_coroutine_threadsafe(self._end_all(), self._loop)
    with contextlib.suppress(TimeoutError):
      ended.result(_CLOSE_S)
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join(_CLOSE_S)
    if not self._thread.is_alive():
      self._loop.close()

  def _run(self, ask: Any, timeout_s: float) -> Any:
    future: Future[Any] = asyncio.run_coroutine_threadsafe(
      self._asked(ask, timeout_s), self._loop
    )
    try:
      # The loop is later only if it is held up.
      return future.result(timeout_s + self._address.start_timeout_s + _GRACE_S)
    except TimeoutError as error:
      future.cancel()
      raise self._late(timeout_s) from error

  def _late(self, timeout_s: float) -> McpError:
    return McpError(
      f"The server did not answer within {timeout_s:g} s.", ToolStatus.LATE
    )

  # All below in the loop's thread.

  async def _asked(self, ask: Any, timeout_s: float) -> Any:
    from mcp.shared.exceptions import MCPError

    life = await self._living()
    try:
      result = await asyncio.wait_for(ask(life.ready.result()), timeout_s)
    except TimeoutError as error:
      life.late_calls += 1
      if life.late_calls >= _LATE_CALLS:
        self._leave(life, "hangs")
      raise self._late(timeout_s) from error
    except MCPError as error:
      if error.code == _INVALID_PARAMS:
        raise McpError(str(error), ToolStatus.ERROR) from error
      if error.code == _CLOSED:
        self._leave(life, "has died")
        raise McpError("The server has died.", ToolStatus.FAILED) from error
      raise McpError(
        f"The server failed: {error}", ToolStatus.FAILED
      ) from error
    except Exception as error:
      # A connection that is lost, or a result that is none.
      self._leave(life, f"failed ({_reason(error)})")
      raise McpError(
        f"The server failed ({type(error).__name__}).", ToolStatus.FAILED
      ) from error
    life.late_calls = 0
    return result

  async def _living(self) -> _Life:
    """The life of a server that has started."""
    if self._life is None:
      if self._breaker.is_open:
        raise McpError(
          "The server does not start, and is left alone for a while.",
          ToolStatus.REFUSED,
        )
      life = _Life(asyncio.get_running_loop().create_future(), asyncio.Event())
      life.task = asyncio.create_task(self._lived(life))
      self._lives.add(life.task)
      life.task.add_done_callback(self._lives.discard)
      self._life = life
      self.num_starts += 1
    life = self._life
    try:
      await asyncio.wait_for(
        asyncio.shield(life.ready), self._address.start_timeout_s
      )
    except Exception as error:
      late = "in time" if isinstance(error, TimeoutError) else ""
      if self._life is life:
        self._count(failed=True, reason=str(error) or late)
      self._leave(life)
      raise McpError("The server did not start.", ToolStatus.FAILED) from error
    return life

  def _leave(self, life: _Life, fault: str = "") -> None:
    """Ends a life; the next call begins another."""
    if self._life is life:
      self._life = None
      life.fault = fault
    life.end.set()
    if not life.ready.done() and life.task is not None:
      life.task.cancel()

  def _count(self, *, failed: bool, reason: str = "") -> None:
    change = self._breaker.count(
      failed,
      window=_FAILED_STARTS,
      failures=_FAILED_STARTS,
      cooldown_s=_COOLDOWN_S,
    )
    if failed:
      _log.warning("%s did not start: %s", self._address, reason)
    if change == "opened":
      _log.error(
        "%s did not start %d times: it is left alone for %g s.",
        *(self._address, _FAILED_STARTS, _COOLDOWN_S),
      )

  async def _lived(self, life: _Life) -> None:
    """Runs a server until its life is to end."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as words:
      try:
        async with self._client(words) as client:
          self._count(failed=False)
          life.ready.set_result(client)
          await life.end.wait()
      except Exception as error:
        life.fault = life.fault or f"ended ({_reason(error)})"
        if not life.ready.done():
          reason = f"{_reason(error)} {_last_words(words)}".strip()
          life.ready.set_exception(RuntimeError(reason))
      finally:
        if not life.ready.done():
          life.ready.set_exception(RuntimeError("it was ended"))
        if life.ready.exception() is None and life.fault and not self._logged:
          self._logged = True
          _log.warning(
            "%s %s, and is started again by the next call. Further times are "
            "counted and not logged. %s",
            *(self._address, life.fault, _last_words(words)),
          )

  @contextlib.asynccontextmanager
  async def _client(self, words: Any) -> AsyncIterator[Any]:
    import mcp
    from mcp.client.stdio import StdioServerParameters, stdio_client
    from mcp.client.streamable_http import streamable_http_client

    address = self._address
    async with contextlib.AsyncExitStack() as stack:
      if address.url is not None:
        http = httpx2.AsyncClient(
          headers=self._headers,
          timeout=httpx2.Timeout(address.start_timeout_s, read=None),
        )
        await stack.enter_async_context(http)
        transport = streamable_http_client(address.url, http_client=http)
      else:
        relay = ["-I", str(_RELAY), str(address.max_bytes), *address.command]
        parameters = StdioServerParameters(
          command=sys.executable, args=relay, env=self._environment
        )
        transport = stdio_client(parameters, errlog=words)
      yield await stack.enter_async_context(mcp.Client(transport))

  async def _end_all(self) -> None:
    if self._life is not None:
      self._leave(self._life)
    if self._lives:
      await asyncio.wait(self._lives, timeout=_CLOSE_S)


def check_address(address: McpAddress) -> None:
  """Checks what can be checked before a server is started.

  Raises:
    InputError: `mcp` is not installed, the program is not there, or a variable
      of the environment is not set.
  """
  if not importlib.util.find_spec("mcp"):
    raise InputError(
      "tools of MCP servers are called by mcp, which is not installed: "
      f"{extras.install_command('mcp')}."
    )
  if address.command and shutil.which(address.command[0]) is None:
    raise InputError(
      f"the command of an MCP server must be a program, and "
      f"{address.command[0]!r} is not found: install it, or correct it."
    )
  for variable in (*address.environment, address.token):
    key_of(variable, str(address))


class McpTool:
  """A tool of an MCP server.

  An agent writes its arguments as a JSON object. A lone text parameter may be
  written as it is. Status `error` is what the server says of the call,
  `failed` what became of the server.

  Args:
    connection: to the server; others may share it.
    definition: what the server says of the tool.
    name: of the tool here, which can be a tag.
    timeout_s: seconds a call may take, > 0.
    max_concurrency: calls under way at once, >= 1.
    idempotent: whether making a call twice does no harm.
  """

  batched = False

  def __init__(
    self,
    connection: McpConnection,
    definition: McpDefinition,
    *,
    name: str,
    timeout_s: float = 30.0,
    max_concurrency: int = 8,
    idempotent: bool = False,
  ):
    self.name = name
    self.description = definition.describe(name)
    self.example = definition.example(name)
    self.max_concurrency = max_concurrency
    self.idempotent = idempotent
    self._connection = connection
    self._definition = definition
    self._timeout_s = timeout_s
    self._lock = threading.Lock()
    self._calls = self._errors = 0

  @property
  def timeout_s(self) -> float:
    """See `CallPolicy`; a server may have to start before."""
    return self._timeout_s + self._connection.start_timeout_s + _GRACE_S

  def numbers(self) -> dict[str, float]:
    """Calls, those that the server failed at, and its starts."""
    with self._lock:
      calls, errors = self._calls, self._errors
    starts = self._connection.num_starts
    return {"calls": calls, "errors": errors, "starts": starts}

  def call(self, argument: str) -> ToolResult:
    """Makes one call."""
    try:
      arguments = self._definition.arguments(argument)
    except ValueError as error:
      return ToolResult(str(error), ToolStatus.ERROR)
    with self._lock:
      self._calls += 1
    try:
      found = self._connection.call(
        self._definition.name, arguments, self._timeout_s
      )
    except McpError as error:
      if error.result.status is not ToolStatus.ERROR:
        with self._lock:
          self._errors += 1
      return error.result
    status = ToolStatus.ERROR if found.is_error else ToolStatus.OK
    return ToolResult(_text(found), status)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Makes calls, in order."""
    return [self.call(argument) for argument in arguments]


def _properties(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Parameters by name; one that has no schema of its own has an empty one."""
  found = schema.get("properties")
  if not isinstance(found, Mapping):
    return {}
  return {
    str(name): one if isinstance(one, Mapping) else {}
    for name, one in found.items()
  }


def _kind(schema: Mapping[str, Any]) -> str:
  """Type of a parameter; the first of several, "" for none."""
  kind = schema.get("type", "")
  if isinstance(kind, list):
    kind = kind[0] if kind else ""
  return kind if isinstance(kind, str) else ""


def _example(schema: Mapping[str, Any]) -> Any:
  """A value that a parameter may have."""
  if "default" in schema:
    return schema["default"]
  for name in ("examples", "enum"):
    values = schema.get(name)
    if isinstance(values, list) and values:
      return values[0]
  return _EXAMPLES.get(_kind(schema), "…")


def _short(schema: Any, *, names: bool = False) -> Any:
  """A schema without what says nothing to an agent.

  Args:
    schema: or a part of it.
    names: whether its keys are names of parameters.
  """
  if isinstance(schema, Mapping):
    return {
      key: _short(value, names=key == "properties" and not names)
      for key, value in schema.items()
      if names or key not in _LEFT_OUT
    }
  return [_short(one) for one in schema] if isinstance(schema, list) else schema


def _text(result: Any) -> str:
  """What an agent reads of a result: its texts, and what else there was."""
  texts = [_block_text(block) for block in result.content]
  if not texts and result.structured_content is not None:
    texts = [json.dumps(result.structured_content, ensure_ascii=False)]
  return plain("\n".join(texts)) or "[no output]"


def _block_text(block: Any) -> str:
  resource = getattr(block, "resource", block)
  for name in ("text", "uri"):
    value = getattr(resource, name, None)
    if value is not None and not hasattr(resource, "blob"):
      return str(value)
  kind = getattr(resource, "mime_type", None) or "of no known type"
  return f"[{block.type} {kind}, which cannot be shown]"


def _reason(error: BaseException) -> str:
  """What went wrong, of the errors of several tasks the first."""
  while isinstance(error, BaseExceptionGroup):
    error = error.exceptions[0]
  return f"{type(error).__name__}: {error}"[:_SHOWN_CHARS].rstrip(": ")


def _because(error: McpError) -> str:
  """Why a server did not start, if that is known."""
  cause = error.__cause__
  return f" {cause}" if isinstance(cause, RuntimeError) else ""


def _last_words(words: Any) -> str:
  """The end of what a server wrote to standard error."""
  words.seek(0)
  text = " ".join(words.read().split())
  return f"It says: …{text[-_SHOWN_CHARS:]}" if text else ""
