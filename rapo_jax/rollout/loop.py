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
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from rapo_jax.rollout.between import BetweenSession, Boundary, Insertion
from rapo_jax.rollout.config import RolloutConfig
from rapo_jax.rollout.episode import Episode, StepEnd, refusal
from rapo_jax.rollout.forks import Family, Fork, ForkRule, step_uncertainty
from rapo_jax.rollout.programs import (
  AdmissionArrays,
  Contents,
  SlotPrograms,
  empty_admission,
  empty_fork,
  empty_insert,
  empty_prompts,
  rows_to_read,
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
from rapo_jax.trajectory import RetrievalEvent, TokenKind, Trajectory, decode


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
  ended: bool = False
  # Of the slot, when it stopped last.
  contents: Contents | None = None
  # Of one that may be forked, or was.
  family: Family[_Sequence] | None = None
  parent: int | None = None
  shared_steps: int = 0
  cuts: list[_Cut] = dataclasses.field(default_factory=list)
  uncertainties: list[float] = dataclasses.field(default_factory=list)
  # Before inserted steps that a twin is to do without; and of a twin, whose.
  probes: list[_Cut] = dataclasses.field(default_factory=list)
  original: _Sequence | None = None

  @property
  def num_cuts(self) -> int:
    return len(self.cuts)

  @property
  def prompt_length(self) -> int:
    return len(self.request.prompt_tokens)

  def cut(self) -> _Cut:
    """The sequence as it stands, for others that begin as it did."""
    return _Cut(self.length, len(self.segments), self.episode.copy())

  def become(self, parent: _Sequence, fork: Fork) -> None:
    """Takes over the first steps of another one, or its prompt alone."""
    if fork.parent is None or not fork.steps:
      self.append(TokenKind.PROMPT, -1, self.prompt_length)
    else:
      self.take_over(parent, parent.cuts[fork.steps - 1])
      self.cuts = parent.cuts[: fork.steps]
      self.uncertainties = parent.uncertainties[: fork.steps]
    self.parent, self.shared_steps = fork.parent, fork.steps

  def twin(self, cut: _Cut) -> _Sequence:
    """The sequence once more, from a cut on."""
    twin = _Sequence(self.request, self.number, cut.episode, original=self)
    twin.take_over(self, cut)
    twin.parent, twin.shared_steps = self.request.index, cut.episode.step_id
    return twin

  def take_over(self, parent: _Sequence, cut: _Cut) -> None:
    """Begins as another one did up to a cut."""
    self.length = cut.length
    self.segments = parent.segments[: cut.segments]
    self.episode = cut.episode.copy()

  def append(self, kind: TokenKind, step_id: int, count: int) -> None:
    self.length += count
    self.segments.append((kind, step_id, self.length))

  @property
  def response_tokens(self) -> int:
    return self.length - self.prompt_length


class _Cut(NamedTuple):
  """A sequence behind an observation, where others can begin as it did."""

  length: int
  segments: int
  episode: Episode


class _Copy(NamedTuple):
  """A sequence that starts in its slot as a copy of what is in another."""

  sequence: _Sequence
  source: int


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
    forks: who is forked; None for nobody.
    seed: of all that is random.
    update: number of updates behind the policy.
  """

  def __init__(
    self,
    setup: Setup,
    programs: SlotPrograms,
    calls: ToolSession[_Sequence],
    between: BetweenSession | None,
    forks: ForkRule | None,
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
    self._waiting: collections.deque[_Sequence] = collections.deque()
    self._prefilled: collections.deque[tuple[int, _Sequence]] = (
      collections.deque()
    )
    # Of each slot: whether it decodes, how long it was at the last look, and
    # whether a twin is in it.
    num_slots = self._config.num_slots
    self._active = np.zeros(num_slots, bool)
    self._lengths = np.zeros(num_slots, np.int64)
    self._twinned = np.zeros(num_slots, bool)
    self._finished: dict[int, Trajectory] = {}
    self._twins: dict[int, list[Trajectory]] = collections.defaultdict(list)
    self._begun_twins: list[_Copy] = []
    self._num_open = 0
    self._calls = calls
    self._between = between
    self._forks = forks
    self._reserved: set[int] = set()
    # Questions that have no slots yet, and those that have.
    self._later: collections.deque[Family[_Sequence]] = collections.deque()
    self._families: list[Family[_Sequence]] = []
    self._held_since: float | None = None
    self._stats = RolloutStats(tools=calls.stats)

  def run(
    self, requests: Sequence[RolloutRequest]
  ) -> tuple[list[Trajectory], RolloutStats]:
    """Generates a trajectory for each request, in order."""
    began = time.perf_counter()
    sequences = [
      _Sequence(request, number, Episode(self._config, self._setup.tag_set))
      for number, request in enumerate(requests)
    ]
    if self._forks is None:
      self._waiting.extend(sequences)
    else:
      self._later.extend(self._make_families(self._forks, sequences))
    ready: list[_Sequence] = []
    copies: list[_Copy] = []
    self._num_open = len(requests)
    while self._num_open:
      self._waiting.extend(self._begin_families())
      ready += self._admit()
      ready += self._collect_tools() + self._collect_insertions()
      released, started = self._grow()
      ready, copies = ready + released, copies + started + self._begun_twins
      self._begun_twins = []
      if self._hold(len(ready) + len(copies)):
        continue
      if ready:
        self._insert(ready)
        ready = []
      if copies:
        # Behind the inserts: what is copied has its observation.
        self._copy(copies)
        copies = []
      if self._active.any():
        self._decode()
    self._stats.seconds = time.perf_counter() - began
    if self._between is not None:
      self._stats.retrieval_busy_seconds = self._between.busy_seconds
    return [self._with_twins(i) for i in range(len(requests))], self._stats

  def _with_twins(self, number: int) -> Trajectory:
    """A finished trajectory, with its twins by the step that they lack."""
    twins = sorted(self._twins[number], key=lambda twin: twin.shared_steps)
    return dataclasses.replace(self._finished[number], twins=tuple(twins))

  # Admission.

  def _admit(self) -> list[_Sequence]:
    """Starts sequences in free slots.

    Returns:
      Those that begin with steps, in `piece`.
    """
    prefixed: list[_Sequence] = []
    if not (self._prefilled or self._waiting):
      return prefixed
    free = self._free()
    # A question's rollouts that may fork have slots of their own.
    own = self._forks is not None
    while (free or own) and (self._prefilled or self._waiting):
      if not self._prefilled:
        self._prefill()
      arrays = empty_admission(self._config)
      started = []
      while (free or own) and self._prefilled:
        row, sequence = self._prefilled.popleft()
        if not own:
          sequence.slot = free.pop(0)
        now = time.monotonic()
        sequence.episode.deadline = now + self._config.trajectory_timeout_s
        arrays.source[sequence.slot] = row
        self._slots[sequence.slot] = sequence
        self._reserved.discard(sequence.slot)
        started.append(sequence)
      self._start(arrays, started)
      prefixed += [s for s in started if s.request.prefix]
    for sequence in prefixed:
      self._begin_with_steps(sequence)
    return prefixed

  def _prefill(self) -> None:
    """Runs the next distinct prompts through the model, each once."""
    rows: dict[bytes, int] = {}
    prompts: list[np.ndarray] = []
    while self._waiting:
      prompt = self._waiting[0].request.prompt_tokens
      # Ids of one width: equal bytes are equal prompts.
      key = prompt.astype(np.int64).tobytes()
      if key not in rows:
        if len(rows) == self._config.prefill_rows:
          break
        rows[key] = len(rows)
        prompts.append(prompt)
      self._prefilled.append((rows[key], self._waiting.popleft()))
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
      sequence.append(TokenKind.PROMPT, -1, sequence.prompt_length)
      arrays.queries[sequence.slot] = query_number(sequence.request.query)
      arrays.indices[sequence.slot] = sequence.request.index
      arrays.limits[sequence.slot] = self._limit(sequence)
      self._activate(sequence)
    self._programs.admit(*arrays)

  def _activate(self, sequence: _Sequence) -> None:
    """Notes that a slot decodes from the next program on."""
    self._active[sequence.slot] = True
    self._lengths[sequence.slot] = sequence.length
    self._twinned[sequence.slot] = sequence.original is not None

  def _begin_with_steps(self, sequence: _Sequence) -> None:
    """Queues the steps that a sequence begins with, behind its prompt."""
    self._active[sequence.slot] = False
    for step in sequence.request.prefix:
      event = RetrievalEvent(sequence.episode.step_id, "hit")
      self._queue_step(sequence, step.tolist(), event)

  # Decoding.

  def _decode(self) -> None:
    """Samples a chunk and handles the slots that stopped in it."""
    began = time.perf_counter()
    progress = self._programs.decode()
    stopped = np.flatnonzero(self._active & ~progress.active).tolist()
    contents = self._read(stopped)
    seconds = time.perf_counter() - began
    self._stats.decode_seconds += seconds
    counts = np.where(self._active, progress.lengths - self._lengths, 0)
    self._lengths += counts
    total = int(counts.sum())
    of_twins = int(counts[self._twinned].sum())
    self._stats.sampled_tokens += total
    self._stats.twin_tokens += of_twins
    self._stats.twin_seconds += seconds * of_twins / max(total, 1)
    self._stats.decode_positions += int(counts.max()) * len(self._slots)
    called: list[_Sequence] = []
    for slot, held in zip(stopped, contents, strict=True):
      sequence = self._slot(slot)
      sequence.contents = held
      self._stopped(
        sequence, int(progress.lengths[slot]), int(progress.automaton[slot])
      )
      if sequence.call is not None:
        called.append(sequence)
    self._dispatch(called)

  def _read(self, slots: list[int]) -> list[Contents]:
    """What each of some slots holds, read a fixed number at a time."""
    found: list[Contents] = []
    size = len(rows_to_read(self._config))
    for first in range(0, len(slots), size):
      chosen = slots[first : first + size]
      rows = rows_to_read(self._config)
      rows[: len(chosen)] = chosen
      held = self._programs.contents(rows)
      # Copies: a view would keep those of the others.
      found += [
        Contents(*(array[row].copy() for array in held))
        for row in range(len(chosen))
      ]
    return found

  def _stopped(self, sequence: _Sequence, length: int, automaton: int) -> None:
    """Ends the step of a slot that has stopped, `length` tokens long now."""
    assert sequence.contents is not None
    self._active[sequence.slot] = False
    start = sequence.length
    sequence.append(TokenKind.POLICY, sequence.episode.step_id, length - start)
    row = sequence.contents.tokens[:length]
    text = decode(self._setup.tokenizer, row[start:])
    if sequence.family is not None:
      entropies = sequence.contents.entropies[start:length]
      sequence.uncertainties.append(
        step_uncertainty(entropies, vocabulary=len(self._setup.ends_turn))
      )
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
    num_runnable = num_ready + int(np.count_nonzero(self._active))
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
    seconds = self._programs.hold(
      lambda most_s: wait_for_news(
        self._calls.changed, sources, min(left_s, most_s)
      ),
      runnable=num_runnable > 0,
    )
    if seconds is None:
      self._held_since = None
      return False
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
    if self._forks is not None:
      return [s for s in observed if not self._stands(s)]
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
    if sequence.family is not None:
      sequence.cuts.append(sequence.cut())
    return True

  # Forks.

  def _make_families(
    self, rule: ForkRule, sequences: Sequence[_Sequence]
  ) -> list[Family[_Sequence]]:
    """The rollouts of each question, in the order of the questions."""
    members: dict[int, list[_Sequence]] = {}
    for sequence in sequences:
      members.setdefault(sequence.request.group_id, []).append(sequence)
    families = []
    for own in members.values():
      own.sort(key=lambda s: s.request.index)
      query = query_number(own[0].request.query)
      family = Family(rule, own, (self._seed, self._update, query))
      for sequence in own:
        sequence.family = family
      families.append(family)
    return families

  def _begin_families(self) -> list[_Sequence]:
    """Gives slots to the next questions, and their first rollouts."""
    begun: list[_Sequence] = []
    while self._later:
      family = self._later[0]
      slots = self._free_in_one_part(family.num_slots)
      if not slots:
        break
      self._families.append(self._later.popleft())
      self._reserved.update(slots)
      family.slots = slots
      for sequence in family.begin_roots():
        sequence.slot = family.slots.pop(0)
        begun.append(sequence)
      if not family.room:
        self._place([], family)
    return begun

  @property
  def _part_slots(self) -> int:
    """Slots of each part that the mesh cuts them into."""
    return len(self._slots) // self._setup.slot_parts

  def _free(self) -> list[int]:
    return [
      slot
      for slot, there in enumerate(self._slots)
      if there is None and slot not in self._reserved
    ]

  def _free_in_one_part(self, count: int) -> list[int]:
    """So many free slots of the part that has most; none if it has fewer."""
    parts: list[list[int]] = [[] for _ in range(self._setup.slot_parts)]
    for slot in self._free():
      parts[slot // self._part_slots].append(slot)
    most = max(parts, key=len)
    return most[:count] if len(most) >= count else []

  def _stands(self, sequence: _Sequence) -> bool:
    """Whether a sequence waits for the others of its question."""
    family = sequence.family
    if family is None or not family.room:
      return False
    family.stand(sequence)
    return True

  def _grow(self) -> tuple[list[_Sequence], list[_Copy]]:
    """Forks rollouts of the questions of which all stand or have ended.

    Returns:
      Sequences that go on, and those that begin as copies.
    """
    released: list[_Sequence] = []
    copies: list[_Copy] = []
    for family in [one for one in self._families if one.is_due]:
      going, added = family.grow()
      released += going
      begun: list[_Copy] = []
      for sequence, fork in added:
        source = family.members[fork.parent or 0]
        sequence.become(source, fork)
        begun.append(_Copy(sequence, source.slot))
      self._place(begun, family)
      copies += begun
    self._families = [one for one in self._families if one.room]
    return released, copies

  def _place(self, copies: Sequence[_Copy], family: Family[_Sequence]) -> None:
    """Gives each copy a slot; once all have begun, the others are free.

    A slot whose rollout has ended goes to the last copy of it. So nothing is
    overwritten that another copy still reads.
    """
    ended = [member.slot for member in family.members if member.ended]
    freed = [] if family.room else ended
    last = {copy.source: n for n, copy in enumerate(copies)}
    in_place = {last[slot]: slot for slot in freed if slot in last}
    spare = family.slots + [slot for slot in freed if slot not in last]
    for n, copy in enumerate(copies):
      slot = in_place[n] if n in in_place else spare.pop(0)
      copy.sequence.slot = slot
      self._slots[slot] = copy.sequence
      self._reserved.discard(slot)
    family.slots = spare
    if not family.room:
      for slot in spare:
        self._slots[slot] = None
        self._reserved.discard(slot)

  def _copy(self, copies: Sequence[_Copy]) -> None:
    """Starts sequences as copies, a fixed number at a time."""
    num_parts = self._setup.slot_parts
    part_slots = self._part_slots
    num_rows = empty_fork(self._config, num_parts).slots.shape[1]
    parts: list[list[_Copy]] = [[] for _ in range(num_parts)]
    # Those that take their source's place overwrite it, and come last.
    for copy in sorted(copies, key=lambda c: c.sequence.slot == c.source):
      parts[copy.source // part_slots].append(copy)
    for first in range(0, max(map(len, parts)), num_rows):
      arrays = empty_fork(self._config, num_parts)
      for part, members in enumerate(parts):
        for column, copy in enumerate(members[first : first + num_rows]):
          sequence, row = copy.sequence, part * num_rows + column
          arrays.sources[part, column] = copy.source % part_slots
          arrays.slots[part, column] = sequence.slot % part_slots
          arrays.lengths[row] = sequence.length
          arrays.limits[row] = self._limit(sequence)
          arrays.queries[row] = query_number(sequence.request.query)
          arrays.indices[row] = sequence.request.index
          now = time.monotonic()
          sequence.episode.deadline = now + self._config.trajectory_timeout_s
          self._activate(sequence)
          if sequence.original is not None:
            self._stats.twins += 1
          else:
            self._stats.forks += 1
            self._stats.shared_tokens += sequence.response_tokens
      began = time.perf_counter()
      self._programs.fork(*arrays)
      self._stats.cache_seconds += time.perf_counter() - began

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
    if insertion.probe and sequence.original is None:
      sequence.probes.append(sequence.cut())
      self._num_open += 1
      self._begin_twins(sequence)
    self._queue_step(sequence, ids, insertion.event)

  def _queue_step(
    self, sequence: _Sequence, ids: list[int], event: RetrievalEvent
  ) -> None:
    """Queues a step of another agent, to be appended to a sequence."""
    episode = sequence.episode
    sequence.append(TokenKind.RETRIEVED, episode.step_id, len(ids))
    sequence.piece = sequence.piece + ids
    episode.insert(event, decode(self._setup.tokenizer, ids))

  def _insert(self, sequences: list[_Sequence]) -> None:
    """Appends what came back to the slots, a fixed number at a time."""
    num_parts = self._setup.slot_parts
    part_slots = self._part_slots
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
          self._activate(sequence)
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
    contents, reason = sequence.contents, sequence.episode.finish_reason
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
    trajectory = Trajectory(
      tokens=contents.tokens[:length].copy(),
      kinds=kinds,
      step_ids=step_ids,
      log_probs=contents.log_probs[:length].copy(),
      entropies=contents.entropies[:length].copy(),
      query_id=request.query.query_id,
      group_id=request.group_id,
      index=request.index,
      hybrid=request.hybrid,
      policy_version=self._update,
      finish_reason=reason,
      events=tuple(sequence.episode.events),
      buffer_version=version,
      parent=sequence.parent,
      shared_steps=sequence.shared_steps,
    )
    sequence.ended = True
    sequence.contents = None
    self._num_open -= 1
    if sequence.original is None:
      self._finished[sequence.number] = trajectory
    else:
      self._twins[sequence.number].append(trajectory)
    if sequence.family is None or not sequence.family.room:
      self._slots[slot] = None
    self._begin_twins(sequence)

  # Twins.

  def _begin_twins(self, sequence: _Sequence) -> None:
    """Starts twins that wait, of a sequence or of the one that it is a twin of.

    They are copied from the slot of the original, and take slots that nobody
    waits for, at once. The others take the original's slot when it has ended,
    one after another: those that leave out a later step come first, so that the
    slot still holds the prefix of the rest. A twin's own slot holds no more of
    the original than its prefix.
    """
    original = sequence.original or sequence
    while original.probes:
      slot = original.slot
      if self._slots[slot] is not None:
        spare = self._spare_slots(slot)
        if not spare:
          break
        slot = spare[0]
      twin = original.twin(original.probes.pop())
      twin.slot = slot
      self._slots[slot] = twin
      self._begun_twins.append(_Copy(twin, original.slot))

  def _spare_slots(self, slot: int) -> list[int]:
    """Free slots of a slot's part; none while requests wait for slots."""
    if self._waiting or self._prefilled:
      return []
    size = self._part_slots
    return [free for free in self._free() if free // size == slot // size]

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
