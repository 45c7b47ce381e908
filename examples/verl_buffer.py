r"""verl: steps of a Step-Trace Buffer as a tool of the agent.

    python -m experiments.serve_index --buffer buffers/web
    python -m verl.trainer.main_ppo … \
      actor_rollout_ref.rollout.multi_turn.tool_config_path=…/verl_tools.yaml

The policy calls `retrieve_step` where it is unsure how to go on. verl masks
what a tool returns out of the loss. So the policy is conditioned on a retrieved
step and does not imitate it.
"""

import asyncio
from typing import Any

from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse

from examples import step_client

NAME = "retrieve_step"
SCHEMA = {
  "type": "function",
  "function": {
    "name": NAME,
    "description": "Shows how another agent went on from here.",
    "parameters": {"type": "object", "properties": {}, "required": []},
  },
}


class RetrieveStep(BaseTool):
  """Asks `url` of its config for the next step of the trajectory."""

  def get_openai_tool_schema(self) -> OpenAIFunctionToolSchema:
    """Its name and description, where the config file has no `tool_schema`."""
    return OpenAIFunctionToolSchema.model_validate(SCHEMA)

  async def execute(
    self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
  ) -> tuple[ToolResponse, float, dict]:
    """The step, no reward of its own, and whether there was one.

    Args:
      instance_id: not read.
      parameters: none.
      **kwargs: `agent_data` of verl's agent loop, with the messages so far.
    """
    question, history = split_messages(kwargs["agent_data"].messages)
    # In a thread, since other trajectories go on meanwhile.
    (step,) = await asyncio.to_thread(
      step_client.next_steps, self.config["url"], [question], [history]
    )
    text = "There is no step for this." if step is None else step
    return ToolResponse(text=text), 0.0, {"retrieved": step is not None}


def split_messages(messages: list[dict[str, Any]]) -> tuple[str, list[str]]:
  """Question and steps of a conversation; a step ends with its results."""
  roles = [message["role"] for message in messages]
  start = roles.index("user")
  steps: list[str] = []
  for message in messages[start + 1 :]:
    if message["role"] == "assistant":
      steps.append("\n".join([message["content"], *_arguments(message)]))
    elif steps:
      steps[-1] += f"\n{message['content']}"
  stripped = (step.strip() for step in steps)
  return messages[start]["content"], [step for step in stripped if step]


def _arguments(message: dict[str, Any]) -> list[str]:
  """What a message calls tools with, as texts."""
  calls = [call["function"] for call in message.get("tool_calls", [])]
  texts: list[Any] = []
  for call in calls:
    values = call["arguments"]
    # A text where it is no JSON.
    texts += values.values() if isinstance(values, dict) else [values]
  return [str(text) for text in texts]
