"""Opens a page of the web: an address in, its main text out."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import pathlib
import re
import time
import urllib.parse
from collections.abc import Sequence

import httpx2

from rapo_jax import extras, http_client
from rapo_jax.errors import InputError
from rapo_jax.server_process import (
  ServerLateError,
  ServerPool,
  ServersBusyError,
)
from rapo_jax.tools.base import ToolResult, ToolStatus, shorten
from rapo_jax.tools.web_cache import CacheConfig, Key, plain_url
from rapo_jax.tools.web_fetch import PublicTransport
from rapo_jax.tools.web_service import (
  BUSY,
  NoResult,
  WebLimits,
  WebService,
  WebTool,
  plain,
)

MAX_URL_CHARS = 2000
MAX_TEXT_CHARS = 2**20
"""Of a page's text, characters that are kept."""
_SERVER = pathlib.Path(__file__).with_name("page_server.py")
_MAX_PROCESSES = 4
_MAX_REDIRECTS = 5
# A page that takes longer to read is hostile, or too large.
_READ_S = 10.0
_MOVED = (301, 302, 303, 307, 308)
_HTML = ("text/html", "application/xhtml+xml")
_TEXT = ("application/json", "application/xml", "application/javascript")
_USER_AGENT = "Mozilla/5.0 (compatible; rapo_jax)"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?!\d)")
_START_BYTES = 1024


class WebPage(WebTool):
  """Answers an address with the main text of the page there.

  Attributes:
    name: "open".
    description: how to call it.
    example: a step that calls it.
  """

  name = "open"
  description = "<open> a URL </open> shows the text of the web page there."
  example = (
    "<think> The second result should say when. </think>"
    "<open> https://example.com/bridge </open>"
    "<result> … </result>"
  )

  def __init__(
    self,
    *,
    links: bool = False,
    allow_private: bool = False,
    limits: WebLimits | None = None,
    cache: CacheConfig | None = None,
  ):
    """Creates the tool.

    Args:
      links: whether the text shows where its links lead.
      allow_private: whether loopback and private addresses may be opened. An
        agent could then reach every service that this machine can.
      limits: how much is fetched. Of a larger page the first bytes are read.
      cache: keeps the texts.

    Raises:
      InputError: trafilatura is not installed, or the cache is not there or
        none.
    """
    cache = cache or CacheConfig()
    if cache.mode != "replay":
      check_installed()
    # One site that is down says nothing of the others.
    super().__init__(
      WebService("page", limits or WebLimits(), cache, guarded=False)
    )
    self._links = links
    self._kind = "open with links" if links else "open"
    self._pool: ServerPool | None = None
    if cache.mode != "replay":
      size = min(_MAX_PROCESSES, len(os.sched_getaffinity(0)))
      self._pool = ServerPool(_SERVER, size)
      self._transport = PublicTransport(allow_private=allow_private)

  def call(self, argument: str) -> ToolResult:
    """Opens one page; an address without a scheme is one of https."""
    try:
      url = _address(argument)
      text = self._service.answer(
        Key(self._kind, "", url), lambda deadline: self._text(url, deadline)
      )
    except NoResult as error:
      return error.result
    return ToolResult(text, ToolStatus.OK)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Opens pages, in order."""
    return [self.call(argument) for argument in arguments]

  def close(self) -> None:
    """Ends the processes that read pages, and closes the cache."""
    if self._pool is not None:
      self._pool.close()
    super().close()

  def _text(self, url: str, deadline: float) -> str:
    answer = self._page(url, deadline)
    kind, charset = _content_type(answer)
    is_html = kind in _HTML
    if not is_html and not kind.startswith("text/") and kind not in _TEXT:
      raise _error(f"The page is no text but {shorten(kind)!r}.")
    question = {
      "content": base64.b64encode(answer.content).decode(),
      "charset": charset,
      "html": is_html,
      "links": self._links,
    }
    assert self._pool is not None
    left_s = max(deadline - time.monotonic(), 0.1)
    try:
      reply = self._pool.ask(
        json.dumps(question).encode(), min(left_s, _READ_S), wait_s=left_s
      )
    except ServersBusyError as error:
      raise self._service.late() from error
    except ServerLateError as error:
      raise _error("The page cannot be read.") from error
    found = json.loads(reply)
    if found is None:
      raise _error("The page cannot be read.")
    title, text = plain(found["title"]), plain(found["text"])
    if not text:
      raise _error("The page has no text.")
    if title and not text.startswith(title):
      text = f"{title}\n\n{text}"
    return text[:MAX_TEXT_CHARS]

  def _page(self, url: str, deadline: float) -> http_client.Answer:
    """The page that an address leads to.

    Raises:
      NoResult: there is none.
    """
    for _ in range(_MAX_REDIRECTS + 1):
      answer = self._answer(url, deadline)
      if answer.is_success:
        return answer
      where = answer.headers.get("location", "")
      if answer.status not in _MOVED or not where:
        # The site is at fault, or too busy.
        is_down = answer.status in BUSY
        text = f"The page answered with status {answer.status}."
        raise NoResult(text, ToolStatus.FAILED) if is_down else _error(text)
      url = _address(urllib.parse.urljoin(url, where))
    raise _error(f"The page redirects more than {_MAX_REDIRECTS} times.")

  def _answer(self, url: str, deadline: float) -> http_client.Answer:
    limits = self._service.limits
    # A client of its own: a site's cookies are not for the next agent.
    client = httpx2.Client(
      transport=self._transport,
      headers={"user-agent": _USER_AGENT},
      trust_env=False,
    )
    try:
      with client:
        return http_client.ask(
          client,
          http_client.Request("GET", url),
          deadline=deadline,
          max_bytes=limits.max_bytes,
          retries=http_client.Retries(
            limits.max_retries, first_pause_s=0.5, statuses=BUSY
          ),
          before=lambda: self._service.spend(deadline),
          cut=True,
        )
    except http_client.NoAnswer as error:
      if error.late:
        raise self._service.late() from error
      raise self._service.failed("did not answer", str(error)) from error


def check_installed() -> None:
  """Checks that pages can be read.

  Raises:
    InputError: trafilatura is not installed.
  """
  if not importlib.util.find_spec("trafilatura"):
    raise InputError(
      "the text of web pages is found by trafilatura, which is not "
      f"installed: {extras.install_command('search')}."
    )


def _error(text: str) -> NoResult:
  return NoResult(text, ToolStatus.ERROR)


def _address(argument: str) -> str:
  """The address that an agent wrote, or a page redirects to.

  Raises:
    NoResult: it is no address of the web.
  """
  text = plain_url(argument.strip().strip("<>\"'`"))
  if not text:
    raise _error("The URL is empty.")
  if len(text) > MAX_URL_CHARS:
    raise _error(f"The URL has more than {MAX_URL_CHARS} characters.")
  if not _SCHEME.match(text):
    text = f"https://{text.removeprefix('//')}"
  try:
    url = httpx2.URL(text)
    is_plain = not url.userinfo and bool(url.host)
    if url.port is not None and not 0 < url.port < 2**16:
      raise ValueError("no such port")
  except (httpx2.InvalidURL, ValueError, TypeError) as error:
    raise _error(f"{shorten(text)!r} is no URL.") from error
  if url.scheme not in ("http", "https") or not is_plain:
    raise _error(
      f"{shorten(text)!r} must be a URL of http or https with a host and "
      "without a password."
    )
  return str(url)


def _content_type(answer: http_client.Answer) -> tuple[str, str]:
  """Type and charset of a page, by what the server says and how it begins."""
  kind, _, rest = answer.headers.get("content-type", "").partition(";")
  kind = kind.strip().lower()
  charset = rest.lower().partition("charset=")[2].strip(" \"'").split(";")[0]
  start = answer.content[:_START_BYTES]
  if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff")):
    return "binary data", ""
  if start.startswith(b"%PDF-"):
    return "application/pdf", ""
  if not kind:
    kind = "text/html" if start.lstrip().startswith(b"<") else "text/plain"
  return kind, charset
