"""The host loop of a rollout: its slots, and what they wait for.

Between two device programs the host looks once at all slots. Those that
stopped have called a tool or ended. Tools run in threads; slots that wait for
one do not hold up the others. When results are back, the hook between steps
picks the trajectories that it wants, and these wait for it. Observations and
inserted steps that are there are appended together. A slow tool or search
changes when this happens, never which tokens come out: random streams belong
to sequences, not to slots or to time.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from rapo_jax.rollout.between import BetweenSession, Boundary, Insertion
from rapo_jax.rollout.config import RolloutConfig
from rapo_jax.rollout.episode import Episode, StepEnd, refusal
from rapo_jax.rollout.programs import (
  AdmissionArrays,
  Contents,
  Programs,
  empty_admission,
  empty_insert,
  empty_prompts,
)
from rapo_jax.rollout.requests import RolloutRequest, query_number
from rapo_jax.rollout.stats import RolloutStats
from rapo_jax.rollout.tool_runner import (
  Answers,
  Call,
  ToolSession,
  wait_for_news,
)
from rapo_jax.tools import MalformedCall, TagSet, ToolCall, ToolResult
from rapo_jax.trajectory import TokenKind, Trajectory, decode


@dataclasses.dataclass(eq=False)
class _Sequence:
  """A trajectory in the making. The device holds its tokens."""

  request: RolloutRequest
  number: int
  episode: Episode
  slot: int = -1
  length: int = 0
  segments: list[tuple[TokenKind, int, int]] = dataclasses.field(
    default_factory=list
  )  # (kind, step_id, end)
  piece: list[int] = dataclasses.field(default_factory=list)

  call: ToolCall | MalformedCall | None = None

  def append(self, kind: TokenKind, step_id: int, count: int) -> None:
    self.length += count
    self.segments.append((kind, step_id, self.length))

  @property
  def response_tokens(self) -> int:
    return self.length - len(self.request.prompt_tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
  """What an engine's rollouts have in common.

  Attributes:
    config: budgets and shapes.
    tokenizer: of the policy.
    tag_set: tags of the agent.
    encode: ids of a text, in which nothing becomes a control token.
    observation: ids of a tool's text, in its tags and within its budget.
    ends_turn: whether a token ends the policy's turn, `[vocabulary]`.
    matched_state: of the stop automaton, behind a stop string.
    prompt_width: tokens that a row of prompts has room for.
    slot_parts: slices of a mesh that the slots are cut over.
  """

  config: RolloutConfig
  tokenizer: Any
  tag_set: TagSet
  encode: Callable[[str], list[int]]
  observation: Callable[[str], list[int]]
  ends_turn: Bool[np.ndarray, " vocabulary"]
  matched_state: int
  prompt_width: int
  slot_parts: int


class Loop:
  """The host loop of one rollout: its slots, and what they wait for.

  Args:
    setup: of the engine.
    programs: the device programs.
    calls: the tools.
    between: what happens between steps; None for nothing.
    seed: of all that is random.
    update: number of updates behind the policy.
  """

  def __init__(
    self,
    setup: Setup,
    programs: Programs,
    calls: ToolSession[_Sequence],
    between: BetweenSession | None,
    *,
    seed: int,
    update: int,
  ):
    self._setup = setup
    self._config = setup.config
    self._programs = programs
    self._seed = seed
    self._update = update
    self._slots: list[_Sequence | None] = [None] * self._config.num_slots
    self._prefilled: collections.deque[tuple[int, _Sequence]] = (
      collections.deque()
    )
    self._active: set[int] = set()
    self._contents: Contents | None = None
    self._finished: dict[int, Trajectory] = {}
    self._calls = calls
    self._between = between
    self._held_since: float | None = None
    self._stats = RolloutStats(tools=calls.stats)

  def run(
    self, requests: Sequence[RolloutRequest]
  ) -> tuple[list[Trajectory], RolloutStats]:
    """Generates a trajectory for each request, in order."""
    began = time.perf_counter()
    waiting = collections.deque(
      _Sequence(request, number, Episode(self._config, self._setup.tag_set))
      for number, request in enumerate(requests)
    )
    ready: list[_Sequence] = []
    while len(self._finished) < len(requests):
      self._admit(waiting)
      ready += self._collect_tools() + self._collect_insertions()
      if self._hold(len(ready)):
        continue
      if ready:
        self._insert(ready)
        ready = []
      if self._active:
        self._decode()
    self._stats.seconds = time.perf_counter() - began
    if self._between is not None:
      self._stats.retrieval_busy_seconds = self._between.busy_seconds
    return [self._finished[i] for i in range(len(requests))], self._stats

  # Admission.

  def _admit(self, waiting: collections.deque[_Sequence]) -> None:
    """Starts sequences in free slots."""
    free = [i for i, s in enumerate(self._slots) if s is None]
    while free and (self._prefilled or waiting):
      if not self._prefilled:
        self._prefill(waiting)
      arrays = empty_admission(self._config)
      started = []
      while free and self._prefilled:
        row, sequence = self._prefilled.popleft()
        sequence.slot = free.pop(0)
        now = time.monotonic()
        sequence.episode.deadline = now + self._config.trajectory_timeout_s
        arrays.source[sequence.slot] = row
        self._slots[sequence.slot] = sequence
        started.append(sequence)
      self._start(arrays, started)

  def _prefill(self, waiting: collections.deque[_Sequence]) -> None:
    """Runs the next distinct prompts through the model, each once."""
    rows: dict[bytes, int] = {}
    prompts: list[np.ndarray] = []
    while waiting:
      prompt = waiting[0].request.prompt_tokens
      # Ids of one width: equal bytes are equal prompts.
      key = prompt.astype(np.int64).tobytes()
      if key not in rows:
        if len(rows) == self._config.prefill_rows:
          break
        rows[key] = len(rows)
        prompts.append(prompt)
      self._prefilled.append((rows[key], waiting.popleft()))
    width = self._setup.prompt_width
    tokens, lengths = empty_prompts(self._config, width)
    for row, prompt in enumerate(prompts):
      tokens[row, : len(prompt)] = prompt
      lengths[row] = len(prompt)
    began = time.perf_counter()
    self._programs.prefill(tokens, lengths)
    self._cached(lengths - 1, began)

  def _start(self, arrays: AdmissionArrays, started: list[_Sequence]) -> None:
    for sequence in started:
      prompt = len(sequence.request.prompt_tokens)
      sequence.append(TokenKind.PROMPT, -1, prompt)
      arrays.queries[sequence.slot] = query_number(sequence.request.query)
      arrays.indices[sequence.slot] = sequence.request.index
      arrays.limits[sequence.slot] = self._limit(sequence)
      self._active.add(sequence.slot)
    self._programs.admit(*arrays)

  # Decoding.

  def _decode(self) -> None:
    """Samples a chunk and handles the slots that stopped in it."""
    began = time.perf_counter()
    progress = self._programs.decode()
    if not progress.active[list(self._active)].all():
      self._contents = self._programs.contents()
    self._stats.decode_seconds += time.perf_counter() - began
    called: list[_Sequence] = []
    most = 0
    for slot in sorted(self._active):
      sequence = self._slot(slot)
      count = int(progress.lengths[slot]) - sequence.length
      self._stats.sampled_tokens += count
      most = max(most, count)
      if progress.active[slot]:
        sequence.length += count
      else:
        self._stopped(sequence, count, int(progress.automaton[slot]))
        if sequence.call is not None:
          called.append(sequence)
    self._stats.decode_positions += most * len(self._slots)
    self._dispatch(called)

  def _stopped(self, sequence: _Sequence, count: int, automaton: int) -> None:
    """Ends the step of a slot that has stopped, `count` tokens after a look."""
    assert self._contents is not None  # Read whenever a slot stops.
    self._active.discard(sequence.slot)
    start = sequence.segments[-1][2]
    sequence.append(TokenKind.POLICY, sequence.episode.step_id, count)
    row = self._contents.tokens[sequence.slot, : sequence.length]
    text = decode(self._setup.tokenizer, row[start:])
    stopped = automaton == self._setup.matched_state
    end = self._end(row, self._room(sequence), stopped=stopped)
    sequence.call = sequence.episode.end_step(text, end)
    if sequence.call is None:
      self._finish(sequence)

  def _end(self, row: np.ndarray, room: int, *, stopped: bool) -> StepEnd:
    """Where a step stopped, whose tokens `row` ends with."""
    if stopped:
      return StepEnd.STOP_STRING
    if bool(self._setup.ends_turn[row[-1]]):
      return StepEnd.TURN
    return StepEnd.STEP_BUDGET if room > 0 else StepEnd.RESPONSE_BUDGET

  # Tools.

  def _dispatch(self, called: list[_Sequence]) -> None:
    """Hands calls to the tools; one that could not be parsed has its answer."""
    now = time.monotonic()
    to_tools = []
    for sequence in called:
      call, deadline = sequence.call, sequence.episode.deadline
      if isinstance(call, ToolCall):
        to_tools.append(Call(sequence, call.name, call.argument, deadline, now))
      elif call is not None:
        malformed = Call(sequence, "", call.reason, deadline, now)
        self._calls.answer(malformed, refusal(call))
    self._calls.submit(to_tools)

  def _hold(self, num_ready: int) -> bool:
    """Waits for tools or retrieval, if that is better than to decode on.

    A program takes as long for one slot as for all. So where most slots wait,
    the others do too, but not for long. Slots whose answers come at about the
    same time go on together. A late one holds up no other slot.

    Returns:
      Whether it waited, and answers may have come.
    """
    num_open = self._calls.num_pending + (
      len(self._between.open) if self._between is not None else 0
    )
    num_runnable = num_ready + len(self._active)
    if not num_open or (self._held_since is None and num_runnable > num_open):
      self._held_since = None
      return False
    now = time.perf_counter()
    left_s = math.inf
    if num_runnable:
      if self._held_since is None:
        self._held_since = now
      left_s = self._held_since + self._config.gather_s - now
      if left_s <= 0:
        self._held_since = None
        return False
    sources: list[Answers] = [self._calls]
    if self._between is not None:
      sources.append(self._between)
    for_tools = bool(self._calls.num_pending)
    wait_for_news(self._calls.changed, sources, left_s)
    seconds = time.perf_counter() - now
    if for_tools:
      self._stats.tool_seconds += seconds
    else:
      self._stats.retrieval_seconds += seconds
    return True

  def _collect_tools(self) -> list[_Sequence]:
    """Sequences whose tool has answered, observation appended to `piece`.

    Those of them that wait between steps are not ready yet.
    """
    answers = self._calls.take()
    now = time.monotonic()
    observed = [
      call.owner for call, result in answers if self._observe(call, result, now)
    ]
    if self._between is None:
      return observed
    boundaries = {s: self._boundary(s) for s in observed}
    waiting = [s for s in observed if self._between.wants(boundaries[s])]
    if waiting:
      self._between.submit(
        [boundaries[s] for s in sorted(waiting, key=lambda s: s.number)]
      )
    return [s for s in observed if s not in waiting]

  def _observe(
    self, call: Call[_Sequence], result: ToolResult, now: float
  ) -> bool:
    """Queues the observation; False if it ends the trajectory."""
    sequence = call.owner
    assert sequence.call is not None
    ids = self._setup.observation(result.text)
    step_id = sequence.episode.step_id
    goes_on = sequence.episode.observe(
      sequence.call,
      result,
      decode(self._setup.tokenizer, ids),
      seconds=now - call.asked,
      now=now,
      fits=len(ids) < self._room(sequence),
    )
    if not goes_on:
      self._finish(sequence)
      return False
    sequence.append(TokenKind.OBSERVATION, step_id, len(ids))
    sequence.piece = ids
    return True

  # Between steps.

  def _boundary(self, sequence: _Sequence) -> Boundary:
    request, episode = sequence.request, sequence.episode
    return Boundary(
      owner=sequence,
      request=request,
      step_id=episode.step_id,
      history=tuple(episode.steps),
      events=tuple(episode.events),
      # The same whatever runs beside it.
      key=(
        self._seed,
        self._update,
        query_number(request.query),
        request.index,
        episode.step_id,
      ),
      deadline=episode.deadline,
    )

  def _collect_insertions(self) -> list[_Sequence]:
    """Sequences that have been answered, an inserted step in `piece`."""
    if self._between is None:
      return []
    answers = self._between.take()
    for boundary, insertion in answers:
      self._take(boundary.owner, insertion)
    return [boundary.owner for boundary, _ in answers]

  def _take(self, sequence: _Sequence, insertion: Insertion) -> None:
    episode = sequence.episode
    if not insertion.text:
      episode.insert(insertion.event)
      return
    ids = self._setup.encode(insertion.text)
    if len(ids) >= self._room(sequence):
      episode.insert(dataclasses.replace(insertion.event, outcome="no_room"))
      return
    sequence.append(TokenKind.RETRIEVED, episode.step_id, len(ids))
    sequence.piece = sequence.piece + ids
    episode.insert(insertion.event, decode(self._setup.tokenizer, ids))

  def _insert(self, sequences: list[_Sequence]) -> None:
    """Appends what came back to the slots, a fixed number at a time."""
    num_parts = self._setup.slot_parts
    part_slots = len(self._slots) // num_parts
    num_rows = min(self._config.insert_rows, part_slots)
    parts: list[list[_Sequence]] = [[] for _ in range(num_parts)]
    # Those of like length together: a program takes as long as its longest.
    for sequence in sorted(sequences, key=lambda s: (len(s.piece), s.number)):
      parts[sequence.slot // part_slots].append(sequence)
    for first in range(0, max(map(len, parts)), num_rows):
      slots, pieces, counts, limits = empty_insert(self._config, num_parts)
      for part, members in enumerate(parts):
        for column, sequence in enumerate(members[first : first + num_rows]):
          slots[part, column] = sequence.slot % part_slots
          row = part * num_rows + column
          pieces[row, : len(sequence.piece)] = sequence.piece
          counts[row] = len(sequence.piece)
          limits[row] = self._limit(sequence)
          sequence.piece = []
          self._active.add(sequence.slot)
      began = time.perf_counter()
      self._programs.insert(slots, pieces, counts, limits)
      self._cached(counts, began)

  def _cached(self, counts: np.ndarray, began: float) -> None:
    """Notes that tokens of some rows have been cached."""
    chunk = self._config.insert_chunk
    self._stats.cached_tokens += int(counts.clip(0).sum())
    self._stats.cache_positions += len(counts) * _round_up(
      int(counts.max()), chunk
    )
    self._stats.cache_seconds += time.perf_counter() - began

  # The end of a trajectory.

  def _finish(self, sequence: _Sequence) -> None:
    length, slot = sequence.length, sequence.slot
    contents, reason = self._contents, sequence.episode.finish_reason
    assert reason is not None
    assert contents is not None  # Nothing ends before its slot has stopped.
    kinds = np.empty(length, np.int8)
    step_ids = np.empty(length, np.int32)
    start = 0
    for kind, step_id, end in sequence.segments:
      kinds[start:end] = kind
      step_ids[start:end] = step_id
      start = end
    request = sequence.request
    version = None
    if self._between is not None and request.hybrid:
      version = self._between.version
    self._finished[sequence.number] = Trajectory(
      tokens=contents.tokens[slot, :length].copy(),
      kinds=kinds,
      step_ids=step_ids,
      log_probs=contents.log_probs[slot, :length].copy(),
      entropies=contents.entropies[slot, :length].copy(),
      query_id=request.query.query_id,
      group_id=request.group_id,
      index=request.index,
      hybrid=request.hybrid,
      policy_version=self._update,
      finish_reason=reason,
      events=tuple(sequence.episode.events),
      buffer_version=version,
    )
    self._slots[slot] = None

  def _slot(self, slot: int) -> _Sequence:
    sequence = self._slots[slot]
    assert sequence is not None
    return sequence

  def _room(self, sequence: _Sequence) -> int:
    """Tokens left of the response budget, whatever wrote the others."""
    return self._config.max_response_tokens - sequence.response_tokens

  def _limit(self, sequence: _Sequence) -> int:
    """Length at which the step that begins now has to stop."""
    return sequence.length + min(
      self._config.max_step_tokens, self._room(sequence)
    )


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
