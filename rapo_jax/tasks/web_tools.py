"""Tools of the web as values that a config can hold.

Keys are read from the environment where a tool is started; a value holds the
names of variables alone.
"""

from __future__ import annotations

import dataclasses

from rapo_jax.ranges import check_numbers
from rapo_jax.tasks.tools import Services
from rapo_jax.tools import Tool
from rapo_jax.tools.search_server import SearchServer
from rapo_jax.tools.web_cache import CacheConfig
from rapo_jax.tools.web_page import WebPage
from rapo_jax.tools.web_search import SERPER, SearchApi, WebSearch
from rapo_jax.tools.web_service import WebLimits


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

  def start(self, services: Services, /) -> Tool:
    """Reads the key and opens the cache."""
    return services.opened(
      self,
      lambda: WebSearch(
        self.api, top_k=self.top_k, limits=self.limits, cache=self.cache
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

  def start(self, services: Services, /) -> Tool:
    """Opens the cache; processes that read pages start with the first one."""
    return services.opened(
      self,
      lambda: WebPage(
        links=self.links,
        allow_private=self.allow_private,
        limits=self.limits,
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

  def start(self, services: Services, /) -> Tool:
    """Opens the connections and the cache."""
    return services.opened(
      self,
      lambda: SearchServer(
        self.url,
        top_k=self.top_k,
        token=self.token,
        limits=self.limits,
        cache=self.cache,
      ),
    )
