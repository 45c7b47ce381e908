"""Searches the web through an HTTP API: Serper, or any that answers in JSON."""

from __future__ import annotations

import dataclasses
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx2

from rapo_jax import http_client, text_files, web_address
from rapo_jax.errors import InputError
from rapo_jax.tools.base import ToolResult, ToolStatus
from rapo_jax.tools.search import NO_DOCUMENT, documents_text
from rapo_jax.tools.web_cache import IMPORTED, CacheConfig, Key, plain_query
from rapo_jax.tools.web_service import (
  NoResult,
  WebLimits,
  WebService,
  WebTool,
  key_of,
  parsed,
  plain,
)

MAX_QUERY_CHARS = 2000
"""A longer query is no query: services refuse it."""
_QUERY, _TOP_K = "{query}", "{top_k}"


@dataclasses.dataclass(frozen=True)
class SearchApi:
  """How a search service is asked, and where its answer has the results.

  Attributes:
    url: address; `{query}` in it is replaced. It holds no key.
    fields: JSON object that is sent: as the body of a POST, as the parameters
      of a GET. `{query}` in its texts is replaced; "{top_k}" becomes a number.
    method: "POST" or "GET".
    items: path of the list of results in the answer, keys and positions
      between dots such as `web.results`; "" where the answer is the list.
    title: path of the title within a result; "" where there is none.
    link: the same of the address.
    text: the same of the snippet.
    key: variable of the environment that holds the key; None for no key.
    key_header: header that carries it.
    key_prefix: before it in the header, such as "Bearer ".
    omits_empty: whether an answer without `items` says that nothing was found.

  Raises:
    InputError: the address or the object is none, or the header has no name.
  """

  url: str
  fields: str = '{"q": "{query}", "num": "{top_k}"}'
  method: Literal["GET", "POST"] = "POST"
  items: str = "results"
  title: str = "title"
  link: str = "link"
  text: str = "snippet"
  key: str | None = None
  key_header: str = "Authorization"
  key_prefix: str = ""
  omits_empty: bool = False

  def __post_init__(self) -> None:
    web_address.check_address(
      self.url,
      "a search service",
      "Parameters belong into `fields`, and a key into the environment.",
    )
    if self.method not in ("GET", "POST"):
      raise InputError(
        f"method of a search service must be GET or POST, got {self.method!r}: "
        "correct it."
      )
    try:
      fields = text_files.parse_json(self.fields)
    except text_files.TextError as error:
      raise InputError(
        f"fields of a search service must be a JSON object, got "
        f"{self.fields!r:.80} ({error}): correct it."
      ) from error
    if not isinstance(fields, dict):
      raise InputError(
        "fields of a search service must be a JSON object, got "
        f"{self.fields!r:.80}: put braces around it."
      )
    if _QUERY not in self.fields and _QUERY not in self.url:
      raise InputError(
        f"fields or url of a search service must hold {_QUERY}, got "
        f"{self.fields!r:.80}: say where the query stands."
      )
    if not self.key_header.isascii() or not self.key_header.strip():
      raise InputError(
        f"key_header must be the name of a header, got {self.key_header!r}: "
        "correct it."
      )

  def request(self, query: str, top_k: int) -> http_client.Request:
    """The request for a query."""
    url = self.url.replace(_QUERY, urllib.parse.quote(query, safe=""))
    fields = _filled(json.loads(self.fields), query, top_k)
    if self.method == "GET":
      params = {name: str(value) for name, value in fields.items()}
      return http_client.Request("GET", url, params)
    return http_client.Request(
      "POST",
      url,
      content=json.dumps(fields, ensure_ascii=False).encode(),
      headers={"content-type": "application/json"},
    )

  def results(self, content: bytes, top_k: int) -> list[dict[str, str]]:
    """Title, link and text of the first results of an answer.

    Raises:
      ValueError: the answer has another form; says which.
    """
    answer = parsed(content)
    items = _at(answer, self.items)
    if items is None and self.omits_empty and isinstance(answer, dict):
      return []
    if not isinstance(items, list):
      raise ValueError(f"no list at {self.items!r}")
    paths = {"title": self.title, "link": self.link, "text": self.text}
    found = []
    for item in items[:top_k]:
      if not isinstance(item, dict):
        raise ValueError(f"a result at {self.items!r} is no object")
      result = {name: _text(_at(item, p)) for name, p in paths.items() if p}
      if any(result.values()):
        found.append(result)
    if items and not found:
      raise ValueError(f"no result at {self.items!r} has {', '.join(paths)}")
    return found


SERPER = SearchApi(
  "https://google.serper.dev/search",
  items="organic",
  key="SERPER_API_KEY",
  key_header="X-API-KEY",
)
"""Google's results by Serper (serper.dev)."""


class WebSearch(WebTool):
  """Answers a query with the results of a search service.

  Attributes:
    name: "search".
    description: how to call it.
    example: a step that calls it.
  """

  name = "search"
  description = "<search> a query </search> searches the web for the query."
  example = (
    "<think> I need to know who designed the bridge. </think>"
    "<search> designer of the bridge </search>"
    "<result> … </result>"
  )
  kind = "search"

  def __init__(
    self,
    api: SearchApi = SERPER,
    *,
    top_k: int = 5,
    limits: WebLimits | None = None,
    cache: CacheConfig | None = None,
  ):
    """Creates the tool.

    Args:
      api: the service.
      top_k: results a search returns, >= 1.
      limits: how much it is asked.
      cache: keeps its results.

    Raises:
      InputError: the key is not in the environment, `top_k` is below 1, or the
        cache is not there or none.
    """
    if top_k < 1:
      raise InputError(f"top_k must be at least 1, got {top_k}: raise it.")
    cache = cache or CacheConfig()
    secret = None
    if cache.mode != "replay":
      secret = key_of(api.key, "a search service")
    super().__init__(
      WebService("search service", limits or WebLimits(), cache, secret=secret)
    )
    self._api = api
    self._top_k = top_k
    self._http: httpx2.Client | None = None
    if cache.mode != "replay":
      headers = {}
      if secret is not None:
        headers[api.key_header] = f"{api.key_prefix}{secret}"
      self._http = httpx2.Client(headers=headers, trust_env=_is_far(api.url))

  def call(self, argument: str) -> ToolResult:
    """Searches for one query."""
    query = plain_query(argument)
    if not query:
      return ToolResult("The search query is empty.", ToolStatus.ERROR)
    if len(query) > MAX_QUERY_CHARS:
      return ToolResult(
        f"The search query has more than {MAX_QUERY_CHARS} characters.",
        ToolStatus.ERROR,
      )
    key = Key(self.kind, self._api.url, query, self._top_k)
    try:
      found = self._service.answer(
        key,
        lambda deadline: self._ask(query, deadline),
        Key(IMPORTED, "", query),
      )
    except NoResult as error:
      return error.result
    # What was imported is a text already.
    if isinstance(found, str):
      return ToolResult(found or NO_DOCUMENT, ToolStatus.OK)
    texts = [_shown(result) for result in found]
    return ToolResult(documents_text(texts, self._top_k), ToolStatus.OK)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Searches for queries, in order."""
    return [self.call(argument) for argument in arguments]

  def close(self) -> None:
    """Closes connections and the cache."""
    if self._http is not None:
      self._http.close()
    super().close()

  def _ask(self, query: str, deadline: float) -> list[dict[str, str]]:
    assert self._http is not None
    request = self._api.request(query, self._top_k)
    answer = self._service.fetch(self._http, request, deadline)
    try:
      return self._api.results(answer.content, self._top_k)
    except ValueError as error:
      raise self._service.failed(
        "gave no results that can be read", str(error)
      ) from error


def _is_far(url: str) -> bool:
  """Whether a proxy of the environment may be on the way to an address."""
  host = urllib.parse.urlsplit(url).hostname or ""
  return host not in ("localhost", "127.0.0.1", "::1")


def _filled(value: Any, query: str, top_k: int) -> Any:
  """A template with a query and a number in it."""
  if isinstance(value, Mapping):
    return {name: _filled(one, query, top_k) for name, one in value.items()}
  if isinstance(value, list):
    return [_filled(one, query, top_k) for one in value]
  if value == _TOP_K:
    return top_k
  return value.replace(_QUERY, query) if isinstance(value, str) else value


def _at(value: Any, path: str) -> Any:
  """What stands at a dotted path; None if nothing does."""
  for part in path.split(".") if path else ():
    if isinstance(value, Mapping):
      value = value.get(part)
    elif isinstance(value, list) and part.isdecimal():
      value = value[int(part)] if int(part) < len(value) else None
    else:
      return None
  return value


def _text(value: Any) -> str:
  """A text of one line, of a text or a list of texts."""
  if isinstance(value, list):
    return " ".join(filter(None, map(_text, value)))
  return " ".join(plain(value).split()) if isinstance(value, str) else ""


def _shown(result: Mapping[str, str]) -> str:
  """A result as an agent reads it: title and link, then the snippet."""
  title, link = result.get("title", ""), result.get("link", "")
  head = f"{title} ({link})" if title and link else title or link
  return "\n".join(filter(None, (head, result.get("text", ""))))
