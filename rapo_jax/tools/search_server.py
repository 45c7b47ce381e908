"""Searches a corpus that a retrieval server of Search-R1 holds.

Its protocol (github.com/PeterGriffinJin/Search-R1, `retrieval_server.py`):
`POST /retrieve` with `queries`, `topk` and `return_scores`, and for each query
documents with scores come back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx2

from rapo_jax import http_client, web_address
from rapo_jax.errors import InputError
from rapo_jax.tools.base import ToolResult, ToolStatus
from rapo_jax.tools.search import SearchTool, documents_text
from rapo_jax.tools.web_cache import CacheConfig, Key, plain_query
from rapo_jax.tools.web_search import MAX_QUERY_CHARS
from rapo_jax.tools.web_service import (
  NoResult,
  WebLimits,
  WebService,
  WebTool,
  key_of,
  parsed,
  plain,
)

PATH = "/retrieve"
_QUERIES_A_REQUEST = 64


class SearchServer(WebTool):
  """Answers queries with the documents that a server finds.

  Attributes:
    name: "search".
    description: how to call it.
    example: a step that calls it.
  """

  name = SearchTool.name
  description = SearchTool.description
  example = SearchTool.example
  kind = "search_server"
  batched = True

  def __init__(
    self,
    url: str,
    *,
    top_k: int = 3,
    token: str | None = None,
    limits: WebLimits | None = None,
    cache: CacheConfig | None = None,
  ):
    """Creates the tool.

    Args:
      url: of the server, with or without `/retrieve`. It holds no password.
      top_k: documents a search returns, >= 1.
      token: variable of the environment with a bearer token; None for none.
      limits: how much it is asked; many queries are one request.
      cache: keeps its documents.

    Raises:
      InputError: for an invalid address, a value out of range, a token that is
        not in the environment, or a cache that is not there.
    """
    web_address.check_address(
      url, "a search server", "Name the variable of a bearer token in `token`."
    )
    if top_k < 1:
      raise InputError(f"top_k must be at least 1, got {top_k}: raise it.")
    cache = cache or CacheConfig()
    is_asked = cache.mode != "replay"
    secret = key_of(token, "a search server") if is_asked else None
    super().__init__(
      WebService("search server", limits or WebLimits(), cache, secret=secret)
    )
    self._url = f"{url.rstrip('/').removesuffix(PATH)}{PATH}"
    self._top_k = top_k
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    # Proxies of the environment are for the world outside the cluster.
    self._http = (
      httpx2.Client(headers=headers, trust_env=False) if is_asked else None
    )

  def call(self, argument: str) -> ToolResult:
    """Searches for one query."""
    return self.call_batch([argument])[0]

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Searches for all queries that the cache does not hold by one request."""
    queries = [plain_query(argument) for argument in arguments]
    found: dict[str, ToolResult] = {
      "": ToolResult("The search query is empty.", ToolStatus.ERROR)
    }
    for query in dict.fromkeys(filter(None, queries)):
      if len(query) > MAX_QUERY_CHARS:
        found[query] = ToolResult(
          f"The search query has more than {MAX_QUERY_CHARS} characters.",
          ToolStatus.ERROR,
        )
      elif (texts := self._service.kept(self._key(query))) is not None:
        found[query] = self._result(texts)
    asked = [q for q in dict.fromkeys(queries) if q not in found]
    for first in range(0, len(asked), _QUERIES_A_REQUEST):
      found |= self._asked(asked[first : first + _QUERIES_A_REQUEST])
    return [found[query] for query in queries]

  def close(self) -> None:
    """Closes connections and the cache."""
    if self._http is not None:
      self._http.close()
    super().close()

  def _key(self, query: str) -> Key:
    return Key(self.kind, self._url, query, self._top_k)

  def _result(self, texts: Sequence[str]) -> ToolResult:
    return ToolResult(documents_text(texts, self._top_k), ToolStatus.OK)

  def _asked(self, queries: Sequence[str]) -> dict[str, ToolResult]:
    try:
      documents = self._service.ask(
        lambda deadline: self._documents(queries, deadline)
      )
    except NoResult as error:
      return dict.fromkeys(queries, error.result)
    found = {}
    for query, texts in zip(queries, documents, strict=True):
      self._service.keep(self._key(query), texts)
      found[query] = self._result(texts)
    return found

  def _documents(
    self, queries: Sequence[str], deadline: float
  ) -> list[list[str]]:
    assert self._http is not None
    fields = {
      "queries": list(queries),
      "topk": self._top_k,
      "return_scores": True,
    }
    request = http_client.Request(
      "POST",
      self._url,
      content=json.dumps(fields, ensure_ascii=False).encode(),
      headers={"content-type": "application/json"},
    )
    answer = self._service.fetch(self._http, request, deadline)
    try:
      return _texts(answer.content, len(queries), self._top_k)
    except ValueError as error:
      raise self._service.failed(
        "gave no documents that can be read", str(error)
      ) from error


def _texts(content: bytes, num_queries: int, top_k: int) -> list[list[str]]:
  """Texts of the documents of each query, best first.

  Raises:
    ValueError: the answer has another form; says which.
  """
  answer = parsed(content)
  rows = answer.get("result") if isinstance(answer, dict) else None
  if not isinstance(rows, list) or len(rows) != num_queries:
    raise ValueError(f"`result` is no list of {num_queries}")
  return [[_text(item) for item in _list(row)[:top_k]] for row in rows]


def _list(row: Any) -> list[Any]:
  if not isinstance(row, list):
    raise ValueError("a query's results are no list")
  return row


def _text(item: Any) -> str:
  """The text of a document, with its score or without."""
  match item:
    case {"document": {"contents": str() as text}}:
      return plain(text).strip()
    case {"document": str() as text} | {"contents": str() as text}:
      return plain(text).strip()
  raise ValueError("a document has no text `contents`")
