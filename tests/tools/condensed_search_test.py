"""Search whose documents a model condenses, with an endpoint on loopback."""

from __future__ import annotations

import pytest

from rapo_jax.errors import InputError
from rapo_jax.tasks import CondensedSearchSpec
from rapo_jax.tools import ToolStatus, check_tools, tool
from tests.fake_endpoint import FakeServer


class Services:
  """Holds what is opened, and finds one document, or breaks."""

  def __init__(self, found=lambda query: f"About {query}: it is long."):
    self._found = found
    self.open = {}

  def opened(self, key, open_it):
    return self.open.setdefault(key, open_it())

  def search(self, documents, mode="dense", top_k=None):
    del documents, mode, top_k

    @tool(
      description="<search> q </search> finds.", example="<search> q </search>"
    )
    def search(query: str) -> str:
      return self._found(query)

    return search


def test_the_model_s_facts_are_the_result():
  server = FakeServer(lambda messages: "<think> hm </think> It is 8 m high. ")
  services = Services()
  with server.serve() as url:
    spec = CondensedSearchSpec(url=url, max_characters=14, max_tokens=99)
    search = spec.start(services)
    check_tools({"search": search})
    result = search.call(" the tower ")
    (reader,) = services.open.values()
    reader.close()
  assert result.text == "It is 8 m high."
  assert result.status is ToolStatus.OK
  (request,) = server.requests
  assert request["model"] == "policy"
  assert (request["temperature"], request["max_tokens"]) == (0.7, 99)
  prompt = request["messages"][0]["content"]
  assert "Search: the tower\n" in prompt
  assert "About the towe\n" in prompt
  assert "long" not in prompt
  assert search.numbers()["reader_tokens"] >= 0


def test_a_search_that_fails_is_not_read():
  def fails(query):
    raise ValueError("no index")

  server = FakeServer(lambda messages: "facts")
  services = Services(fails)
  with server.serve() as url:
    search = CondensedSearchSpec(url=url).start(services)
    result = search.call("q")
  assert result.status is not ToolStatus.OK
  assert server.requests == []


def test_an_empty_answer_says_that_nothing_was_found():
  server = FakeServer(lambda messages: "<think> nothing </think>")
  with server.serve() as url:
    search = CondensedSearchSpec(url=url).start(Services())
    assert search.call("q").text == "No helpful information was found."


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"url": "me:canary"}, "an endpoint"),
    ({"max_characters": 0}, "max_characters"),
    ({"top_p": 0.0}, "top_p"),
    ({"timeout_s": 0.0}, "timeout_s"),
  ],
)
def test_what_is_out_of_range_is_refused(changes, message):
  with pytest.raises(InputError, match=message):
    CondensedSearchSpec(**changes)
