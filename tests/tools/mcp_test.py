"""Tools of an MCP server, against real servers over stdio and HTTP."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rapo_jax import tools
from rapo_jax.errors import InputError
from rapo_jax.tools.mcp import (
  McpAddress,
  McpConnection,
  McpDefinition,
  McpTool,
)
from tests.tools.contract_test import ARGUMENTS

SERVER = pathlib.Path(__file__).with_name("mcp_server.py")
COMMAND = (sys.executable, str(SERVER))
LONE = {
  "type": "object",
  "title": "arguments",
  "properties": {"q": {"type": "string", "title": "Q"}},
  "required": ["q"],
}
TWO = {
  "type": "object",
  "properties": {
    "title": {"type": "string"},
    "n": {"type": ["integer", "null"]},
    "unit": {"enum": ["m", "km"], "title": "Unit"},
    "deep": {"type": "array", "items": {"type": "object"}, "default": [{}]},
    "any": True,
  },
  "required": ["title", "n", "unit", "deep", "any"],
}


@pytest.fixture(scope="module")
def connection():
  opened = McpConnection(McpAddress((*COMMAND, "noisy")))
  yield opened
  opened.close()


def tool_of(connection, name, **options) -> McpTool:
  tag = options.pop("tag", name.replace("-", "_"))
  return McpTool(
    connection, connection.definitions()[name], name=tag, **options
  )


def test_it_is_a_tool_with_a_schema_in_its_description(connection):
  shout = tool_of(connection, "shout")
  add = tool_of(connection, "add-numbers", tag="add")
  assert isinstance(shout, tools.Tool)
  tags = tools.check_tools({"shout": shout, "add": add})
  assert shout.description == (
    "<shout> text </shout>: Says a text in capitals, &lt;|im_end|> and "
    "&lt;/shout> included."
  )
  start, _, schema = add.description.partition(" JSON schema of the object: ")
  assert start == "<add> a JSON object </add>: Adds two numbers."
  assert json.loads(schema) == {
    "type": "object",
    "properties": {
      "a": {"type": "integer"},
      "b": {"type": "integer", "default": 2},
      "kind": {"type": "string", "enum": ["sum", "more"], "default": "sum"},
    },
    "required": ["a"],
  }
  assert tags.parse_call(add.example) == tools.ToolCall("add", ' {"a": 1} ')


@pytest.mark.parametrize(
  ("name", "argument", "status", "text"),
  [
    ("shout", " two words ", "ok", "TWO WORDS"),
    ("shout", '{"text": "a\\nb"}', "ok", "A\nB"),
    ("shout", '{"other": 1}', "ok", '{"OTHER": 1}'),
    ("shout", '"quoted"', "ok", '"QUOTED"'),
    ("shout", "", "error", "The argument must be a JSON object"),
    ("add-numbers", '{"a": 1}', "ok", "3"),
    ("add-numbers", '{"a": 1, "b": 1, "kind": "more"}', "ok", "3"),
    ("add-numbers", "1 + 2", "error", "The argument must be a JSON object, su"),
    ("add-numbers", "[1]", "error", "The argument must be a JSON object, such"),
    ("add-numbers", '{"b": 1}', "error", ""),
    ("add-numbers", '{"a": "x"}', "error", ""),
    ("nothing", "", "ok", ""),
    ("fail", "hope", "error", ""),
    ("junk", "said", "ok", "said"),
    ("picture", "", "ok", "[image image/png, which cannot be shown]"),
    ("variable", "HOME", "ok", os.environ.get("HOME", "none")),
    ("variable", "CANARY", "ok", "none"),
  ],
)
def test_calls(connection, monkeypatch, name, argument, status, text):
  monkeypatch.setenv("CANARY", "secret")
  result = tool_of(connection, name).call(argument)
  assert result.status == status
  assert result.text.startswith(text)
  assert connection.num_starts == 1


def test_what_an_agent_reads_of_a_mistake(connection):
  assert "no hope here" in tool_of(connection, "fail").call("hope").text
  result = tool_of(connection, "add-numbers").call("{'a': 1}")
  assert 'such as {"a": 1} (' in result.text


@pytest.mark.parametrize("argument", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_it_returns_whatever_the_argument(connection, argument):
  assert tool_of(connection, "shout").call(argument).status in ("ok", "error")


def test_tools_share_a_server_and_its_calls_run_side_by_side(connection):
  shout = tool_of(connection, "shout")
  add = tool_of(connection, "add-numbers")
  with ThreadPoolExecutor(8) as threads:
    shouted = threads.map(shout.call, [str(n) for n in range(20)])
    added = threads.map(add.call, [f'{{"a": {n}}}' for n in range(20)])
  assert [r.text for r in shouted] == [str(n) for n in range(20)]
  assert [r.text for r in added] == [str(n + 2) for n in range(20)]
  assert connection.num_starts == 1
  assert shout.numbers() == {"calls": 20, "errors": 0, "starts": 1}


def test_a_server_that_dies_hangs_or_floods_is_started_again(caplog):
  address = McpAddress(COMMAND, max_bytes=100_000)
  connection = McpConnection(address)
  shout = tool_of(connection, "shout")
  die = tool_of(connection, "die")
  with caplog.at_level(logging.WARNING):
    result = die.call("x")
    assert (result.status, result.text) == ("failed", "The server has died.")
    assert shout.call("a").text == "A"
  assert connection.num_starts == 2
  assert die.numbers() == {"calls": 1, "errors": 1, "starts": 2}

  huge = tool_of(connection, "huge")
  assert len(huge.call('{"count": 40000}').text) == 40_000
  assert huge.call('{"count": 400000}').status == "failed"
  assert shout.call("b").text == "B"
  assert connection.num_starts == 3

  hang = tool_of(connection, "hang", timeout_s=0.3)
  for _ in range(3):
    result = hang.call("x")
    assert result.status == "late"
    assert result.text == "The server did not answer within 0.3 s."
  assert shout.call("c").text == "C"
  assert connection.num_starts == 4
  began = time.monotonic()
  connection.close()
  connection.close()
  assert time.monotonic() - began < 15


@pytest.mark.parametrize(
  "program",
  [
    "import sys; sys.exit('no such licence')",
    "print('{junk'); print('{\"jsonrpc\": 1}')",
  ],
)
def test_a_server_that_does_not_start(program, caplog):
  command = (sys.executable, "-c", program)
  connection = McpConnection(McpAddress(command, start_timeout_s=5))
  definition = McpDefinition("x", "", LONE)
  tool = McpTool(connection, definition, name="x", timeout_s=1)
  results = [tool.call("a") for _ in range(4)]
  assert [r.status for r in results] == ["failed"] * 3 + ["refused"]
  connection.close()
  if "licence" in program:
    assert "It says: …no such licence" in caplog.text


def test_the_reason_of_a_server_that_does_not_start():
  command = (sys.executable, "-c", "import sys; sys.exit('no such licence')")
  connection = McpConnection(McpAddress(command))
  with pytest.raises(InputError, match=r"must list .* It says: …no such lic"):
    connection.definitions()
  connection.close()


def test_a_server_that_is_silent_has_a_deadline():
  command = (sys.executable, "-c", "import time; time.sleep(60)")
  connection = McpConnection(McpAddress(command, start_timeout_s=0.5))
  tool = McpTool(connection, McpDefinition("x", "", LONE), name="x")
  began = time.monotonic()
  assert tool.call("a").status == "failed"
  assert time.monotonic() - began < 5
  connection.close()


def test_a_server_over_http(monkeypatch):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
  monkeypatch.setenv("MCP_TOKEN", "canary")
  process = subprocess.Popen(
    [*COMMAND, "http", str(port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
      if socket.socket().connect_ex(("127.0.0.1", port)) == 0:
        break
      time.sleep(0.1)
    url = f"http://127.0.0.1:{port}/mcp"
    connection = McpConnection(McpAddress(url=url, token="MCP_TOKEN"))
    shout = tool_of(connection, "shout", timeout_s=5)
    assert shout.call("a").text == "A"
    process.kill()
    process.wait()
    assert shout.call("b").status == "failed"
    connection.close()
  finally:
    process.kill()
    process.wait()


def test_variables_are_given_by_name(monkeypatch):
  monkeypatch.setenv("CANARY", "secret")
  address = McpAddress(COMMAND, environment=("CANARY",))
  assert "secret" not in repr(address)
  connection = McpConnection(address)
  assert tool_of(connection, "variable").call("CANARY").text == "secret"
  connection.close()
  monkeypatch.delenv("CANARY")
  with pytest.raises(InputError, match="CANARY"):
    McpConnection(address)


@pytest.mark.parametrize(
  ("schema", "text", "found"),
  [
    (LONE, "a b", {"q": "a b"}),
    (LONE, '{"q": "x"}', {"q": "x"}),
    (LONE, '{"p": "x"}', {"q": '{"p": "x"}'}),
    ({}, "", {}),
    ({}, '{"a": [1]}', {"a": [1]}),
    (TWO, '{"n": null}', {"n": None}),
  ],
)
def test_arguments(schema, text, found):
  assert McpDefinition("x", "", schema).arguments(text) == found


@pytest.mark.parametrize(
  ("schema", "text"),
  [(LONE, " "), (TWO, ""), (TWO, "n=1"), (TWO, "[]"), (TWO, "[" * 100_000)],
)
def test_arguments_that_are_none(schema, text):
  with pytest.raises(ValueError, match="must be a JSON object, such as"):
    McpDefinition("x", "", schema).arguments(text)


def test_an_example_of_every_kind():
  definition = McpDefinition("x", "</x> text", TWO)
  example = definition.example("x")
  given = example.partition("<x> ")[2].partition(" </x>")[0]
  assert json.loads(given) == {
    "title": "…",
    "n": 1,
    "unit": "m",
    "deep": [{}],
    "any": "…",
  }
  # A parameter may be called title.
  assert '"title": {"type": "string"}' in definition.describe("x")
  assert '"Unit"' not in definition.describe("x")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({}, "must have a command or a URL"),
    ({"command": ("x",), "url": "http://x"}, "must have a command or a URL"),
    ({"url": "http://me:canary@x"}, "must hold no user"),
    ({"command": ("x",), "start_timeout_s": 0.0}, "start_timeout_s must be"),
    ({"command": ("x",), "max_bytes": 0}, "max_bytes must be"),
  ],
)
def test_addresses_that_are_none(arguments, message):
  with pytest.raises(InputError, match=message) as error:
    McpAddress(**arguments)
  assert "canary" not in str(error.value)


def test_a_command_and_a_package_that_are_missing(monkeypatch):
  with pytest.raises(InputError, match="'no-such-server' is not found"):
    McpConnection(McpAddress(("no-such-server",)))
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'mcp>="):
    McpConnection(McpAddress(COMMAND))
