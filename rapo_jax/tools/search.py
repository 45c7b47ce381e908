"""Search over documents, which a retriever finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from rapo_jax.errors import InputError
from rapo_jax.tools.base import ToolResult, ToolStatus

NO_DOCUMENT = "No document was found."


@runtime_checkable
class Retriever(Protocol):
  """Finds documents for queries, e.g. by an encoder and an index."""

  def search(
    self, queries: Sequence[str], num_documents: int, /
  ) -> Int[np.ndarray, "Q k"]:
    """Numbers of the best documents, best first; -1 for no further one."""


class SearchTool:
  """Answers a query with its nearest documents.

  Attributes:
    name: "search".
    description: how to call it.
    example: a step that calls it.
  """

  name = "search"
  description = "<search> a query </search> finds documents about the query."
  example = (
    "<think> I need to know who designed the bridge. </think>"
    "<search> designer of the bridge </search>"
    "<result> … </result>"
  )
  batched = True
  idempotent = True

  def __init__(
    self,
    documents: Sequence[str],
    retriever: Retriever,
    top_k: int = 3,
  ):
    """Creates the tool.

    Args:
      documents: texts; document `i` is what the retriever calls `i`.
      retriever: finds them.
      top_k: documents a search returns, >= 1. One document is returned as it
        is, several as "Doc 1: …" lines.

    Raises:
      InputError: for no documents or a `top_k` below 1.
    """
    if not documents:
      raise InputError("SearchTool needs at least one document, got none")
    if top_k < 1:
      raise InputError(f"top_k must be >= 1, got {top_k}")
    self._documents = documents
    self._retriever = retriever
    self._top_k = top_k

  def call(self, argument: str) -> ToolResult:
    """Searches for one query."""
    return self.call_batch([argument])[0]

  def call_batch(self, arguments: Sequence[str]) -> list[ToolResult]:
    """Searches for all queries at once."""
    queries = [
      a.encode("utf-8", errors="replace").decode().replace("\0", " ").strip()
      for a in arguments
    ]
    asked = [i for i, query in enumerate(queries) if query]
    empty = ToolResult("The search query is empty.", ToolStatus.ERROR)
    results = [empty] * len(queries)
    if asked:
      ids = self._retriever.search([queries[i] for i in asked], self._top_k)
      for i, row in zip(asked, ids.tolist(), strict=True):
        results[i] = ToolResult(self._format(row), ToolStatus.OK)
    return results

  def _format(self, ids: Sequence[int]) -> str:
    texts = [self._document(i) for i in ids if i >= 0]
    return documents_text(texts, self._top_k)

  def _document(self, number: int) -> str:
    if number >= len(self._documents):
      raise InputError(
        f"the retriever returned document {number}, but there are "
        f"{len(self._documents)}; build its index from this corpus"
      )
    return self._documents[number].strip()


def documents_text(texts: Sequence[str], top_k: int) -> str:
  """What an agent reads of the documents that a search has found.

  Args:
    texts: of the documents, best first.
    top_k: documents that were wanted. One is returned as it is, several as
      "Doc 1: …" lines.
  """
  if not texts:
    return NO_DOCUMENT
  if top_k == 1:
    return texts[0]
  return "\n".join(f"Doc {n}: {text}" for n, text in enumerate(texts, 1))
