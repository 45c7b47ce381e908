"""Tools of the web, and of MCP servers, as values that a config can hold.

Keys are read from the environment where a tool is started; a value holds the
names of variables alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools

from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.tasks.tools import Services
from rapo_jax.tools import TagSet, Tool
from rapo_jax.tools.mcp import (
  McpAddress,
  McpConnection,
  McpDefinition,
  McpTool,
  check_address,
)
from rapo_jax.tools.search_server import SearchServer
from rapo_jax.tools.web_cache import CacheConfig, check_cache
from rapo_jax.tools.web_page import WebPage, check_installed
from rapo_jax.tools.web_search import SERPER, SearchApi, WebSearch
from rapo_jax.tools.web_service import WebLimits, key_of


def of_one_host(limits: WebLimits) -> WebLimits:
  """What this one of several hosts may ask; all together keep the limits.

  Each may make one request at a time, however many hosts there are.

  Args:
    limits: of all hosts together.
  """
  count = hosts.count()
  if count == 1:
    return limits

  def part(limit: float | None) -> float | None:
    return None if limit is None else limit / count

  return dataclasses.replace(
    limits,
    calls_per_s=part(limits.calls_per_s),
    max_concurrency=max(1, hosts.share_of(limits.max_concurrency)),
    max_calls=None
    if limits.max_calls is None
    else hosts.share_of(limits.max_calls),
    max_cost=part(limits.max_cost),
  )


@dataclasses.dataclass(frozen=True)
class WebSearchSpec:
  """A search tool over the web.

  Attributes:
    api: the service, and the variable of the environment with its key.
    top_k: results a search returns, >= 1.
    limits: how much the service is asked.
    cache: keeps its results, and replays them.

  Raises:
    InputError: `top_k` is out of range.
  """

  api: SearchApi = SERPER
  top_k: int = 5
  limits: WebLimits = WebLimits()
  cache: CacheConfig = CacheConfig()

  name = WebSearch.name
  description = WebSearch.description
  example = WebSearch.example

  def __post_init__(self) -> None:
    check_numbers(self, "top_k", at_least=1)

  def check(self) -> None:
    """Checks the key or the cache, before anything is written.

    Raises:
      InputError: the one that is needed is not there.
    """
    check_cache(self.cache)
    if self.cache.mode != "replay":
      key_of(self.api.key, "a search service")

  def start(self, services: Services, /) -> Tool:
    """Reads the key and opens the cache."""
    return services.opened(
      self,
      lambda: WebSearch(
        self.api,
        top_k=self.top_k,
        limits=of_one_host(self.limits),
        cache=self.cache,
      ),
    )


@dataclasses.dataclass(frozen=True)
class WebPageSpec:
  """A tool that opens pages of the web.

  Attributes:
    links: whether the text of a page shows where its links lead.
    allow_private: whether loopback and private addresses may be opened. An
      agent could then reach every service that this machine can.
    limits: how much is fetched. Of a larger page the first bytes are read.
    cache: keeps the texts, and replays them.
  """

  links: bool = False
  allow_private: bool = False
  limits: WebLimits = WebLimits()
  cache: CacheConfig = CacheConfig()

  name = WebPage.name
  description = WebPage.description
  example = WebPage.example

  def check(self) -> None:
    """Checks the package or the cache, before anything is written.

    Raises:
      InputError: the one that is needed is not there.
    """
    check_cache(self.cache)
    if self.cache.mode != "replay":
      check_installed()

  def start(self, services: Services, /) -> Tool:
    """Opens the cache; processes that read pages start with the first one."""
    return services.opened(
      self,
      lambda: WebPage(
        links=self.links,
        allow_private=self.allow_private,
        limits=of_one_host(self.limits),
        cache=self.cache,
      ),
    )


@dataclasses.dataclass(frozen=True)
class SearchServerSpec:
  """A search tool over the corpus of a Search-R1 server.

  Attributes:
    url: of the server, with or without `/retrieve`.
    top_k: documents a search returns, >= 1.
    token: variable of the environment with a bearer token; None for none.
    limits: how much the server is asked.
    cache: keeps its documents, and replays them.

  Raises:
    InputError: `top_k` is out of range.
  """

  url: str
  top_k: int = 3
  token: str | None = None
  limits: WebLimits = WebLimits()
  cache: CacheConfig = CacheConfig()

  name = SearchServer.name
  description = SearchServer.description
  example = SearchServer.example

  def __post_init__(self) -> None:
    check_numbers(self, "top_k", at_least=1)

  def check(self) -> None:
    """Checks the token or the cache, before anything is written.

    Raises:
      InputError: the one that is needed is not there.
    """
    check_cache(self.cache)
    if self.cache.mode != "replay":
      key_of(self.token, "a search server")

  def start(self, services: Services, /) -> Tool:
    """Opens the connections and the cache."""
    return services.opened(
      self,
      lambda: SearchServer(
        self.url,
        top_k=self.top_k,
        token=self.token,
        limits=of_one_host(self.limits),
        cache=self.cache,
      ),
    )


@dataclasses.dataclass(frozen=True)
class McpSpec:
  """A tool of an MCP server. Specs with the same server share one.

  The server is asked once for the tool's description and schema, which the
  prompt holds, and starts again with the task.

  Attributes:
    tool: its name there.
    command: program and arguments of a server over stdio.
    url: of a server over streamable HTTP, instead of a command.
    as_name: its name here; None for the same. It must be able to be a tag.
    environment: names of the variables that a command is given, beside PATH,
      HOME and the like.
    token: variable of the environment with a bearer token for the URL.
    timeout_s: seconds a call may take, > 0.
    start_timeout_s: seconds in which the server must start, > 0.
    max_concurrency: calls under way at once, >= 1.
    idempotent: whether making a call twice does no harm. Only then is a call
      made again that failed.

  Raises:
    InputError: a value is out of range, the name cannot be a tag, or not one of
      command and URL is given.
  """

  tool: str
  command: tuple[str, ...] = ()
  url: str | None = None
  as_name: str | None = None
  environment: tuple[str, ...] = ()
  token: str | None = None
  timeout_s: float = 30.0
  start_timeout_s: float = 30.0
  max_concurrency: int = 8
  idempotent: bool = False

  def __post_init__(self) -> None:
    check_numbers(self, "timeout_s", above=0, unit="seconds")
    check_numbers(self, "max_concurrency", at_least=1)
    _ = self._address  # It checks its fields.
    try:
      TagSet((self.name,))
    except InputError as error:
      raise InputError(
        f"{error} An MCP tool is renamed here by `as_name`."
      ) from error

  @property
  def name(self) -> str:
    """The tool's name here."""
    return self.tool if self.as_name is None else self.as_name

  @property
  def description(self) -> str:
    """What the server says of the tool.

    Raises:
      InputError: the server does not start, or has no such tool.
    """
    return _definition(self._address, self.tool).describe(self.name)

  @property
  def example(self) -> str:
    """A step that calls it, by its schema; raises as `description`."""
    return _definition(self._address, self.tool).example(self.name)

  def check(self) -> None:
    """Checks the package, the program and the variables.

    Raises:
      InputError: one of them is not there.
    """
    check_address(self._address)

  def start(self, services: Services, /) -> Tool:
    """Starts the server with the first call."""
    address = self._address
    connection = services.opened(address, lambda: McpConnection(address))
    return McpTool(
      connection,
      _definition(address, self.tool),
      name=self.name,
      timeout_s=self.timeout_s,
      max_concurrency=self.max_concurrency,
      idempotent=self.idempotent,
    )

  @property
  def _address(self) -> McpAddress:
    return McpAddress(
      self.command,
      self.url,
      self.environment,
      self.token,
      self.start_timeout_s,
    )


@functools.lru_cache
def _definitions(address: McpAddress) -> dict[str, McpDefinition]:
  """What a server says of its tools, asked once a process."""
  with contextlib.closing(McpConnection(address)) as connection:
    return connection.definitions()


def _definition(address: McpAddress, tool: str) -> McpDefinition:
  found = _definitions(address)
  if tool not in found:
    raise InputError(
      f"{address} has no tool {tool!r}: use one of "
      f"{', '.join(found) or 'none'}."
    )
  return found[tool]
