"""The client of a Search-R1 server, against one on this machine."""

from __future__ import annotations

import pytest

from rapo_jax import tools
from rapo_jax.errors import InputError
from rapo_jax.tools import CacheConfig, WebLimits
from rapo_jax.tools.search_server import SearchServer
from tests.tools.web_server import Asked, Reply, reply, scripted, serving

QUICK = WebLimits(timeout_s=5, max_retries=0)


def found(asked: Asked) -> Reply:
  """Two documents for each query, as the server of Search-R1 has them."""
  assert asked.path == "/retrieve"
  assert asked.fields["return_scores"] is True
  rows = [
    [
      {"document": {"id": str(n), "contents": f'"{query}"\n{n}'}, "score": 0.5}
      for n in range(asked.fields["topk"])
    ]
    for query in asked.fields["queries"]
  ]
  return reply({"result": rows})


def test_a_batch_is_one_request():
  with serving(found) as server:
    tool = SearchServer(f"{server.url}/retrieve", top_k=2, limits=QUICK)
    assert isinstance(tool, tools.Tool)
    results = tool.call_batch([" b ", "", "a", "b"])
    tool.close()
  assert [r.text for r in results] == [
    'Doc 1: "b"\n0\nDoc 2: "b"\n1',
    "The search query is empty.",
    'Doc 1: "a"\n0\nDoc 2: "a"\n1',
    'Doc 1: "b"\n0\nDoc 2: "b"\n1',
  ]
  assert [r.status for r in results] == ["ok", "error", "ok", "ok"]
  (asked,) = server.asked
  assert asked.fields["queries"] == ["b", "a"]
  assert tool.numbers()["calls"] == 1


def test_documents_as_texts():
  rows = {"result": [["no"]]}
  texts = {"result": [[{"document": " text "}, {"contents": "more"}]]}
  with serving(scripted(reply(texts), reply(rows))) as server:
    tool = SearchServer(server.url, limits=QUICK)
    assert tool.call("x").text == "Doc 1: text\nDoc 2: more"
    assert tool.call("y").status == "failed"
    tool.close()


@pytest.mark.parametrize(
  "given",
  [
    reply({"result": []}),
    reply({"result": [[], []]}),
    reply({"result": [{}]}),
    reply({"result": [[{"document": {"text": "x"}}]]}),
    reply([]),
    Reply(b"<html>"),
    Reply(b"", 404),
  ],
)
def test_answers_that_are_none_fail(given):
  with serving(scripted(given)) as server:
    tool = SearchServer(server.url, limits=QUICK)
    assert tool.call("x").status == "failed"
    tool.close()
  assert tool.numbers()["errors"] == 1


def test_its_documents_are_replayed(tmp_path):
  path = str(tmp_path / "web.sqlite")
  with serving(found) as server:
    recording = SearchServer(server.url, cache=CacheConfig(path, "record"))
    known = recording.call_batch(["a", "b"])
    assert recording.call("a") == known[0]
    recording.close()
  replaying = SearchServer(server.url, cache=CacheConfig(path, "replay"))
  assert replaying.call_batch(["b", "a"]) == known[::-1]
  assert [r.status for r in replaying.call_batch(["c", "a"])] == [
    "refused",
    "ok",
  ]
  replaying.close()
  assert len(server.asked) == 1
  assert recording.numbers()["cache_hits"] == 1


def test_a_token_of_the_environment(monkeypatch):
  monkeypatch.setenv("TOKEN", "canary")
  with serving(found) as server:
    tool = SearchServer(server.url, token="TOKEN", limits=QUICK)
    assert tool.call("x").status == "ok"
    tool.close()
  assert server.asked[0].headers["authorization"] == "Bearer canary"
  monkeypatch.delenv("TOKEN")
  with pytest.raises(InputError, match="export TOKEN="):
    SearchServer(server.url, token="TOKEN")


@pytest.mark.parametrize(
  "arguments", [{"url": "x"}, {"url": "http://x", "top_k": 0}]
)
def test_what_is_refused(arguments):
  with pytest.raises(InputError):
    SearchServer(**arguments)
