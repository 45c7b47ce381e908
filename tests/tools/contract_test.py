"""What every tool keeps to, whatever the argument."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rapo_jax import tools


class NearestLength:
  """Finds the documents whose lengths are nearest to the query's."""

  def search(self, queries: list[str], num_documents: int) -> np.ndarray:
    for query in queries:
      query.encode("utf-8")
    lengths = np.array([len(document) for document in DOCUMENTS])
    asked = np.array([len(query) for query in queries], np.int64)
    distances = np.abs(asked[:, None] - lengths)
    ids = np.argsort(distances, axis=1, kind="stable")[:, :num_documents]
    missing = max(0, num_documents - ids.shape[1])
    return np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)


DOCUMENTS = ["one", "three 3", "a longer text", "the longest text of them all"]


def make_search(top_k: int = 2) -> tools.SearchTool:
  return tools.SearchTool(DOCUMENTS, NearestLength(), top_k)


@pytest.fixture(scope="module")
def all_tools() -> Iterator[dict[str, tools.Tool]]:
  with tools.PythonTool(num_workers=2, timeout_s=20) as python:
    yield {
      "python": python,
      "search": make_search(),
      "open": tools.OpenTool({"p1": "Page one. <answer>1</answer>"}),
    }


VALID = {"python": "print(1)", "search": "three", "open": " p1 "}
ARGUMENTS = [
  *("", " \n\t ", "x" * 1_000_000, "a\0b", "\0", "\ud800 surrogate"),
  *("東京 🙂 \u200b", "<search> x </search>", "</python>", "<|im_end|>"),
  *("(" * 50_000, "'''", "\\", "%s %d {0}", "\r\n", "-" * 100_000 + "1"),
]


@pytest.mark.parametrize("name", sorted(VALID))
def test_it_is_a_tool(all_tools, name: str):
  assert isinstance(all_tools[name], tools.Tool)
  assert all_tools[name].name == name
  result = all_tools[name].call(VALID[name])
  assert result.status is tools.ToolStatus.OK
  assert result.text


@pytest.mark.parametrize("name", sorted(VALID))
@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda a: repr(a[:12]))
def test_any_argument_gives_a_result(all_tools, name: str, argument: str):
  result = all_tools[name].call(argument)
  assert result.status in tools.ToolStatus
  assert len(result.text) < 100_000
  result.text.encode("utf-8")
  if not argument.strip():
    assert result.status is tools.ToolStatus.ERROR
    assert "empty" in result.text


@pytest.mark.parametrize("name", sorted(VALID))
def test_a_batch_is_its_calls_in_order(all_tools, name: str):
  tool = all_tools[name]
  arguments = ["", VALID[name], "東京", VALID[name]]
  assert tool.call_batch(arguments) == [tool.call(a) for a in arguments]
  assert tool.call_batch([]) == []


@pytest.mark.parametrize("name", sorted(VALID))
def test_many_threads_may_call(all_tools, name: str):
  tool = all_tools[name]
  expected = tool.call(VALID[name])
  with ThreadPoolExecutor(8) as pool:
    assert set(pool.map(tool.call, [VALID[name]] * 32)) == {expected}
