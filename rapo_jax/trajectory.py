"""The one record of a rollout that every other part reads.

A `Trajectory` is what happened: the token ids in order, with each token's kind
and the step it belongs to. A policy token also has its log-probability and the
entropy of the distribution that it was sampled from. Ids are the only truth:
text is decoded from them for tools and for people and is never encoded back.
Every mask, the retrieved fraction and the step entropies derive from `kinds`
and `step_ids`; there is no second mask.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

SYSTEM_FAULTS = ("failed", "refused", "late")
"""How a call ends (`tools.ToolStatus`) where that says nothing of the agent."""
_UNKNOWN = "\ufffd"  # Bytes that are no character by themselves.


class TokenKind(enum.IntEnum):
  """Where a token comes from. Only `POLICY` tokens are trained on."""

  PROMPT = 0
  POLICY = 1
  OBSERVATION = 2
  RETRIEVED = 3


class Source(enum.IntEnum):
  """Who wrote a trajectory, and when."""

  POLICY = 0
  """The policy, for this update."""
  REPLAY = 1
  """The policy of an earlier update."""
  AGENT = 2
  """Another agent; its tokens are of the kind `POLICY` all the same."""


class FinishReason(enum.StrEnum):
  """Why a trajectory ended."""

  ANSWER = "answer"
  """The policy closed its answer."""
  EOS = "eos"
  """The policy ended its turn without an answer."""
  LENGTH = "length"
  """The response budget (`max_response_tokens`) is used up, or a tool's result
  does not fit into what is left of it."""
  STEP_LIMIT = "step_limit"
  """One step used `max_step_tokens` without a tool call or an answer."""
  TOOL_LIMIT = "tool_limit"
  """A tool was called after `max_tool_calls` calls."""
  MALFORMED = "malformed"
  """`max_malformed_calls` calls in a row could not be parsed."""
  TIMEOUT = "timeout"
  """The trajectory's deadline passed (a system limit, not the agent's)."""


@dataclasses.dataclass(frozen=True)
class ToolEvent:
  """One tool call and its result.

  Attributes:
    step_id: the policy step that made the call.
    name: tool name, or "" for a call that could not be parsed.
    argument: text between the tool's tags.
    result: observation text as appended, escaped and in its tags.
    status: "malformed", or how the call ended (`tools.ToolStatus`): "ok",
      "error", "timeout", "late" (no answer by the deadline), "failed" (the tool
      broke) or "refused" (the call was not made).
    seconds: from the end of the step to the answer, waiting included.
  """

  step_id: int
  name: str
  argument: str
  result: str
  status: str
  seconds: float


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A trace among which a retrieval chose.

  Attributes:
    trace_id: id of the trace in its buffer.
    similarity: cosine similarity of its key to the history.
    reward: outcome reward of the trajectory that it comes from.
  """

  trace_id: int
  similarity: float
  reward: float


@dataclasses.dataclass(frozen=True)
class RetrievalEvent:
  """One retrieval from the Step-Trace Buffer.

  Attributes:
    step_id: step of the retrieved tokens; for anything but a hit, the step
      that the policy writes next.
    outcome: "hit", "miss", "failed", "open" or "no_room". "open": not tried, as
      too many searches before it failed. "no_room": found, but longer than what
      is left of the response budget; nothing was inserted.
    similarity: cosine similarity of the chosen key; None without one, and for
      a trace that was drawn at random (`RetrievalConfig.noise_prob`).
    reward: outcome reward of the trajectory that the trace comes from.
    trace_id: id of the trace in its buffer.
    source: name of the off-policy agent that wrote the trace.
    answers: whether what was retrieved holds an answer, which it can leak.
    effect: reward of the trajectory less that of its twin, which goes on from
      the same prefix without this step; None for one that was not probed.
    others: the next-best candidates that were not chosen, best first.
  """

  step_id: int
  outcome: str
  similarity: float | None = None
  reward: float | None = None
  trace_id: int | None = None
  source: str | None = None
  answers: bool = False
  effect: float | None = None
  others: tuple[Candidate, ...] = ()


@dataclasses.dataclass(frozen=True)
class Segment:
  """A maximal run of tokens of one kind and one step: tokens[start:end]."""

  kind: TokenKind
  step_id: int
  start: int
  end: int


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """One finished rollout of `T` tokens, prompt included.

  Attributes:
    tokens: ids as sampled or inserted, `[T]`.
    kinds: `TokenKind` of each token, `[T]`.
    step_ids: step of each token, `[T]`; -1 for the prompt. An observation
      belongs to the step that called the tool; a retrieved step has an id of
      its own.
    log_probs: log-probability of each policy token under the distribution it
      was sampled from (temperature included), as sampled; 0 elsewhere, `[T]`.
    entropies: entropy of that distribution in nats (Eq. 2); 0 elsewhere, `[T]`.
    query_id: id of the question.
    group_id: index of the question in its batch.
    index: index of the trajectory in its group.
    hybrid: whether this trajectory was allowed to retrieve.
    policy_version: number of updates behind the policy that sampled it.
    finish_reason: why it ended.
    events: tool calls and retrievals, in order.
    buffer_version: version of the Step-Trace Buffer that it was allowed to
      retrieve from; None without one.
    parent: index in the group of the trajectory that it was forked from; None
      for one that began at the prompt by itself.
    shared_steps: first steps that were copied from the parent.
    source: who wrote it. Another agent's has no log-probabilities.
    twins: this trajectory sampled once more from a boundary on, each time
      without one retrieved step, by the order of these steps. The step that a
      twin does without has the id `shared_steps` of the twin. Nobody trains on
      them.
  """

  tokens: Int[np.ndarray, " T"]
  kinds: Int[np.ndarray, " T"]
  step_ids: Int[np.ndarray, " T"]
  log_probs: Float[np.ndarray, " T"]
  entropies: Float[np.ndarray, " T"]
  query_id: str
  group_id: int
  index: int
  hybrid: bool
  policy_version: int
  finish_reason: FinishReason
  events: tuple[ToolEvent | RetrievalEvent, ...] = ()
  buffer_version: int | None = None
  parent: int | None = None
  shared_steps: int = 0
  source: Source = Source.POLICY
  twins: tuple[Trajectory, ...] = ()

  @property
  def policy_mask(self) -> Bool[np.ndarray, " T"]:
    return self.kinds == TokenKind.POLICY

  @property
  def response_mask(self) -> Bool[np.ndarray, " T"]:
    return self.kinds != TokenKind.PROMPT

  @property
  def is_cut_by_system(self) -> bool:
    """Whether the system ended it, and its outcome says nothing of the agent.

    It ran out of time. Or it ran out of calls after calls that the system could
    not make or answer in time (`failed`, `refused`, `late`). A trajectory that
    went on after such a call and came to an end of its own is the agent's.
    """
    if self.finish_reason is FinishReason.TIMEOUT:
      return True
    return self.finish_reason is FinishReason.TOOL_LIMIT and any(
      event.status in SYSTEM_FAULTS for event in self.tool_events
    )

  @property
  def num_steps(self) -> int:
    return int(self.step_ids[-1]) + 1 if len(self.step_ids) else 0

  @property
  def tool_events(self) -> tuple[ToolEvent, ...]:
    return tuple(e for e in self.events if isinstance(e, ToolEvent))

  @property
  def retrieval_events(self) -> tuple[RetrievalEvent, ...]:
    return tuple(e for e in self.events if isinstance(e, RetrievalEvent))

  def segments(self) -> list[Segment]:
    """Runs of tokens of one kind and step, in order."""
    changes = (np.diff(self.kinds) != 0) | (np.diff(self.step_ids) != 0)
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(self.tokens)]
    return [
      Segment(TokenKind(int(self.kinds[a])), int(self.step_ids[a]), a, b)
      for a, b in itertools.pairwise(edges)
      if b > a
    ]

  def texts(self, tokenizer: Any) -> list[tuple[TokenKind, str]]:
    """Decoded segments, for rewards, keys and people."""
    return [
      (s.kind, decode(tokenizer, self.tokens[s.start : s.end]))
      for s in self.segments()
    ]

  def step_texts(self, tokenizer: Any) -> list[str]:
    """Text of each step: thought, action and observation; prompt left out.

    A retrieved step keeps its `<retrieve>` tags.
    """
    texts = [""] * self.num_steps
    for segment in self.segments():
      if segment.step_id >= 0:
        span = self.tokens[segment.start : segment.end]
        texts[segment.step_id] += decode(tokenizer, span)
    return texts


def decode(tokenizer: Any, tokens: Sequence[int] | np.ndarray) -> str:
  """Text of token ids, special tokens included and nothing tidied up."""
  return tokenizer.decode(
    np.asarray(tokens).tolist(),
    skip_special_tokens=False,
    clean_up_tokenization_spaces=False,
  )


def token_lengths(
  tokenizer: Any, tokens: Sequence[int] | np.ndarray, text: str
) -> list[int]:
  """Characters of a text that each of its tokens adds.

  A token that only begins a character adds none, and the one that completes it
  adds it. Sums are the text's length.

  Args:
    tokenizer: decodes.
    tokens: ids, `[T]`.
    text: what they decode to.
  """
  ids = np.asarray(tokens).tolist()
  lengths = [len(_piece(tokenizer, token)) for token in ids]
  if _UNKNOWN in text or sum(lengths) != len(text):
    lengths = _lengths_in_context(tokenizer, ids, len(text))
  return lengths


def _lengths_in_context(
  tokenizer: Any, ids: list[int], total: int
) -> list[int]:
  """The same for tokens whose text depends on those before them."""
  lengths: list[int] = []
  # Of the tokens from `start` on, those before `told` have their length.
  start = told = 0
  left = total
  for end in range(1, len(ids) + 1):
    before = decode(tokenizer, ids[start:told])
    now = decode(tokenizer, ids[start:end])
    added = 0
    if len(now) > len(before) and not now.endswith(_UNKNOWN):
      added = min(len(now) - len(before), left)
      start, told = told, end
    lengths.append(added)
    left -= added
  if lengths:
    lengths[-1] += left
  return lengths


@functools.lru_cache(maxsize=1 << 16)
def _piece(tokenizer: Any, token: int) -> str:
  """Text of a token alone."""
  return decode(tokenizer, [token])
