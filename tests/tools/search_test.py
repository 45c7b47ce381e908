from __future__ import annotations

import numpy as np
import pytest

from rapo_jax import tools


class FakeRetriever:
  def __init__(self, ids: list[int]):
    self._ids = ids
    self.asked: list[tuple[list[str], int]] = []

  def search(self, queries: list[str], num_documents: int) -> np.ndarray:
    self.asked.append((queries, num_documents))
    return np.array([self._ids[:num_documents]] * len(queries))


DOCUMENTS = ["zero", " one \n", "two\nlines"]


def make(ids: list[int], top_k: int) -> tools.SearchTool:
  return tools.SearchTool(DOCUMENTS, FakeRetriever(ids), top_k)


@pytest.mark.parametrize(
  ("ids", "top_k", "text"),
  [
    ([1, 0], 1, "one"),
    ([2, 1], 2, "Doc 1: two\nlines\nDoc 2: one"),
    ([2, -1, -1], 3, "Doc 1: two\nlines"),
    ([-1], 1, "No document was found."),
  ],
)
def test_format(ids: list[int], top_k: int, text: str):
  result = make(ids, top_k).call("query")
  assert result == tools.ToolResult(text, tools.ToolStatus.OK)


def test_a_batch_is_one_search():
  retriever = FakeRetriever([0])
  tool = tools.SearchTool(DOCUMENTS, retriever, 1)
  results = tool.call_batch([" a ", "", "b\0c", " "])
  assert [r.status for r in results] == ["ok", "error", "ok", "error"]
  assert retriever.asked == [(["a", "b c"], 1)]
  tool.call_batch(["", " "])
  assert len(retriever.asked) == 1


def test_a_retriever_over_another_corpus_is_an_error():
  with pytest.raises(ValueError, match="document 3, but there are 3"):
    make([3], 1).call("query")


def test_what_it_needs():
  with pytest.raises(ValueError, match="at least one document"):
    tools.SearchTool([], FakeRetriever([0]))
  with pytest.raises(ValueError, match="top_k"):
    make([0], 0)
