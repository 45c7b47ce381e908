"""One protocol for the engine and the agent behind an endpoint."""

from __future__ import annotations

import asyncio
import collections
import dataclasses

import pytest

from rapo_jax.rollout import RolloutConfig, endpoint
from rapo_jax.rollout.episode import Episode, StepEnd, refusal
from rapo_jax.tools import MalformedCall, TagSet, ToolResult, ToolStatus
from rapo_jax.trajectory import FinishReason, RetrievalEvent, TokenKind
from tests.fake_endpoint import FakeServer
from tests.rollout import tag_world

CONFIG = RolloutConfig(max_tool_calls=3, max_malformed_calls=2)
CALL = "<think> t </think><search> q </search>"
ANSWER = "<think> t </think><answer> a </answer>"
FOUND = ToolResult("found", ToolStatus.OK)
SHOWN = "<result> found </result>"


def episode() -> Episode:
  return Episode(CONFIG, TagSet(("search",)), deadline=10.0)


def observe(state: Episode, call, *, now=1.0, fits=True) -> bool:
  malformed = isinstance(call, MalformedCall)
  result = refusal(call) if malformed else FOUND
  return state.observe(call, result, SHOWN, seconds=0.5, now=now, fits=fits)


def test_a_call_its_result_and_an_answer():
  state = episode()
  call = state.end_step(CALL, StepEnd.STOP_STRING)
  assert (call.name, call.argument) == ("search", " q ")
  assert observe(state, call)
  assert state.step_id == 1
  assert state.end_step(ANSWER, StepEnd.STOP_STRING) is None
  assert state.finish_reason is FinishReason.ANSWER
  assert state.steps == [CALL + SHOWN, ANSWER]
  (event,) = state.events
  assert (event.step_id, event.name, event.argument) == (0, "search", " q ")
  assert (event.result, event.status, event.seconds) == (SHOWN, "ok", 0.5)


@pytest.mark.parametrize(
  ("text", "end", "reason"),
  [
    (CALL, StepEnd.TURN, FinishReason.EOS),
    (CALL, StepEnd.STEP_BUDGET, FinishReason.STEP_LIMIT),
    (CALL, StepEnd.RESPONSE_BUDGET, FinishReason.LENGTH),
    # The first stop string counts.
    ("</answer></search>", StepEnd.STOP_STRING, FinishReason.ANSWER),
  ],
)
def test_steps_that_end_a_trajectory(text, end, reason):
  state = episode()
  assert state.end_step(text, end) is None
  assert state.finish_reason is reason
  assert state.num_calls == 0


def test_the_call_behind_the_last_one_allowed_ends_a_trajectory():
  state = episode()
  for _ in range(3):
    assert observe(state, state.end_step(CALL, StepEnd.STOP_STRING))
  assert state.end_step(CALL, StepEnd.STOP_STRING) is None
  assert state.finish_reason is FinishReason.TOOL_LIMIT
  assert len(state.events) == 3


def test_malformed_calls_in_a_row_end_a_trajectory():
  state = episode()
  bad = state.end_step("</search>", StepEnd.STOP_STRING)
  assert isinstance(bad, MalformedCall)
  assert refusal(bad).text.startswith("malformed tool call: the closing search")
  assert observe(state, bad)
  assert observe(state, state.end_step(CALL, StepEnd.STOP_STRING))
  assert state.num_malformed == 0
  assert observe(state, state.end_step("\ufffd", StepEnd.STOP_STRING))
  assert state.num_calls == 3
  assert [e.status for e in state.events] == ["malformed", "ok", "malformed"]
  assert state.events[0].name == ""
  assert state.events[0].argument == bad.reason


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({"now": 10.5}, FinishReason.TIMEOUT),
    ({"fits": False}, FinishReason.LENGTH),
  ],
)
def test_results_that_end_a_trajectory_are_events_and_no_part_of_it(
  changes, reason
):
  state = episode()
  call = state.end_step(CALL, StepEnd.STOP_STRING)
  assert not observe(state, call, **changes)
  assert state.finish_reason is reason
  assert state.steps == [CALL]
  assert len(state.events) == 1
  assert state.step_id == 0


def test_what_comes_between_steps():
  state = episode()
  observe(state, state.end_step(CALL, StepEnd.STOP_STRING))
  state.insert(RetrievalEvent(1, "miss"))
  assert (state.step_id, len(state.steps)) == (1, 1)
  state.insert(RetrievalEvent(1, "hit"), "<retrieve> r </retrieve>")
  assert (state.step_id, state.steps[-1]) == (2, "<retrieve> r </retrieve>")
  assert [event.outcome for event in state.events[1:]] == ["miss", "hit"]


def _storable(text: str) -> str:
  """As the endpoint's agent keeps what a model writes."""
  return text.replace("\0", "?")


def _comparable(events):
  return [
    (e.step_id, e.name, _storable(e.argument), _storable(e.result), e.status)
    for e in events
  ]


def test_engine_and_endpoint_agree_on_the_same_steps(
  policy, tag_tokenizer, queries, prompts, echo_tool
):
  """The endpoint is given the steps that the engine's policy wrote."""
  config = dataclasses.replace(
    tag_world.CONFIG,
    num_generations=16,
    num_hybrid=0,
    max_tool_calls=3,
    max_malformed_calls=2,
    max_tool_tokens=160,
    max_response_tokens=900,
  )
  engine = tag_world.make_engine(config, tag_tokenizer, echo_tool())
  requests = tag_world.make_requests(config, queries, prompts)
  trajectories, _ = engine.rollout(policy, requests, seed=1, update=0)
  # An endpoint has no budget of tokens, and may not tell a turn's end from a
  # stop string.
  ends = (FinishReason.LENGTH, FinishReason.STEP_LIMIT, FinishReason.EOS)
  whole = [t for t in trajectories if t.finish_reason not in ends]
  reasons = collections.Counter(t.finish_reason for t in whole)
  assert {FinishReason.MALFORMED, FinishReason.TOOL_LIMIT} <= set(reasons)
  assert any(t.tool_events[0].status == "ok" for t in whole if t.tool_events)
  expected = [
    [
      (segment.kind, segment.step_id, _storable(text))
      for segment, (_, text) in zip(
        trajectory.segments(), trajectory.texts(tag_tokenizer), strict=True
      )
      if segment.kind is not TokenKind.PROMPT
    ]
    for trajectory in whole
  ]
  replies = iter(
    [
      text
      for segments in expected
      for kind, _, text in segments
      if kind is TokenKind.POLICY
    ]
  )
  server = FakeServer(lambda _: next(replies), cuts=False)

  async def collect():
    with server.serve() as url:
      agent = endpoint.EndpointAgent(
        # One after the other, or replies would come in another order.
        endpoint.EndpointConfig(url, "agent", concurrency=1),
        {"search": tag_world.EchoTool()},
        config,
      )
      wanted = [(queries[t.group_id], t.index) for t in whole]
      return [outcome async for outcome in agent.rollouts(wanted)]

  found = asyncio.run(collect())
  assert [f.finish_reason for f in found] == [t.finish_reason for t in whole]
  assert [list(f.segments) for f in found] == expected
  for one, trajectory in zip(found, whole, strict=True):
    assert _comparable(one.events) == _comparable(trajectory.tool_events)
