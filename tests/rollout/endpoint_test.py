"""Tests of agents behind an endpoint, which here is a server on loopback."""

import asyncio
import concurrent.futures
import dataclasses
import json
import re
import threading
import types

import pytest

from rapo_jax import tools as tools_lib
from rapo_jax.data import Query
from rapo_jax.rollout import RolloutConfig, endpoint
from rapo_jax.trajectory import FinishReason, TokenKind
from tests.fake_endpoint import FakeServer

ANSWER = r"<think> So. </think><answer> \boxed{Austen} </answer>"


class Search:
  """Echoes, and forges a tag."""

  name = "search"
  description = "<search> a query </search> echoes it."
  example = "<search> a </search>"
  batched = False

  def call(self, argument):
    return tools_lib.ToolResult(
      f"{argument.strip()} </result>", tools_lib.ToolStatus.OK
    )

  def call_batch(self, arguments):
    return [self.call(argument) for argument in arguments]


def query(number=0):
  return Query(
    query_id=f"q{number}",
    question=f"Who wrote book {number}?",
    ground_truth=("Austen",),
    messages=({"role": "user", "content": "Who?"},),
    task="t",
  )


def rollouts(server, wanted=None, *, rollout=None, **kwargs):
  wanted = wanted or [(query(), 0)]

  async def collect():
    config = endpoint.EndpointConfig(url, "teacher", **kwargs)
    agent = endpoint.EndpointAgent(
      config, {"search": Search()}, rollout or RolloutConfig()
    )
    return [outcome async for outcome in agent.rollouts(wanted)]

  with server.serve() as url:
    return asyncio.run(collect())


def searches_once(messages):
  if messages[-1]["content"].startswith("<result>"):
    return ANSWER
  return "<think> Look. </think><search> Emma </search> and more"


@pytest.mark.parametrize("cuts", [True, False])
def test_a_trajectory_with_a_tool(cuts):
  server = FakeServer(searches_once, cuts)
  (trajectory,) = rollouts(server, temperature=0.5, extra={"top_p": 0.9})
  assert trajectory.segments == (
    (TokenKind.POLICY, 0, "<think> Look. </think><search> Emma </search>"),
    (TokenKind.OBSERVATION, 0, "<result> Emma &lt;/result> </result>"),
    (TokenKind.POLICY, 1, ANSWER),
  )
  assert trajectory.finish_reason is FinishReason.ANSWER
  assert trajectory.score.value == 1.0
  first, second = server.requests
  assert first["model"] == "teacher"
  assert (first["temperature"], first["top_p"]) == (0.5, 0.9)
  assert first["stop"] == ["</search>"]
  assert [m["role"] for m in second["messages"]] == [
    "system",
    "user",
    "assistant",
    "user",
  ]
  assert second["messages"][2]["content"].endswith("</search>")
  record = trajectory.record("teacher").to_json()
  assert json.loads(json.dumps(record)) == record
  assert [s["step_id"] for s in record["segments"]] == [0, 0, 1]


def test_a_prompt_of_the_question_s_own():
  own = (
    {"role": "system", "content": "Look books up."},
    {"role": "user", "content": "Book 0: who?"},
  )
  server = FakeServer(lambda _: ANSWER)
  asked = dataclasses.replace(query(), messages=own)
  rollouts(server, [(asked, 0), (query(1), 0)], concurrency=1)
  first, second = server.requests
  assert first["messages"] == list(own)
  # Without one the agent has to be told of the tools.
  assert "<search>" in second["messages"][0]["content"]
  assert second["messages"][1]["content"] == "Who wrote book 1?"


@pytest.mark.parametrize(
  ("reply", "reason", "num_segments"),
  [
    ("I do not know.", FinishReason.EOS, 1),
    ("<think> on and on [long]", FinishReason.STEP_LIMIT, 1),
    ("<search> again </search>", FinishReason.TOOL_LIMIT, 5),
    ("no call </search>", FinishReason.MALFORMED, 1),
  ],
)
def test_how_it_ends(reply, reason, num_segments):
  budgets = RolloutConfig(max_tool_calls=2, max_malformed_calls=1)
  server = FakeServer(lambda _: reply, cuts=False)
  (trajectory,) = rollouts(server, rollout=budgets)
  assert trajectory.finish_reason is reason
  assert len(trajectory.segments) == num_segments
  assert trajectory.score.value == -1.0


def replies(*messages, **choice):
  """A client that answers with these messages, one after the other."""
  waiting = list(messages)

  async def create(**_):
    message = {"content": None, **waiting.pop(0)}
    return types.SimpleNamespace(
      choices=[
        types.SimpleNamespace(
          message=types.SimpleNamespace(**message),
          **{"finish_reason": "stop", **choice},
        )
      ]
    )

  completions = types.SimpleNamespace(create=create)
  return types.SimpleNamespace(
    chat=types.SimpleNamespace(completions=completions)
  )


def trajectory_of(*messages, **choice):
  agent = endpoint.EndpointAgent(
    endpoint.EndpointConfig("http://x/v1", "teacher"),
    {"search": Search()},
    RolloutConfig(),
  )
  client = replies(*messages, **choice)
  with concurrent.futures.ThreadPoolExecutor(1) as threads:
    return asyncio.run(agent._trajectory(client, threads, query(), 0))


BOXED = r"<answer> \boxed{Austen} </answer>"


@pytest.mark.parametrize(
  "message",
  [
    {"content": BOXED, "reasoning_content": "because"},
    {"content": BOXED, "reasoning": "because", "reasoning_content": None},
    {
      "content": [
        {"type": "thinking", "thinking": [{"type": "text", "text": "because"}]},
        {"type": "text", "text": BOXED},
      ]
    },
    {"content": BOXED, "thinking": "<think>\nbecause\n</think>"},
    {"content": BOXED, "reasoning_content": "", "reasoning": "because"},
    {"content": BOXED, "reasoning": {"text": "because"}},
    {
      "content": BOXED,
      "reasoning_details": [{"type": "reasoning.text", "text": "because"}],
    },
    {
      "content": BOXED,
      "thinking_blocks": [{"type": "thinking", "thinking": "because"}],
    },
    {
      "content": [
        {"type": "reasoning", "text": "because"},
        {"type": "text", "text": BOXED},
      ]
    },
    # The chat template opened it.
    {"content": f"because\n</think>\n{BOXED}"},
    # Tags in a thought that comes apart are none.
    {"content": BOXED, "reasoning": "because <search> </answer> </think>"},
    {"content": BOXED, "reasoning": "because </search> <result>"},
    # Repeated in the reply.
    {"content": f"<think> because </think>{BOXED}", "reasoning": "because"},
  ],
)
def test_where_thoughts_stand(message):
  trajectory = trajectory_of(message)
  ((_, _, text),) = trajectory.segments
  assert text.startswith("<think>")
  assert text.count("because") == 1
  assert trajectory.finish_reason is FinishReason.ANSWER
  assert trajectory.score.value == 1.0


def test_a_template_that_opens_every_thought():
  trajectory = trajectory_of(
    {"content": "look </think><search> Emma"},
    {"content": f"so </think>{BOXED}"},
  )
  assert [text for _, _, text in trajectory.segments] == [
    "<think>look </think><search> Emma</search>",
    "<result> Emma &lt;/result> </result>",
    f"<think>so </think>{BOXED}",
  ]
  assert trajectory.score.value == 1.0


def test_a_thought_that_goes_on_behind_a_result():
  trajectory = trajectory_of(
    {"content": "<think> look <search> Emma"},
    {"content": f"so </think>{BOXED}"},
  )
  assert trajectory.segments[2][2] == f"so </think>{BOXED}"
  assert trajectory.score.value == 1.0


@pytest.mark.parametrize(
  "said",
  [
    "<think> I could use <search> here. </think> I do not know.",
    "I could use <search> here. </think> I do not know.",
    "<think> I could use <search>",
  ],
)
def test_a_tool_that_a_thought_only_names_is_not_called(said):
  trajectory = trajectory_of({"content": said})
  assert trajectory.finish_reason is FinishReason.EOS
  assert len(trajectory.segments) == 1


@pytest.mark.parametrize(
  "choice",
  [
    # Ids of tokens that end a turn, from vLLM and SGLang.
    {"stop_reason": 151645},
    {"matched_stop": 151645},
    {"finish_reason": "content_filter"},
  ],
)
def test_a_turn_that_ends_within_a_call(choice):
  said = "<think> look </think><search> Emma"
  trajectory = trajectory_of({"content": said}, **choice)
  assert trajectory.finish_reason is FinishReason.EOS
  assert trajectory.segments[0][2] == said


def test_a_thought_that_is_a_word_of_the_answer_is_kept():
  trajectory = trajectory_of({"content": BOXED, "reasoning": "Austen"})
  assert trajectory.segments[0][2] == f"<think> Austen </think>{BOXED}"


def test_sglang_names_the_stop_string_elsewhere():
  trajectory = trajectory_of(
    {"content": "<think> look </think><search> Emma "},
    {"content": BOXED},
    matched_stop="</search>",
  )
  assert trajectory.segments[0][2].endswith("<search> Emma </search>")


def test_a_stop_string_that_the_server_names():
  # An answer comes without one, and the same choice serves both replies.
  trajectory = trajectory_of(
    {"content": "<think> look </think><search> Emma "},
    {"content": BOXED},
    stop_reason="</search>",
  )
  assert trajectory.segments[0][2].endswith("<search> Emma </search>")
  assert trajectory.segments[2][2] == BOXED


def test_a_tool_whose_name_is_no_tag():
  config = endpoint.EndpointConfig("http://x/v1", "teacher")
  with pytest.raises(ValueError, match="each tool must have a name"):
    endpoint.EndpointAgent(config, {"think": Search()}, RolloutConfig())


def test_the_time_of_a_trajectory():
  budgets = RolloutConfig(trajectory_timeout_s=1e-6)
  server = FakeServer(searches_once)
  (trajectory,) = rollouts(server, rollout=budgets)
  assert trajectory.finish_reason is FinishReason.TIMEOUT


def test_a_long_result_is_cut():
  budgets = RolloutConfig(max_tool_tokens=2)
  server = FakeServer(searches_once)
  (trajectory,) = rollouts(server, rollout=budgets)
  assert trajectory.segments[1][2] == "<result> Emma </r [cut] </result>"


def test_many_at_once_but_not_more_than_allowed():
  barrier = threading.Barrier(4, timeout=10)

  def reply(_):
    # Four requests have to be there at once for any to be answered.
    barrier.wait()
    return ANSWER

  server = FakeServer(reply)
  wanted = [(query(n), i) for n in range(4) for i in range(3)]
  outcomes = rollouts(server, wanted, concurrency=4)
  assert sorted((o.query.query_id, o.index) for o in outcomes) == sorted(
    (q.query_id, i) for q, i in wanted
  )
  assert server.most_running == 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failed_request_is_made_again(status):
  failures = iter([status, status])
  server = FakeServer(lambda _: next(failures, ANSWER))
  (trajectory,) = rollouts(server)
  assert trajectory.score.value == 1.0
  assert len(server.requests) == 3


def test_a_trajectory_that_fails_for_good_stops_no_other():
  def reply(messages):
    return 500 if "book 1" in messages[1]["content"] else ANSWER

  wanted = [(query(n), 0) for n in range(3)]
  outcomes = rollouts(FakeServer(reply), wanted, max_retries=1, concurrency=1)
  failed = [o for o in outcomes if isinstance(o, endpoint.EndpointFailure)]
  assert [o.query.query_id for o in failed] == ["q1"]
  assert "status 500" in failed[0].reason
  assert len(outcomes) == 3


@pytest.mark.parametrize(
  ("body", "reason"),
  [
    (b'{"choices": []}', "has no message"),
    (b'{"choices": null, "error": {"message": "busy"}}', "no message.*busy"),
    (b'{"choices": [{"message": null}]}', "has no message"),
    (b'{"choices": [{"text": "So"}]}', "has no message"),
    (b'"So"', "has no message"),
    (b'{"choices": ', "is no JSON"),
    (
      b'{"choices": [{"message": {"content": null, "tool_calls":'
      b' [{"function": {"name": "search", "arguments": "{}"}}]}}]}',
      "without its tool parser",
    ),
  ],
)
def test_a_reply_of_another_form_stops_no_other(body, reason):
  def reply(messages):
    return body if "book 1" in messages[1]["content"] else ANSWER

  wanted = [(query(n), 0) for n in range(3)]
  outcomes = rollouts(FakeServer(reply), wanted, concurrency=1)
  failed = [o for o in outcomes if isinstance(o, endpoint.EndpointFailure)]
  assert [o.query.query_id for o in failed] == ["q1"]
  assert re.search(reason, failed[0].reason)
  assert len(outcomes) == 3


def test_an_endpoint_that_is_down_is_given_up():
  wanted = [(query(n), 0) for n in range(100)]
  server = FakeServer(lambda _: 500)
  with pytest.raises(RuntimeError, match="in a row failed at http"):
    rollouts(server, wanted, max_retries=0, concurrency=2)
  assert len(server.requests) < 20


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_refuses(status):
  with pytest.raises(RuntimeError, match=r"refuses teacher.*OPENAI_API_KEY"):
    rollouts(FakeServer(lambda _: status))


@pytest.mark.parametrize(
  "kwargs",
  [
    {"concurrency": 0},
    {"max_step_tokens": 0},
    {"request_timeout_s": 0.0},
    {"max_retries": -1},
  ],
)
def test_out_of_range(kwargs):
  with pytest.raises(ValueError, match=next(iter(kwargs))):
    endpoint.EndpointConfig("http://127.0.0.1/v1", "m", **kwargs)


def test_characters_that_cannot_be_stored():
  reply = "<think> half \ud83d and NUL \0 </think><answer> Austen </answer>"
  (trajectory,) = rollouts(FakeServer(lambda _: reply))
  ((_, _, text),) = trajectory.segments
  assert text == "<think> half ? and NUL ? </think><answer> Austen </answer>"


def test_an_address_holds_no_key():
  with pytest.raises(ValueError, match="Set OPENAI_API_KEY") as caught:
    endpoint.EndpointConfig("http://host/v1?key=canary", "m")
  assert "canary" not in str(caught.value)
