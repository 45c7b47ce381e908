"""Runs in an environment that has verl: its agent loop calls the tool."""

import asyncio
import json
import pathlib
import sys
import tempfile
import types

from omegaconf import OmegaConf
from verl.experimental.agent_loop.tool_agent_loop import (
  AgentData,
  ToolAgentLoop,
)
from verl.experimental.agent_loop.tool_parser import FunctionCall
from verl.tools.tool_registry import load_all_tools

from examples import verl_buffer

ROOT = pathlib.Path(verl_buffer.__file__).parent


def call(verb: str, **arguments: str) -> dict:
  return {
    "type": "function",
    "function": {"name": verb, "arguments": arguments},
  }


def check_messages() -> None:
  """Results and arguments of calls belong to the step that called."""
  messages = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Who wrote Faust?"},
    {
      "role": "assistant",
      "content": "I search.",
      "tool_calls": [call("search", query="Faust author")],
    },
    {"role": "tool", "content": "Goethe"},
    {"role": "assistant", "content": "", "tool_calls": [call("retrieve_step")]},
  ]
  question, history = verl_buffer.split_messages(messages)
  assert question == "Who wrote Faust?"
  assert history == ["I search.\nFaust author\nGoethe"], history


async def ask(tool, *messages: str) -> str:
  """What verl's agent loop gets from the tool after these messages."""
  data = AgentData(
    messages=[{"role": "user", "content": messages[0]}]
    + [{"role": "assistant", "content": text} for text in messages[1:]],
    image_data=[],
    video_data=[],
    audio_data=None,
    mm_processor_kwargs=None,
    metrics={},
    request_id="r0",
    tools_kwargs={},
  )
  loop = types.SimpleNamespace(
    tools={tool.name: tool},
    max_tool_response_length=256,
    tool_response_truncate_side="right",
  )
  response, reward, metrics = await ToolAgentLoop._call_tool(
    loop, FunctionCall(name=tool.name, arguments=json.dumps({})), {}, data
  )
  assert reward == 0.0
  assert metrics["retrieved"] == ("no step" not in response.text), metrics
  return response.text


async def check_the_tool(url: str) -> None:
  config = OmegaConf.load(ROOT / "verl_tools.yaml")
  config.tools[0].config.url = url
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "tools.yaml"
    OmegaConf.save(config, path)
    (tool,) = load_all_tools(str(path), None)
  assert tool.name == verl_buffer.NAME
  assert await ask(tool, "4") == "5"
  assert await ask(tool, "4", "5") == "6"
  assert await ask(tool, "4", "5", "6", "7") == "8"
  assert "no step" in await ask(tool, "Who wrote Faust?")


if __name__ == "__main__":
  check_messages()
  asyncio.run(check_the_tool(sys.argv[1]))
