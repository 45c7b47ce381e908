from __future__ import annotations

import types

import numpy as np
import pytest

from rapo_jax import tools


class FakeEncoder:
  def __init__(self):
    self.batches: list[list[str]] = []

  def encode_queries(self, texts: list[str]) -> np.ndarray:
    self.batches.append(texts)
    return np.ones((len(texts), 2), np.float32)


class FakeIndex:
  def __init__(self, ids: list[int]):
    self._ids = ids
    self.asked: list[tuple[int, int]] = []

  def search(self, queries: np.ndarray, num_neighbors: int):
    self.asked.append((len(queries), num_neighbors))
    ids = np.array([self._ids[:num_neighbors]] * len(queries))
    return types.SimpleNamespace(ids=ids, scores=np.zeros(ids.shape))


DOCUMENTS = ["zero", " one \n", "two\nlines"]


def make(ids: list[int], top_k: int) -> tools.SearchTool:
  return tools.SearchTool(DOCUMENTS, FakeEncoder(), FakeIndex(ids), top_k)


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


def test_a_batch_is_one_embedding_and_one_search():
  encoder, index = FakeEncoder(), FakeIndex([0])
  tool = tools.SearchTool(DOCUMENTS, encoder, index, 1)
  results = tool.call_batch([" a ", "", "b\0c", " "])
  assert [r.status for r in results] == ["ok", "error", "ok", "error"]
  assert encoder.batches == [["a", "b c"]]
  assert index.asked == [(2, 1)]
  tool.call_batch(["", " "])
  assert len(index.asked) == 1


def test_an_index_over_another_corpus_is_an_error():
  with pytest.raises(ValueError, match="id 3, but there are 3 documents"):
    make([3], 1).call("query")


def test_what_it_needs():
  with pytest.raises(ValueError, match="at least one document"):
    tools.SearchTool([], FakeEncoder(), FakeIndex([0]))
  with pytest.raises(ValueError, match="top_k"):
    make([0], 0)
