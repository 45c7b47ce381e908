"""Search whose documents a model reads first, and hands on what helps."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rapo_jax.chat_endpoint import open_client, without_thoughts
from rapo_jax.tools.base import Tool, ToolResult, ToolStatus

_NOTHING = "No helpful information was found."
_PROMPT = """Somebody searches for the following while answering a question.

Search: {query}

Documents that were found:
{documents}

Write the facts in these documents that help with the search, in a few plain
sentences. Add nothing that is not in them. If nothing helps, write:
{nothing}"""


@runtime_checkable
class Reader(Protocol):
  """A model that answers a prompt."""

  def reply(self, prompt: str) -> tuple[str, int]:
    """Its answer, and how many tokens it generated."""


class EndpointReader:
  """A model behind an OpenAI-compatible endpoint.

  Args:
    url: of the endpoint, up to `/v1`.
    model: its name there.
    temperature: of sampling.
    top_p: share of the probability that is sampled from.
    max_tokens: most tokens of an answer.
    timeout_s: of a request, in seconds.

  Raises:
    InputError: the package openai is not installed.
  """

  def __init__(
    self,
    url: str,
    model: str,
    *,
    temperature: float = 0.7,
    top_p: float = 0.8,
    max_tokens: int = 1024,
    timeout_s: float = 60.0,
  ):
    self._settings: dict[str, Any] = {
      "model": model,
      "temperature": temperature,
      "top_p": top_p,
      "max_tokens": max_tokens,
    }
    # The rollout makes a failed call again.
    self._client = open_client(
      url, "an endpoint", timeout_s=timeout_s, max_retries=0
    )

  def reply(self, prompt: str) -> tuple[str, int]:
    """See `Reader`; errors of the endpoint fail the call of the tool."""
    message: Any = {"role": "user", "content": prompt}
    found: Any = self._client.chat.completions.create(
      messages=[message], **self._settings
    )
    usage = getattr(found, "usage", None)
    tokens = int(getattr(usage, "completion_tokens", 0) or 0)
    return found.choices[0].message.content or "", tokens

  def close(self) -> None:
    """Closes its connections."""
    self._client.close()


class CondensedSearchTool:
  """Search-o1's "reason in documents" (Li et al., 2025, arXiv 2501.05366).

  A model reads what a search has found and writes only what helps; that is the
  result. The paper gives it the reasoning before the search too, which a tool
  does not see. A call whose search fails is handed on as it is.

  Attributes:
    name: that of the search.
    description: that of the search.
    example: that of the search.
  """

  batched = False
  idempotent = True

  def __init__(self, search: Tool, reader: Reader, max_characters: int):
    """Creates the tool.

    Args:
      search: finds documents.
      reader: reads them.
      max_characters: of the documents of a search that the reader gets.
    """
    self.name = search.name
    self.description = search.description
    self.example = search.example
    self._search = search
    self._reader = reader
    self._max_characters = max_characters
    self._lock = threading.Lock()
    self._tokens = 0

  def call(self, argument: str) -> ToolResult:
    """Searches, and lets the reader condense what was found."""
    found = self._search.call(argument)
    if found.status is not ToolStatus.OK:
      return found
    prompt = _PROMPT.format(
      query=argument.strip(),
      documents=found.text[: self._max_characters],
      nothing=_NOTHING,
    )
    text, tokens = self._reader.reply(prompt)
    with self._lock:
      self._tokens += tokens
    helpful = without_thoughts(text).strip()
    return ToolResult(helpful or _NOTHING, ToolStatus.OK)

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Calls one after the other."""
    return [self.call(argument) for argument in arguments]

  def numbers(self) -> Mapping[str, float]:
    """Tokens that the reader has generated."""
    with self._lock:
      return {"reader_tokens": self._tokens}
