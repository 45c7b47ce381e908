from __future__ import annotations

import pytest

from rapo_jax import tools
from rapo_jax.errors import InputError
from rapo_jax.rollout.config import RolloutConfig
from rapo_jax.rollout.tool_runner import Call, ToolRunner, wait_for_news

DESCRIPTION = "<double> a number </double> doubles it."
EXAMPLE = "<think> Two. </think><double> 2 </double><result> 4 </result>"


@tools.tool(description=DESCRIPTION, example=EXAMPLE)
def double(argument):
  if argument == "zero":
    raise ZeroDivisionError("0")
  return 2 * int(argument) if argument == "1" else str(2 * int(argument))


def run(tool, argument):
  runner = ToolRunner({tool.name: tool}, RolloutConfig(), max_chars=80)
  session = runner.session()
  session.submit([Call(None, tool.name, argument, 1e9, 0.0)])
  wait_for_news(session.changed, [session], 60.0)
  ((_, result),) = session.take()
  session.close()
  return result


def test_a_function_is_a_tool():
  assert isinstance(double, tools.Tool)
  assert tools.check_tools({"double": double}).tool_names == ("double",)
  assert double.call(" 4 ") == tools.ToolResult("8", tools.ToolStatus.OK)
  assert [r.text for r in double.call_batch(["4", "5"])] == ["8", "10"]


@pytest.mark.parametrize(
  ("argument", "status", "text"),
  [
    ("4", "ok", "8"),
    ("four", "error", "invalid literal"),
    ("zero", "failed", "ZeroDivisionError"),
    ("1", "failed", "must return a text or a ToolResult, got int"),
  ],
)
def test_what_a_function_raises_or_returns(argument, status, text):
  result = run(double, argument)
  assert result.status == status
  assert text in result.text


def test_a_function_may_return_a_result_and_have_a_name_and_a_policy():
  answer = tools.ToolResult("no", tools.ToolStatus.ERROR)
  made = tools.tool(
    description="<other> … </other> says no.",
    example="<other> x </other>",
    name="other",
    policy=tools.CallPolicy(idempotent=True, retries=1, timeout_s=2.0),
  )(lambda argument: answer)
  assert made.name == "other"
  assert made.call("x") is answer
  assert tools.call_policy(made) == made.policy


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "answer"}, "<answer>, which has another meaning"),
    ({"name": "Double"}, "cannot be a tag"),
    ({"description": " "}, "must have a description"),
    ({"example": "<double> 2"}, "must show a call, <double> … </double>"),
  ],
)
def test_what_cannot_be_a_tool_is_refused(changes, message):
  made = {
    "function": str,
    "name": "double",
    "description": DESCRIPTION,
    "example": EXAMPLE,
  }
  with pytest.raises(InputError, match=message):
    tools.FunctionTool(**(made | changes))


def test_objects_that_are_no_tools_are_refused():
  class NoExample:
    name = "x"
    description = "<x> … </x>"
    batched = False

  with pytest.raises(InputError, match="lacks example, call, call_batch"):
    tools.check_tools({"x": NoExample()})
  with pytest.raises(InputError, match="'double' is given as 'twice'"):
    tools.check_tools({"twice": double})
