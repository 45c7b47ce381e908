"""Tools of the web as values of a config."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from unittest import mock

import pytest

from experiments import checks, flags, tasks
from experiments.config import ExperimentConfig
from rapo_jax import hosts
from rapo_jax.data import system_prompt
from rapo_jax.errors import InputError
from rapo_jax.tasks import (
  FileTask,
  McpSpec,
  SearchServerSpec,
  WebPageSpec,
  WebSearchSpec,
  check_tool_specs,
  web_tools,
)
from rapo_jax.tools import SERPER, CacheConfig, WebLimits, check_tools
from tests.tools.web_server import reply, scripted, serving

SPECS = (
  WebSearchSpec(cache=CacheConfig("web.sqlite", "record")),
  WebPageSpec(links=True),
  McpSpec("x", url="http://tools", token="SERPER_API_KEY"),
  SearchServerSpec("http://search:8000", limits=WebLimits(max_calls=9)),
)


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("SERPER_API_KEY", "canary-key")


def config_with(*specs) -> ExperimentConfig:
  task = FileTask("t", tools=specs)
  return ExperimentConfig(name="t", tasks=(task,))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_a_config_holds_it_without_its_key(spec):
  plain = json.dumps(flags.to_dict(config_with(spec)))
  assert "canary-key" not in plain + repr(spec)
  assert type(spec).__name__ in plain
  assert hash(spec) == hash(dataclasses.replace(spec))


def test_they_are_chosen_and_set_on_the_command_line():
  given = ExperimentConfig(name="t", tasks=(FileTask("t"),))
  flag = "--config.tasks.t.tools"
  config = flags.apply_overrides(
    given,
    [
      f"{flag}=web_search,web_page",
      f"{flag}.search.top_k=7",
      f"{flag}.search.limits.max_cost=5",
      f"{flag}.search.cache.path=web.sqlite",
      f"{flag}.open.links=true",
    ],
  )
  search, page = config.task("t").tool_specs()
  assert (search.top_k, search.limits.max_cost) == (7, 5.0)
  assert search.cache == CacheConfig("web.sqlite")
  assert page == WebPageSpec(links=True)


def test_it_runs_while_its_task_does(encoder):
  answer = reply({"organic": [{"title": "T", "link": "L", "snippet": "S"}]})
  with serving(scripted(answer)) as server:
    api = dataclasses.replace(SERPER, url=server.url)
    config = config_with(WebSearchSpec(api, top_k=1))
    with tasks.running_tools(config, "t", encoder) as tools:
      check_tools(tools)
      assert tools["search"].call("x").text == "T (L)\nS"
    with pytest.raises(RuntimeError, match="closed"):
      tools["search"].call("x")


def test_a_missing_key_is_named_when_the_task_opens(encoder, monkeypatch):
  monkeypatch.delenv("SERPER_API_KEY")
  with (
    pytest.raises(InputError, match="export SERPER_API_KEY="),
    tasks.running_tools(config_with(WebSearchSpec()), "t", encoder),
  ):
    raise AssertionError


def test_pages_and_searches_run_side_by_side(encoder):
  config = config_with(WebPageSpec(), WebSearchSpec())
  with tasks.running_tools(config, "t", encoder) as tools:
    assert sorted(tools) == ["open", "search"]
    assert tools["open"].call("http://127.0.0.1/").status == "error"


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (WebSearchSpec(), "export SERPER_API_KEY="),
    (WebSearchSpec(cache=CacheConfig("no", "replay")), "no does not: record"),
    (WebPageSpec(cache=CacheConfig("no", "replay")), "no does not: record"),
    (SearchServerSpec("http://x", token="SERPER_API_KEY"), "export SERPER_API"),
    (McpSpec("x", ("no-such-server",)), "'no-such-server' is not found"),
    (McpSpec("x", ("sh",), environment=("SERPER_API_KEY",)), "export SERPER_A"),
  ],
)
def test_what_is_missing_is_said_before_a_run_begins(
  spec, message, monkeypatch
):
  monkeypatch.delenv("SERPER_API_KEY")
  with pytest.raises(InputError, match=message):
    spec.check()


def test_a_run_checks_its_tools_first(monkeypatch):
  monkeypatch.delenv("SERPER_API_KEY")
  with pytest.raises(InputError, match="the task t: the key of a search serv"):
    checks.quick_checks(config_with(WebSearchSpec()), "train")


SERVER = pathlib.Path(__file__).parents[1] / "tools" / "mcp_server.py"
MCP = McpSpec("shout", (sys.executable, str(SERVER)))


def test_tools_of_one_mcp_server(encoder):
  add = dataclasses.replace(MCP, tool="add-numbers", as_name="add")
  config = config_with(MCP, add)
  assert "JSON schema" in add.description
  with tasks.running_tools(config, "t", encoder) as tools:
    assert tools["shout"].call("a").text == "A"
    assert tools["add"].call('{"a": 1}').text == "3"
    # One server for both.
    assert tools["add"].numbers()["starts"] == 1
    prompt = system_prompt(config.task("t").tool_specs())
  assert add.description in prompt
  assert MCP.example in prompt


def test_an_mcp_tool_that_is_not_there():
  spec = dataclasses.replace(MCP, tool="none")
  with pytest.raises(InputError, match="no tool 'none': use one of shout, add"):
    check_tool_specs(config_with(spec).task("t"))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"tool": "add-numbers"}, "An MCP tool is renamed here by `as_name`"),
    ({"as_name": "answer"}, "which has another meaning"),
    ({"url": "http://x"}, "must have a command or a URL"),
    ({"timeout_s": 0.0}, "timeout_s must be > 0"),
    ({"max_concurrency": 0}, "max_concurrency must be at least 1"),
  ],
)
def test_mcp_specs_that_are_none(arguments, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(MCP, **arguments)


@pytest.mark.parametrize("kind", [WebSearchSpec, SearchServerSpec])
def test_top_k_out_of_range(kind):
  required = {} if kind is WebSearchSpec else {"url": "http://x"}
  with pytest.raises(InputError, match="top_k must be at least 1"):
    kind(**required, top_k=0)


@pytest.fixture(scope="module")
def encoder():
  """None of these tools embeds anything."""
  return None


def test_hosts_share_the_limits_of_a_service(monkeypatch):
  limits = WebLimits(calls_per_s=6.0, max_concurrency=2, max_calls=8)
  assert web_tools.of_one_host(limits) == limits
  own = []
  for index in range(3):
    place = hosts.Place(("host0", 80), 3, index)
    side = hosts.Leader(mock.Mock(spec=hosts.Link, place=place))
    with hosts.leading(side):
      own.append(web_tools.of_one_host(limits))
  assert [one.max_calls for one in own] == [3, 3, 2]
  assert [one.calls_per_s for one in own] == [2.0] * 3
  # One that may ask nothing at a time would wait for ever.
  assert [one.max_concurrency for one in own] == [1] * 3
  assert own[0].max_cost is None
  assert own[0].timeout_s == limits.timeout_s
