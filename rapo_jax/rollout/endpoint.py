"""An agent behind an OpenAI-compatible endpoint, with our tools on our side.

The endpoint only ever continues a chat. A step is one reply, which stops at the
end of a tool call. The call is made here, by the threads that make the engine's
(`tool_runner`). Its result is the next message. So any server that speaks
`/v1/chat/completions` can be the off-policy agent, whatever it knows of tools.

A thought may come apart from the reply, in a field of its own. Then it is put
in tags before the reply, and no text in it counts as a tag. Or the server's
chat template has opened the thought. Then the reply has only its closing tag,
and gets the opening one.

Many trajectories are under way at once. The client (`openai`) makes a failed
request again. Its pauses grow, and are as long as the server asks for. A
trajectory whose request fails for good is reported and not kept.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from rapo_jax import rewards, web_address
from rapo_jax import tools as tools_lib
from rapo_jax.chat_endpoint import KEY_VARIABLE, endpoint_key
from rapo_jax.data import Query, chat_messages
from rapo_jax.ranges import check_numbers
from rapo_jax.records import SegmentRecord, TrajectoryRecord, event_to_json
from rapo_jax.rollout.config import RolloutConfig, check_tool_settings
from rapo_jax.rollout.episode import Episode, StepEnd, refusal
from rapo_jax.rollout.tool_runner import Call, ToolRunner, wait_for_news
from rapo_jax.tools import tags
from rapo_jax.trajectory import (
  FinishReason,
  RetrievalEvent,
  TokenKind,
  ToolEvent,
)

_MAX_IN_A_ROW = 8
# Where servers that reason apart from the reply put the thought.
_THOUGHT_FIELDS = (
  *("reasoning_content", "reasoning", "thinking"),
  *("reasoning_details", "thinking_blocks"),
)
# Where a part of a message has its text.
_TEXT_FIELDS = ("text", "thinking", "reasoning")
# Where servers name what a reply stopped at: a string, or a token's id.
_STOP_FIELDS = ("stop_reason", "matched_stop")


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """Which agent is asked, and how.

  Attributes:
    base_url: of the endpoint, up to `/v1`.
    model: name of the model there; also the name of the agent.
    temperature: of sampling.
    max_step_tokens: tokens of one reply.
    concurrency: trajectories under way at once.
    request_timeout_s: deadline of one request, its retries apart.
    max_retries: times that a failed request is made again.
    extra: other fields of a request, such as `top_p`.
  """

  base_url: str
  model: str
  temperature: float = 1.0
  max_step_tokens: int = 1024
  concurrency: int = 16
  request_timeout_s: float = 300.0
  max_retries: int = 6
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    check_numbers(self, "max_step_tokens", "concurrency", at_least=1)
    check_numbers(self, "request_timeout_s", above=0, unit="seconds")
    check_numbers(self, "temperature", "max_retries", at_least=0)
    web_address.check_address(
      self.base_url, "an endpoint", f"Set {KEY_VARIABLE} in the environment."
    )


@dataclasses.dataclass(frozen=True)
class EndpointTrajectory:
  """A finished trajectory.

  Attributes:
    query: its question.
    index: its number among those of the question.
    segments: (kind, step, text), in order.
    finish_reason: why it ended.
    score: its outcome.
    events: its calls, in order.
  """

  query: Query
  index: int
  segments: tuple[tuple[TokenKind, int, str], ...]
  finish_reason: FinishReason
  score: rewards.Score
  events: tuple[ToolEvent | RetrievalEvent, ...] = ()

  def record(self, source: str) -> TrajectoryRecord:
    """As a record of a log, which importers read.

    Args:
      source: name of the agent.
    """
    return TrajectoryRecord(
      query_id=self.query.query_id,
      question=self.query.question,
      ground_truth=tuple(self.query.ground_truth),
      index=self.index,
      finish_reason=str(self.finish_reason),
      score=self.score.record(),
      segments=tuple(
        SegmentRecord(kind.name.lower(), step, text)
        for kind, step, text in self.segments
      ),
      events=tuple(map(event_to_json, self.events)),
      source=source,
    )


@dataclasses.dataclass(frozen=True)
class EndpointFailure:
  """A trajectory that could not be finished: the endpoint failed."""

  query: Query
  index: int
  reason: str


class _NoReplyError(Exception):
  """What the endpoint sent is no reply."""


class EndpointAgent:
  """Rolls an endpoint's agent out.

  Args:
    config: which agent.
    tools: by name; nobody else may use them meanwhile.
    rollout: budgets of a trajectory that are not in tokens (`max_tool_calls`,
      `max_malformed_calls`, `trajectory_timeout_s`) and limits of the tools;
      `max_tool_tokens` is taken as so many times four characters.
    reward: scores the trajectories.

  Attributes:
    name: of the agent.

  Raises:
    ModuleNotFoundError: openai is not installed (the extra `buffer`).
    InputError: an object is no tool, or a limit names no tool.
  """

  def __init__(
    self,
    config: EndpointConfig,
    tools: Mapping[str, tools_lib.Tool],
    rollout: RolloutConfig,
    reward: rewards.Reward = rewards.OUTCOME,
  ):
    # Of the extra `buffer`.
    import openai

    self.name = config.model
    self._openai = openai
    self._config = config
    self._tags = tools_lib.check_tools(tools)
    check_tool_settings(rollout, tools)
    self._tools = dict(tools)
    self._rollout = rollout
    self._reward = reward
    self._max_chars = 4 * rollout.max_tool_tokens
    self._runner = ToolRunner(
      self._tools, rollout, max_chars=self._max_chars + 1
    )
    # Whatever comes behind the end of a call or an answer is not read.
    self._end = re.compile("|".join(map(re.escape, self._tags.stop_strings)))

  async def rollouts(
    self, wanted: Sequence[tuple[Query, int]]
  ) -> AsyncIterator[EndpointTrajectory | EndpointFailure]:
    """Writes trajectories, each yielded when it is finished.

    Args:
      wanted: questions, and numbers of the trajectories on them.

    Raises:
      RuntimeError: the endpoint fails for every one of many in a row, or
        refuses the key or the model.
    """
    waiting = iter(wanted)
    in_a_row = 0
    with concurrent.futures.ThreadPoolExecutor(
      self._config.concurrency, "tool-wait"
    ) as threads:
      async with self._openai.AsyncOpenAI(
        base_url=self._config.base_url,
        api_key=endpoint_key(),
        timeout=self._config.request_timeout_s,
        max_retries=self._config.max_retries,
      ) as client:
        running: set[asyncio.Task[EndpointTrajectory | EndpointFailure]] = set()

        def start(count: int) -> None:
          for query, index in itertools.islice(waiting, count):
            work = self._one(client, threads, query, index)
            running.add(asyncio.create_task(work))

        start(self._config.concurrency)
        try:
          while running:
            done, _ = await asyncio.wait(
              running, return_when=asyncio.FIRST_COMPLETED
            )
            running -= done
            start(len(done))
            # All of them: an error that nobody takes is logged as lost.
            outcomes = await asyncio.gather(*done, return_exceptions=True)
            for outcome in outcomes:
              if isinstance(outcome, BaseException):
                raise outcome
              yield outcome
              failed = isinstance(outcome, EndpointFailure)
              in_a_row = in_a_row + 1 if failed else 0
            if in_a_row >= _MAX_IN_A_ROW:
              raise RuntimeError(
                f"{in_a_row} trajectories in a row failed at "
                f"{self._config.base_url}: see that it is up, then go on "
                "(--resume)."
              )
        finally:
          for task in running:
            task.cancel()
          await asyncio.gather(*running, return_exceptions=True)

  async def _one(
    self,
    client: Any,
    threads: concurrent.futures.Executor,
    query: Query,
    index: int,
  ) -> EndpointTrajectory | EndpointFailure:
    try:
      return await self._trajectory(client, threads, query, index)
    except (
      self._openai.AuthenticationError,
      self._openai.PermissionDeniedError,
      self._openai.NotFoundError,
    ) as error:
      raise RuntimeError(
        f"{self._config.base_url} refuses {self._config.model}: "
        f"{error.message} Set {KEY_VARIABLE}, or name a model that is there."
      ) from error
    except (self._openai.OpenAIError, _NoReplyError) as error:
      return EndpointFailure(query, index, f"{type(error).__name__}: {error}")

  async def _trajectory(
    self,
    client: Any,
    threads: concurrent.futures.Executor,
    query: Query,
    index: int,
  ) -> EndpointTrajectory:
    messages = self._prompt(query)
    segments: list[tuple[TokenKind, int, str]] = []
    episode = Episode(
      self._rollout,
      self._tags,
      deadline=time.monotonic() + self._rollout.trajectory_timeout_s,
    )
    thinking = False
    while episode.finish_reason is None:
      step_id = episode.step_id
      text, end = await self._reply(client, messages, thinking)
      thinking = tags.leaves_thought_open(text, opened=thinking)
      segments.append((TokenKind.POLICY, step_id, text))
      asked = time.monotonic()
      call = episode.end_step(text, end)
      if call is None:
        break
      if isinstance(call, tags.MalformedCall):
        result = refusal(call)
      else:
        result = await asyncio.get_running_loop().run_in_executor(
          threads, self._call, call.name, call.argument, episode.deadline
        )
      shown = self._shown(result.text)
      now = time.monotonic()
      if episode.observe(call, result, shown, seconds=now - asked, now=now):
        segments.append((TokenKind.OBSERVATION, step_id, shown))
        messages.append({"role": "assistant", "content": text})
        messages.append({"role": "user", "content": shown})
    reason = episode.finish_reason
    assert reason is not None
    sample = rewards.Sample(
      query,
      tuple((kind, text) for kind, _, text in segments),
      reason,
      self._tags,
    )
    (score,) = await asyncio.get_running_loop().run_in_executor(
      threads, rewards.score_all, self._reward, [sample]
    )
    return EndpointTrajectory(
      query, index, tuple(segments), reason, score, tuple(episode.events)
    )

  def _prompt(self, query: Query) -> list[dict[str, str]]:
    """The question's own messages; with a system prompt if they have none."""
    asked: Sequence[Mapping[str, str]] = query.messages
    if not any(message["role"] == "system" for message in asked):
      asked = chat_messages(query.question, self._tools.values())
    return [dict(message) for message in asked]

  async def _reply(
    self, client: Any, messages: Sequence[Mapping[str, str]], thinking: bool
  ) -> tuple[str, StepEnd]:
    """The next step's text, and where it stopped.

    `thinking`: a thought is open behind the last step.

    Raises:
      _NoReplyError: what came is no reply.
      OpenAIError: the request failed for good.
    """
    try:
      reply = await client.chat.completions.create(
        model=self._config.model,
        messages=messages,
        temperature=self._config.temperature,
        max_tokens=self._config.max_step_tokens,
        stop=[f"</{name}>" for name in self._tools] or None,
        extra_body=dict(self._config.extra) or None,
      )
    except json.JSONDecodeError as error:
      raise _NoReplyError(f"the reply is no JSON: {error}") from error
    choice = _choice(reply)
    said, thought = map(_storable, _said(choice.message, self._tags))
    end = self._end.search(said)
    cut = end is None and choice.finish_reason == "length"
    if end:
      said = said[: end.end()]
    elif not cut:
      said += self._stop_string(choice, said, thinking)
    if not thinking:
      said = tags.with_opened_thought(said)
    if cut:
      return thought + said, StepEnd.STEP_BUDGET
    # A text stops where a call or an answer ends, or the turn has ended.
    stopped = said.endswith(self._tags.stop_strings)
    return thought + said, StepEnd.STOP_STRING if stopped else StepEnd.TURN

  def _stop_string(self, choice: Any, said: str, thinking: bool) -> str:
    """The end of the call that a reply stops in; it is not part of the reply.

    Some servers name the stop string, or say that no stop string was met.
    Others do not: then the reply stops in a call if its last tag opens one. A
    tool that a thought only names has another tag behind it, the end of the
    thought.
    """
    opened = next(reversed(self._tags.find_tags(said)), None)
    for name in _STOP_FIELDS:
      named = getattr(choice, name, None)
      if isinstance(named, str) and self._end.fullmatch(named):
        return named
      # The model ended its turn, and called nothing.
      if isinstance(named, int):
        return ""
    if choice.finish_reason == "content_filter":
      return ""
    if opened is None or opened.closing or opened.name not in self._tools:
      return ""
    # A model that ends its turn inside a thought has called nothing there.
    before = tags.leaves_thought_open(said[: opened.start], opened=thinking)
    if before and not said[opened.end :].strip():
      return ""
    return f"</{opened.name}>"

  def _call(
    self, name: str, argument: str, deadline: float
  ) -> tools_lib.ToolResult:
    """A tool's answer; waits for it."""
    session = self._runner.session()
    now = time.monotonic()
    session.submit([Call(None, name, argument, deadline, now)])
    try:
      while True:
        wait_for_news(session.changed, [session], deadline - time.monotonic())
        for _, result in session.take():
          return result
    finally:
      session.close()

  def _shown(self, text: str) -> str:
    end = " [cut]" if len(text) > self._max_chars else ""
    body = self._tags.escape(text[: self._max_chars])
    return f"<{tags.RESULT}> {body}{end} </{tags.RESULT}>"


def _choice(reply: Any) -> Any:
  """The one choice of a reply, which has a message.

  Raises:
    _NoReplyError: there is none, or its message is a call in a field apart.
  """
  choices = getattr(reply, "choices", None)
  choice = choices[0] if isinstance(choices, list) and choices else None
  message = getattr(choice, "message", None)
  if message is None:
    raise _NoReplyError(f"the reply has no message: {reply!r:.300}")
  if getattr(message, "tool_calls", None) and not message.content:
    raise _NoReplyError(
      "the reply has tool_calls in place of a text: calls are read from the "
      "text, so start the server without its tool parser"
    )
  return choice


def _said(message: Any, tag_set: tags.TagSet) -> tuple[str, str]:
  """What a message says, and its thought in tags, if that came apart.

  Either may come in parts, as some servers send their content.
  """
  said, parts = "", []
  content = message.content
  for part in content if isinstance(content, list) else [content]:
    if isinstance(part, Mapping) and (
      "thinking" in part or part.get("type") == "reasoning"
    ):
      parts.append(_text(part))
    else:
      said += _text(part)
  fields = (_text(getattr(message, name, None)) for name in _THOUGHT_FIELDS)
  parts.append(next((field for field in fields if field.strip()), ""))
  thought = "\n".join(part.strip() for part in parts if part.strip())
  begin, end = f"<{tags.THINK}>", f"</{tags.THINK}>"
  thought = thought.removeprefix(begin).removesuffix(end).strip()
  # Some servers repeat it in the reply.
  if not thought or thought in said.rpartition(end)[0]:
    return said, ""
  return said, f"{begin} {tag_set.escape(thought)} {end}"


def _text(value: Any) -> str:
  """A text, or that of a part, or the texts of parts."""
  if isinstance(value, list):
    return "".join(map(_text, value))
  if isinstance(value, Mapping):
    texts = (_text(value.get(name)) for name in _TEXT_FIELDS)
    return next((text for text in texts if text), "")
  return value if isinstance(value, str) else ""


def _storable(text: str) -> str:
  """The text without half characters, which cannot be sent, and without NUL."""
  return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
