"""Search of the web, against a server on this machine."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax import tools
from rapo_jax.errors import InputError
from rapo_jax.tools import CacheConfig, SearchApi, WebLimits
from rapo_jax.tools import web_service as service_lib
from rapo_jax.tools.web_search import SERPER, WebSearch
from tests.tools.contract_test import ARGUMENTS
from tests.tools.web_server import Reply, Served, reply, scripted, serving

KEY = "canary-key-3141"
TWO = {
  "searchParameters": {"q": "x"},
  "organic": [
    {"title": "A bridge", "link": "https://a.example/b", "snippet": "By Ann."},
    {"title": "No\nsnippet", "link": "https://c.example", "position": 2},
    {"title": "Third", "link": "https://d.example", "snippet": "s"},
  ],
}
QUICK = WebLimits(timeout_s=5, max_retries=0)


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("SERPER_API_KEY", KEY)


def opened(server: Served, limits=QUICK, **options) -> WebSearch:
  api = dataclasses.replace(SERPER, url=f"{server.url}/search")
  return WebSearch(api, top_k=2, limits=limits, **options)


def asking(*replies: Reply):
  return serving(scripted(*replies))


def test_it_is_a_tool():
  with asking(reply(TWO)) as server:
    tool = opened(server)
    assert isinstance(tool, tools.Tool)
    assert tools.check_tools({"search": tool}).tool_names == ("search",)
    policy = tools.call_policy(tool)
    assert (policy.retries, policy.max_concurrency) == (0, 16)
    assert policy.timeout_s == 10
    tool.close()


def test_it_asks_serper_and_shows_titles_links_and_snippets():
  with asking(reply(TWO)) as server:
    tool = opened(server)
    result = tool.call("  who built\nthe   bridge ")
    tool.close()
  assert result == tools.ToolResult(
    "Doc 1: A bridge (https://a.example/b)\nBy Ann.\n"
    "Doc 2: No snippet (https://c.example)",
    tools.ToolStatus.OK,
  )
  (asked,) = server.asked
  assert (asked.method, asked.path) == ("POST", "/search")
  assert asked.fields == {"q": "who built the bridge", "num": 2}
  assert asked.headers["x-api-key"] == KEY
  assert tool.numbers() == {
    "calls": 1,
    "cost": 0.0,
    "cache_hits": 0,
    "errors": 0,
  }


def test_another_api_with_its_own_paths():
  answer = {
    "web": {"results": [{"t": "T", "at": ["u"], "d": {"s": ["a", "b"]}}]}
  }
  with asking(reply(answer)) as server:
    api = SearchApi(
      f"{server.url}/{{query}}/find",
      fields='{"q": ["{query}"], "deep": {"n": "{top_k}"}, "safe": true}',
      method="POST",
      items="web.results",
      title="t",
      link="at.0",
      text="d.s",
      key="SERPER_API_KEY",
      key_prefix="Bearer ",
    )
    tool = WebSearch(api, top_k=1, limits=QUICK)
    result = tool.call("a/b?ü")
    tool.close()
  assert result.text == "T (u)\na b"
  (asked,) = server.asked
  assert asked.path == "/a%2Fb%3F%C3%BC/find"
  assert asked.fields == {"q": ["a/b?ü"], "deep": {"n": 1}, "safe": True}
  assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_an_api_that_is_asked_by_get():
  with asking(reply([{"title": "T", "snippet": "S"}])) as server:
    api = SearchApi(server.url, method="GET", items="", link="")
    tool = WebSearch(api, top_k=3, limits=QUICK)
    assert tool.call("a b&c").text == "Doc 1: T\nS"
    tool.close()
  assert server.asked[0].path == "/?q=a+b%26c&num=3"
  assert "authorization" not in server.asked[0].headers


@pytest.mark.parametrize(
  ("given", "status", "text"),
  [
    (reply({"organic": []}), "ok", "No document was found."),
    (reply({}), "failed", "The search service gave no results"),
    (reply({"organic": {"a": 1}}), "failed", "The search service gave no"),
    (reply({"organic": ["text"]}), "failed", "The search service gave no"),
    (reply({"organic": [{"other": 1}]}), "failed", "The search service gave"),
    (reply([1]), "failed", "The search service gave no results"),
    (Reply(b"<html>Sorry"), "failed", "The search service gave no results"),
    (Reply(b"\xff\xfe{}"), "failed", "The search service gave no results"),
    (Reply(b"[" * 3000), "failed", "The search service gave no results"),
    (Reply(b"x", 500), "failed", "The search service answered with status 500"),
    (Reply(b"x", 400), "failed", "The search service answered with status 400"),
    (
      Reply(b"", 302, (("Location", "/else"),)),
      "failed",
      "The search service answered with status 302",
    ),
    (
      Reply(b"no gzip", 200, (("Content-Encoding", "gzip"),)),
      "failed",
      "The search service did not answer",
    ),
    (Reply(b" " * 5000), "failed", "The search service did not answer"),
  ],
)
def test_answers(given, status, text):
  with asking(given) as server:
    tool = opened(server, dataclasses.replace(QUICK, max_bytes=4000))
    result = tool.call("x")
    tool.close()
  assert result.status == status
  assert result.text.startswith(text)
  assert tool.numbers()["errors"] == (status == "failed")
  assert len(server.asked) == 1


def test_an_answer_that_leaves_out_an_empty_list():
  with asking(reply({"query": "x"})) as server:
    api = SearchApi(server.url, items="web.results", omits_empty=True)
    tool = WebSearch(api, limits=QUICK)
    assert tool.call("x").text == "No document was found."
    tool.close()


def test_a_busy_service_is_asked_again_when_it_says():
  busy = Reply(b"", 429, (("Retry-After", "1"),))
  with asking(busy, reply(TWO)) as server:
    tool = opened(server, WebLimits(timeout_s=5))
    began = time.monotonic()
    assert tool.call("x").status == "ok"
    assert time.monotonic() - began >= 1
    tool.close()
  assert tool.numbers()["calls"] == 2
  assert tool.numbers()["errors"] == 0


def test_it_does_not_wait_beyond_its_deadline():
  busy = Reply(b"", 429, (("Retry-After", "Fri, 31 Dec 2100 23:59:59 GMT"),))
  with asking(busy) as server:
    tool = opened(server, WebLimits(timeout_s=2))
    assert tool.call("x").text == (
      "The search service answered with status 429."
    )
    tool.close()
  assert len(server.asked) == 1


@pytest.mark.parametrize("slow", [{"delay_s": 1.0}, {"drip_s": 0.1}])
def test_a_slow_service(slow):
  given = Reply(b'{"organic": []}', **slow)
  with asking(given) as server:
    tool = opened(server, WebLimits(timeout_s=0.4, max_retries=0))
    result = tool.call("x")
    tool.close()
  assert result.status == "late"
  assert result.text == "The search service did not answer within 0.4 s."


def test_a_service_that_is_gone_is_left_alone(monkeypatch, caplog):
  monkeypatch.setattr(service_lib, "_FAILURES", 2)
  api = dataclasses.replace(SERPER, url="http://127.0.0.1:9/search")
  tool = WebSearch(api, limits=QUICK)
  with caplog.at_level(logging.WARNING):
    results = [tool.call(str(n)) for n in range(4)]
  tool.close()
  assert [r.status for r in results] == ["failed"] * 2 + ["refused"] * 2
  assert results[2].text.startswith("The search service is out of order")
  assert tool.numbers()["calls"] == 2
  # The first failure, and that it is left alone.
  assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_key_that_is_refused_ends_the_calls(status, caplog):
  with asking(reply({"message": f"bad {KEY}"}, status)) as server:
    tool = opened(server, WebLimits(timeout_s=5))
    with caplog.at_level(logging.DEBUG):
      first, second = tool.call("x"), tool.call("y")
    tool.close()
  assert first.status == "failed"
  assert second.status == "refused"
  assert f"refuses its key (status {status})" in second.text
  assert len(server.asked) == 1
  assert "Correct the key in the environment" in caplog.text
  assert KEY not in caplog.text + first.text + second.text


def test_a_key_that_is_missing_or_broken(monkeypatch):
  monkeypatch.setenv("SERPER_API_KEY", f"{KEY}\n")
  with pytest.raises(InputError, match="SERPER_API_KEY, the key of") as error:
    WebSearch()
  assert KEY not in str(error.value)
  monkeypatch.delenv("SERPER_API_KEY")
  with pytest.raises(InputError, match="export SERPER_API_KEY="):
    WebSearch()


def test_no_key_in_what_shows_the_tool():
  with asking(reply(TWO)) as server:
    tool = opened(server)
    assert KEY not in repr(tool) + repr(SERPER)
    tool.close()


def test_the_budget_is_kept():
  with asking(Reply(b"", 503), reply(TWO)) as server:
    limits = WebLimits(timeout_s=5, cost_per_call=0.1, max_cost=0.3)
    tool = opened(server, limits)
    results = [tool.call(str(n)) for n in range(4)]
    tool.close()
  # The repetition costs, too.
  assert [r.status for r in results] == ["ok", "ok", "refused", "refused"]
  assert results[-1].text == (
    "The budget of the search service is spent: no more calls are made."
  )
  assert tool.numbers()["calls"] == 3
  assert tool.numbers()["cost"] == pytest.approx(0.3)
  assert tool.numbers()["errors"] == 0


def test_the_budget_holds_for_many_threads():
  with asking(reply(TWO)) as server:
    tool = opened(server, WebLimits(max_calls=5))
    with ThreadPoolExecutor(8) as threads:
      results = list(threads.map(tool.call, map(str, range(20))))
    tool.close()
  assert sum(r.status == "ok" for r in results) == 5
  assert len(server.asked) == 5


def test_calls_keep_their_rate():
  with asking(reply(TWO)) as server:
    tool = opened(server, WebLimits(calls_per_s=20))
    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
      results = list(threads.map(tool.call, map(str, range(8))))
    # Seven gaps of 50 ms.
    assert time.monotonic() - began >= 0.35
    tool.close()
  assert all(r.status == "ok" for r in results)


def test_a_turn_that_comes_too_late():
  with asking(reply(TWO)) as server:
    tool = opened(server, WebLimits(timeout_s=0.2, calls_per_s=0.1))
    assert [tool.call(q).status for q in "xy"] == ["ok", "late"]
    tool.close()
  assert len(server.asked) == 1


def test_requests_under_way_are_bounded():
  under_way, most, lock = 0, 0, threading.Lock()

  def answer(asked):
    nonlocal under_way, most
    with lock:
      under_way += 1
      most = max(most, under_way)
    time.sleep(0.05)
    with lock:
      under_way -= 1
    return reply(TWO)

  with serving(answer) as server:
    tool = opened(server, WebLimits(max_concurrency=2))
    with ThreadPoolExecutor(8) as threads:
      results = list(threads.map(tool.call, map(str, range(6))))
    tool.close()
  assert all(r.status == "ok" for r in results)
  assert most == 2


def test_one_request_for_one_query_of_many_threads(tmp_path):
  cache = CacheConfig(str(tmp_path / "web.sqlite"), "record")
  slow = dataclasses.replace(reply(TWO), delay_s=0.2)
  with asking(slow) as server:
    tool = opened(server, cache=cache)
    with ThreadPoolExecutor(8) as threads:
      results = set(threads.map(tool.call, ["same"] * 8))
    assert len(results) == 1
    tool.close()
  assert len(server.asked) == 1
  assert tool.numbers()["cache_hits"] == 7


@pytest.mark.parametrize("argument", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_it_returns_whatever_the_argument(argument):
  with asking(reply(TWO)) as server:
    tool = opened(server)
    assert tool.call(argument).status in ("ok", "error")
    tool.close()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"url": "serper"}, "begins with http:// or https://"),
    ({"url": "https://me:canary@x"}, "must hold no user"),
    ({"url": "https://x?key=canary"}, "must hold no user"),
    ({"fields": "{"}, "must be a JSON object"),
    ({"fields": '["{query}"]'}, "must be a JSON object"),
    ({"fields": '{"q": 1}'}, "must hold {query}"),
    ({"key_header": " "}, "must be the name of a header"),
  ],
)
def test_what_no_api_can_be(arguments, message):
  with pytest.raises(InputError, match=message) as error:
    dataclasses.replace(SERPER, **arguments)
  assert "canary" not in str(error.value)


@pytest.mark.parametrize(
  "arguments",
  [
    *({"timeout_s": 0}, {"max_retries": -1}, {"calls_per_s": 0}),
    *({"max_concurrency": 0}, {"max_bytes": 0}, {"max_calls": -1}),
    *({"cost_per_call": -0.1}, {"max_cost": -1}),
  ],
)
def test_limits_out_of_range(arguments):
  with pytest.raises(InputError, match=next(iter(arguments))):
    WebLimits(**arguments)


def test_top_k_out_of_range():
  with pytest.raises(InputError, match="top_k must be at least 1"):
    WebSearch(top_k=0)
