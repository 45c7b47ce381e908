"""Tools of the web as values of a config."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments import flags, tasks
from experiments.config import ExperimentConfig
from rapo_jax.errors import InputError
from rapo_jax.tasks import (
  FileTask,
  SearchServerSpec,
  WebPageSpec,
  WebSearchSpec,
)
from rapo_jax.tools import SERPER, CacheConfig, WebLimits, check_tools
from tests.tools.web_server import reply, scripted, serving

SPECS = (
  WebSearchSpec(cache=CacheConfig("web.sqlite", "record")),
  WebPageSpec(links=True),
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


@pytest.mark.parametrize("kind", [WebSearchSpec, SearchServerSpec])
def test_top_k_out_of_range(kind):
  required = {} if kind is WebSearchSpec else {"url": "http://x"}
  with pytest.raises(InputError, match="top_k must be at least 1"):
    kind(**required, top_k=0)


@pytest.fixture(scope="module")
def encoder():
  """None of these tools embeds anything."""
  return None
