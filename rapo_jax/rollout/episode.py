"""The protocol of one agent with its tools, as a state machine without I/O.

Text of a step goes in; a call, or the end of the trajectory, comes out. Then
the result goes in, and the agent goes on or has ended. The engine and the agent
behind an endpoint drive the same machine. So they count calls, keep budgets and
end trajectories by the same rules.
"""

from __future__ import annotations

import dataclasses
import enum

from rapo_jax.rollout.config import RolloutConfig
from rapo_jax.tools import (
  MalformedCall,
  TagSet,
  ToolCall,
  ToolResult,
  ToolStatus,
)
from rapo_jax.tools.tags import ANSWER_END
from rapo_jax.trajectory import FinishReason, RetrievalEvent, ToolEvent


class StepEnd(enum.Enum):
  """Where the policy stopped in a step."""

  STOP_STRING = "stop_string"
  """Behind the end of a call or of the answer."""
  TURN = "turn"
  """It ended its turn, with neither of them."""
  STEP_BUDGET = "step_budget"
  """At the most tokens of one step."""
  RESPONSE_BUDGET = "response_budget"
  """At the most tokens of the trajectory."""


_CUT = {
  StepEnd.TURN: FinishReason.EOS,
  StepEnd.STEP_BUDGET: FinishReason.STEP_LIMIT,
  StepEnd.RESPONSE_BUDGET: FinishReason.LENGTH,
}


@dataclasses.dataclass(eq=False)
class Episode:
  """A trajectory in the making, as text.

  Attributes:
    config: budgets; the episode's driver keeps those in tokens.
    tag_set: tags of the agent.
    deadline: when the trajectory is out of time, on the monotonic clock.
    step_id: of the step that the policy writes now or next.
    num_calls: calls so far, malformed ones included.
    num_malformed: malformed calls in a row.
    steps: texts of the steps, each with its result.
    events: calls and retrievals, in order.
    finish_reason: why the trajectory ended; None while it goes on.
  """

  config: RolloutConfig
  tag_set: TagSet
  deadline: float = 0.0
  step_id: int = 0
  num_calls: int = 0
  num_malformed: int = 0
  steps: list[str] = dataclasses.field(default_factory=list)
  events: list[ToolEvent | RetrievalEvent] = dataclasses.field(
    default_factory=list
  )
  finish_reason: FinishReason | None = None

  def copy(self) -> Episode:
    """The episode as it is, which goes on by itself."""
    return dataclasses.replace(self, steps=[*self.steps], events=[*self.events])

  def end_step(
    self, text: str, end: StepEnd
  ) -> ToolCall | MalformedCall | None:
    """Takes the text of a step.

    Args:
      text: what the policy wrote.
      end: where it stopped.

    Returns:
      The call that the step ends with, whose result is wanted next. None if
      the trajectory has ended.
    """
    self.steps.append(text)
    if end is not StepEnd.STOP_STRING:
      self.finish_reason = _CUT[end]
      return None
    ends = {stop: text.find(stop) for stop in self.tag_set.stop_strings}
    # Bytes that complete no character can take a tag's bytes with them when
    # they are decoded: then there is a stop without a tag, a malformed call.
    found = ((at, stop) for stop, at in ends.items() if at >= 0)
    if min(found, default=(0, ""))[1] == ANSWER_END:
      self.finish_reason = FinishReason.ANSWER
      return None
    if self.num_calls >= self.config.max_tool_calls:
      self.finish_reason = FinishReason.TOOL_LIMIT
      return None
    self.num_calls += 1
    call = self.tag_set.parse_call(text)
    malformed = isinstance(call, MalformedCall)
    self.num_malformed = self.num_malformed + 1 if malformed else 0
    return call

  def observe(
    self,
    call: ToolCall | MalformedCall,
    result: ToolResult,
    shown: str,
    *,
    seconds: float,
    now: float,
    fits: bool = True,
  ) -> bool:
    """Takes the result of a call.

    Args:
      call: that `end_step` returned.
      result: of the tool, or `refusal` of a malformed call.
      shown: the observation: the result's text, escaped and in its tags.
      seconds: from the end of the step to the answer.
      now: time on the monotonic clock.
      fits: whether there is room for the observation and a token behind it.

    Returns:
      Whether the trajectory goes on, with the observation. Otherwise it has
      ended, and the observation is no part of it.
    """
    malformed = isinstance(call, MalformedCall)
    self.events.append(
      ToolEvent(
        step_id=self.step_id,
        name="" if isinstance(call, MalformedCall) else call.name,
        argument=(
          call.reason if isinstance(call, MalformedCall) else call.argument
        ),
        result=shown,
        status="malformed" if malformed else result.status,
        seconds=seconds,
      )
    )
    if self.num_malformed >= self.config.max_malformed_calls:
      self.finish_reason = FinishReason.MALFORMED
    elif now > self.deadline:
      self.finish_reason = FinishReason.TIMEOUT
    elif not fits:
      self.finish_reason = FinishReason.LENGTH
    if self.finish_reason is not None:
      return False
    self.steps[-1] += shown
    self.step_id += 1
    return True

  def insert(self, event: RetrievalEvent, text: str = "") -> None:
    """Takes what comes between two steps; a text is a step of its own."""
    self.events.append(event)
    if text:
      self.steps.append(text)
      self.step_id += 1


def refusal(call: MalformedCall) -> ToolResult:
  """What an agent reads in place of a result."""
  return ToolResult(f"malformed tool call: {call.reason}", ToolStatus.ERROR)
