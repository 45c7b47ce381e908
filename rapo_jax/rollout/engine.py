"""The hybrid-policy rollout (Algorithm 1, Eq. 4): device programs, host loop.

Between two device programs the host looks once at all slots. Those that
stopped have called a tool or ended. Tools run in threads; slots that wait for
one do not hold up the others. When results are back, every hybrid trajectory
among them draws whether it retrieves. Those that do ask the Step-Trace Buffer,
all that wait as one batch in a thread, while the others decode; observations
and retrieved steps that are there are appended together. A slow tool or search
changes when this happens, never which tokens come out: random streams belong
to sequences, not to slots or to time.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from rapo_jax import retrieval as retrieval_lib
from rapo_jax import tools as tools_lib
from rapo_jax.data import (
  Query,
  TextEncoder,
  check_query_ids,
  check_vocabulary,
)
from rapo_jax.data import end_ids as tokenizer_end_ids
from rapo_jax.errors import InputError
from rapo_jax.models import (
  KV_BLOCK,
  Decoder,
  end_token_ids,
  sharding,
  with_adapters_of,
)
from rapo_jax.rollout import automaton as automaton_lib
from rapo_jax.rollout import finite, processes, tool_runner
from rapo_jax.rollout.config import RolloutConfig, check_tool_settings
from rapo_jax.rollout.observation import ObservationEncoder
from rapo_jax.rollout.programs import (
  AdmissionArrays,
  Contents,
  Programs,
  empty_admission,
  empty_insert,
  empty_prompts,
)
from rapo_jax.rollout.retriever import Question, Retriever
from rapo_jax.tools.tags import ANSWER_END
from rapo_jax.trajectory import (
  FinishReason,
  RetrievalEvent,
  TokenKind,
  ToolEvent,
  Trajectory,
  decode,
)


@dataclasses.dataclass(frozen=True)
class RolloutRequest:
  """One trajectory that is wanted.

  Attributes:
    query: the question.
    prompt_tokens: its prompt.
    group_id: index of the question in its batch.
    index: index of the trajectory in its group.
    hybrid: whether it may retrieve.
  """

  query: Query
  prompt_tokens: Int[np.ndarray, " P"]
  group_id: int
  index: int
  hybrid: bool = False


@dataclasses.dataclass
class RolloutStats:
  """Where the time and the tokens of a rollout went.

  Attributes:
    seconds: wall time of the whole rollout.
    decode_seconds: in which the device sampled.
    cache_seconds: in which it prefilled and inserted.
    tool_seconds: in which the host waited for tools.
    retrieval_seconds: in which it waited for retrieval alone.
    retrieval_busy_seconds: in which a thread embedded histories and searched.
    sampled_tokens: written by the policy.
    decode_positions: slots times the tokens that the longest of them gained,
      over all chunks.
    cached_tokens: prompt, observation and retrieved tokens that were cached.
    cache_positions: computed for them, padding included.
    tools: what became of the calls of each tool, by name.
  """

  seconds: float = 0.0
  decode_seconds: float = 0.0
  cache_seconds: float = 0.0
  tool_seconds: float = 0.0
  retrieval_seconds: float = 0.0
  retrieval_busy_seconds: float = 0.0
  sampled_tokens: int = 0
  decode_positions: int = 0
  cached_tokens: int = 0
  cache_positions: int = 0
  tools: dict[str, tool_runner.ToolStats] = dataclasses.field(
    default_factory=dict
  )

  def numbers(self) -> dict[str, float]:
    """Times, speed and shares by name.

    `device_idle_fraction` is the part of the time in which no device program
    ran; `host_seconds` what is left of it without waiting; `slot_occupancy` the
    part of the decoding that slots gained tokens from, and `padding_fraction`
    the part of what was computed for the cache that was none.
    """
    device = self.decode_seconds + self.cache_seconds
    waiting = self.tool_seconds + self.retrieval_seconds
    seconds = max(self.seconds, 1e-9)
    return {
      "seconds": self.seconds,
      "decode_seconds": self.decode_seconds,
      "cache_seconds": self.cache_seconds,
      "tool_seconds": self.tool_seconds,
      "retrieval_seconds": self.retrieval_seconds,
      "retrieval_busy_seconds": self.retrieval_busy_seconds,
      "host_seconds": self.seconds - device - waiting,
      "tokens_per_second": self.sampled_tokens / seconds,
      "device_idle_fraction": 1 - device / seconds,
      "slot_occupancy": self.sampled_tokens / max(self.decode_positions, 1),
      "padding_fraction": 1 - self.cached_tokens / max(self.cache_positions, 1),
    }

  def tool_numbers(self) -> dict[str, float]:
    """Counts and times of each tool, as `tools/<tool>/<figure>`."""
    return {
      f"tools/{tool}/{name}": value
      for tool, stats in self.tools.items()
      for name, value in stats.numbers().items()
    }


def group_requests(
  queries: Sequence[Query],
  prompts: Sequence[Int[np.ndarray, " _"]],
  *,
  num_generations: int,
  num_hybrid: int,
) -> list[RolloutRequest]:
  """`num_generations` requests a query, the last `num_hybrid` hybrid."""
  return [
    RolloutRequest(
      query, prompt, group, index, index >= num_generations - num_hybrid
    )
    for group, (query, prompt) in enumerate(zip(queries, prompts, strict=True))
    for index in range(num_generations)
  ]


@dataclasses.dataclass(eq=False)
class _Sequence:
  """A trajectory in the making. The device holds its tokens."""

  request: RolloutRequest
  number: int
  deadline: float
  slot: int = -1
  length: int = 0
  step_id: int = 0
  tool_calls: int = 0
  malformed_calls: int = 0
  segments: list[tuple[TokenKind, int, int]] = dataclasses.field(
    default_factory=list
  )  # (kind, step_id, end)
  steps: list[str] = dataclasses.field(default_factory=list)
  events: list[ToolEvent | RetrievalEvent] = dataclasses.field(
    default_factory=list
  )
  piece: list[int] = dataclasses.field(default_factory=list)

  def append(self, kind: TokenKind, step_id: int, count: int) -> None:
    self.length += count
    self.segments.append((kind, step_id, self.length))

  @property
  def response_tokens(self) -> int:
    return self.length - len(self.request.prompt_tokens)


_Call = tool_runner.Call[_Sequence]
_Outcome = retrieval_lib.Hit | retrieval_lib.Miss | retrieval_lib.Failed


class RolloutEngine:
  """Generates trajectories with tools and, for hybrid ones, retrieval.

  Args:
    config: budgets and shapes.
    tokenizer: Hugging Face tokenizer of the policy.
    vocab_size: rows of the policy's output head.
    tools: tools by name; the name is the tag that calls them.
    buffer: Step-Trace Buffer for hybrid trajectories, or None. It may grow
      between two rollouts.
    retrieval: how a trace is chosen among the nearest.
    mesh: devices that share the slots and the policy; None for one device.
      With devices of several processes each of them makes the same engines
      and starts the same rollouts; the tools and the buffer are asked by the
      first process alone.
    policy: one with adapters whose base is that of every rollout. On a mesh
      what is frozen is placed once, here, and stays there between rollouts;
      without it each rollout places the whole model.
    end_ids: tokens that end the policy's turn, as its model's files name them
      (`models.end_token_ids`); None reads those in the folder that the
      tokenizer was loaded from. The tokenizer's end of text, and what its
      chat template ends a turn with, are always among them.

  Raises:
    InputError: a limit leaves no room for a result's tags, an object is no tool
      (`tools.check_tools`), a tool's policy is out of range, a limit names no
      tool, the mesh does not divide the slots, the policy has no row for a
      token of the tokenizer, or nothing ends its turn.
  """

  def __init__(
    self,
    config: RolloutConfig,
    tokenizer: Any,
    *,
    vocab_size: int,
    tools: Mapping[str, tools_lib.Tool],
    buffer: retrieval_lib.Buffer | None = None,
    retrieval: retrieval_lib.RetrievalConfig | None = None,
    mesh: jax.sharding.Mesh | None = None,
    policy: Decoder | None = None,
    end_ids: Iterable[int] | None = None,
  ):
    check_vocabulary(tokenizer, vocab_size)
    if mesh is not None:
      sharding.check_rows("num_slots", config.num_slots, mesh)
    self._tags = tools_lib.check_tools(tools)
    check_tool_settings(config, tools)
    self._config = config
    self._mesh = mesh
    self._tokenizer = tokenizer
    self._tools = dict(tools)
    self._buffer = (
      None if buffer is None else retrieval_lib.GuardedBuffer(buffer)
    )
    self._retrieval = retrieval or retrieval_lib.RetrievalConfig()
    self.stop_strings = self._tags.stop_strings
    vocabulary = automaton_lib.token_bytes(tokenizer, vocab_size)
    table = automaton_lib.stop_automaton(self.stop_strings, vocabulary)
    self._matched_state = table.matched_state
    self._eos = np.zeros(vocab_size, bool)
    if end_ids is None:
      folder = tokenizer.name_or_path
      end_ids = end_token_ids(folder) if folder else ()
    self._eos[_end_ids(tokenizer, end_ids, vocab_size)] = True
    self._on_device = sharding.replicate((table.table, self._eos), mesh)
    # Nothing in a tool's text or in a retrieved step becomes a control token.
    self._encode = TextEncoder(tokenizer, self._tags)
    self._observation = ObservationEncoder(
      self._tags,
      self._encode,
      tokenizer,
      max_tokens=config.max_tool_tokens,
      longest_token=max(map(len, vocabulary)),
    )
    self._runner = tool_runner.ToolRunner(
      self._tools, config, max_chars=self._observation.num_chars_read
    )
    self.max_length = _round_up(
      config.max_prompt_tokens + config.max_response_tokens, KV_BLOCK
    )
    self._prompt_width = _round_up(config.max_prompt_tokens, KV_BLOCK)
    self._slot_parts = sharding.row_parts(mesh)
    self._placed: Decoder | None = None
    if policy is not None and policy.config.lora is not None:
      self._placed = self._own_copy(policy)

  def rollout(
    self,
    model: Decoder,
    requests: Sequence[RolloutRequest],
    *,
    seed: int,
    update: int,
    greedy: bool = False,
  ) -> tuple[list[Trajectory], RolloutStats]:
    """Generates one trajectory a request, in the order of the requests.

    Args:
      model: the policy, wherever it lies and in whatever dtype. It is sampled
        from in `config.dtype`.
      requests: what is wanted. Requests of one prompt share it; it is
        computed once.
      seed: of all that is random here.
      update: number of updates behind the policy; part of every random key.
      greedy: take the likeliest tokens.

    Raises:
      InputError: a prompt is longer than `max_prompt_tokens`, or holds an id
        that the policy has no row for; or two questions have one id, which
        random streams and results go by.
      NonFiniteRollout: a sampled token's log-prob or entropy is not finite.
    """
    check_query_ids([request.query for request in requests])
    for request in requests:
      self._check_prompt(request)
    model = (
      self._place(model)
      if self._placed is None
      else with_adapters_of(self._placed, model)
    )
    stop_table, eos = self._on_device
    programs = Programs(
      model,
      self._config,
      mesh=self._mesh,
      stop_table=stop_table,
      eos=eos,
      max_length=self.max_length,
      prompt_width=self._prompt_width,
      seed=seed,
      update=update,
      greedy=greedy,
    )

    def lead(
      programs: Programs,
    ) -> tuple[list[Trajectory], RolloutStats]:
      with contextlib.ExitStack() as stack:
        calls = stack.enter_context(contextlib.closing(self._runner.session()))
        retriever: Retriever[_Sequence] | None = None
        if self._buffer is not None:
          retriever = Retriever(self._buffer, self._retrieval, calls.changed)
          stack.enter_context(contextlib.closing(retriever))
        run = _Rollout(
          self, programs, calls, retriever, seed=seed, update=update
        )
        return run(requests)

    if self._mesh is not None and self._mesh.is_multi_process:
      trajectories, stats = processes.run_led(self._mesh, programs, lead)
    else:
      trajectories, stats = lead(programs)
    finite.check_finite(trajectories, self._config.dtype)
    return trajectories, stats

  def _check_prompt(self, request: RolloutRequest) -> None:
    prompt, question = request.prompt_tokens, request.query.query_id
    if len(prompt) > self._config.max_prompt_tokens:
      raise InputError(
        f"a prompt holds at most {self._config.max_prompt_tokens} tokens "
        f"(max_prompt_tokens), that of question {question!r} has "
        f"{len(prompt)}: raise the limit or drop the question."
      )
    if not len(prompt):
      raise InputError(
        f"a prompt holds at least one token, that of question {question!r} "
        "has none: correct the chat template."
      )
    rows = len(self._eos)
    # An id beyond them would be read as another one, without an error.
    beyond = prompt[(prompt < 0) | (prompt >= rows)]
    if len(beyond):
      raise InputError(
        f"a prompt holds ids from 0 to {rows - 1}, one for each row of the "
        f"embedding, that of question {question!r} has {int(beyond[0])}: "
        "encode it with the tokenizer of the policy."
      )

  def _place(self, model: Decoder) -> Decoder:
    return sharding.place(
      model,
      mesh=self._mesh,
      rules=sharding.ROLLOUT_RULES,
      dtype=self._config.dtype,
    )

  def _own_copy(self, policy: Decoder) -> Decoder | None:
    """The policy placed, if that made arrays of its own.

    Others may be donated away by an update.
    """
    if self._mesh is None:
      return None
    placed = self._place(policy)
    return None if placed is policy else placed


class _Rollout:
  """One call of `RolloutEngine.rollout`: the state of the host loop."""

  def __init__(
    self,
    engine: RolloutEngine,
    programs: Programs,
    calls: tool_runner.ToolSession[_Sequence],
    retriever: Retriever[_Sequence] | None,
    *,
    seed: int,
    update: int,
  ):
    self._engine = engine
    self._config = engine._config
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
    self._retriever = retriever
    self._buffer_version = (
      None if engine._buffer is None else engine._buffer.version
    )
    self._held_since: float | None = None
    self._stats = RolloutStats(tools=calls.stats)

  def __call__(
    self, requests: Sequence[RolloutRequest]
  ) -> tuple[list[Trajectory], RolloutStats]:
    began = time.perf_counter()
    waiting = collections.deque(
      _Sequence(request, number, deadline=0.0)
      for number, request in enumerate(requests)
    )
    ready: list[_Sequence] = []
    while len(self._finished) < len(requests):
      self._admit(waiting)
      ready += self._collect_tools() + self._collect_steps()
      if self._hold(len(ready)):
        continue
      if ready:
        self._insert(ready)
        ready = []
      if self._active:
        self._decode()
    self._stats.seconds = time.perf_counter() - began
    if self._retriever is not None:
      self._stats.retrieval_busy_seconds = self._retriever.busy_seconds
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
        sequence.deadline = time.monotonic() + self._config.trajectory_timeout_s
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
    width = self._engine._prompt_width
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
    calls: list[_Call] = []
    most = 0
    for slot in sorted(self._active):
      sequence = self._slot(slot)
      count = int(progress.lengths[slot]) - sequence.length
      self._stats.sampled_tokens += count
      most = max(most, count)
      if progress.active[slot]:
        sequence.length += count
      else:
        calls += self._stopped(sequence, count, int(progress.automaton[slot]))
    self._stats.decode_positions += most * len(self._slots)
    self._dispatch(calls)

  def _stopped(
    self, sequence: _Sequence, count: int, automaton: int
  ) -> list[_Call]:
    """Ends the step of a slot that has stopped, `count` tokens after a look."""
    assert self._contents is not None  # Read whenever a slot stops.
    self._active.discard(sequence.slot)
    start = sequence.segments[-1][2]
    sequence.append(TokenKind.POLICY, sequence.step_id, count)
    row = self._contents.tokens[sequence.slot, : sequence.length]
    text = decode(self._engine._tokenizer, row[start:])
    sequence.steps.append(text)
    matched = bool(automaton == self._engine._matched_state)
    return self._end_of_step(sequence, text, row, stopped=matched)

  def _end_of_step(
    self, sequence: _Sequence, text: str, row: np.ndarray, *, stopped: bool
  ) -> list[_Call]:
    """Finishes the trajectory or returns the tool call that it waits for."""
    if not stopped:
      if bool(self._engine._eos[row[-1]]):
        self._finish(sequence, FinishReason.EOS)
      elif sequence.response_tokens >= self._config.max_response_tokens:
        self._finish(sequence, FinishReason.LENGTH)
      else:
        self._finish(sequence, FinishReason.STEP_LIMIT)
      return []
    ends = {tag: text.find(tag) for tag in self._engine.stop_strings}
    # Bytes that complete no character can take a tag's bytes with them when
    # they are decoded: then there is a stop without a tag, a malformed call.
    found = ((at, tag) for tag, at in ends.items() if at >= 0)
    first = min(found, default=(0, ""))[1]
    if first == ANSWER_END:
      self._finish(sequence, FinishReason.ANSWER)
      return []
    if sequence.tool_calls >= self._config.max_tool_calls:
      self._finish(sequence, FinishReason.TOOL_LIMIT)
      return []
    sequence.tool_calls += 1
    call = self._engine._tags.parse_call(text)
    if isinstance(call, tools_lib.MalformedCall):
      sequence.malformed_calls += 1
      name, argument = "", call.reason
    else:
      sequence.malformed_calls = 0
      name, argument = call.name, call.argument
    now = time.monotonic()
    return [_Call(sequence, name, argument, sequence.deadline, now)]

  # Tools.

  def _dispatch(self, calls: list[_Call]) -> None:
    """Hands calls to the tools; one that could not be parsed has its answer."""
    self._calls.submit([call for call in calls if call.name])
    for call in calls:
      if not call.name:
        self._calls.answer(call, _refusal(call.argument))

  def _hold(self, num_ready: int) -> bool:
    """Waits for tools or retrieval, if that is better than to decode on.

    A program takes as long for one slot as for all. So where most slots wait,
    the others do too, but not for long: slots whose answers come at about the
    same time go on together, and one that is late holds up nobody.

    Returns:
      Whether it waited, and answers may have come.
    """
    num_open = self._calls.num_pending + (
      len(self._retriever.open) if self._retriever is not None else 0
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
    sources: list[tool_runner.Answers] = [self._calls]
    if self._retriever is not None:
      sources.append(self._retriever)
    for_tools = bool(self._calls.num_pending)
    tool_runner.wait_for_news(self._calls.changed, sources, left_s)
    seconds = time.perf_counter() - now
    if for_tools:
      self._stats.tool_seconds += seconds
    else:
      self._stats.retrieval_seconds += seconds
    return True

  def _collect_tools(self) -> list[_Sequence]:
    """Sequences whose tool has answered, observation appended to `piece`.

    Those of them that retrieve ask, and are not ready yet.
    """
    answers = self._calls.take()
    now = time.monotonic()
    observed = [
      call.owner for call, result in answers if self._observe(call, result, now)
    ]
    asking = [s for s in observed if self._wants_retrieval(s)]
    if self._retriever is not None and asking:
      self._retriever.submit(
        [
          Question(
            s,
            s.request.query.question,
            tuple(s.steps),
            self._boundary_key(s),
            s.deadline,
          )
          for s in sorted(asking, key=lambda sequence: sequence.number)
        ]
      )
    return [s for s in observed if s not in asking]

  def _observe(
    self, call: _Call, result: tools_lib.ToolResult, now: float
  ) -> bool:
    """Queues the observation; False if it ends the trajectory."""
    sequence = call.owner
    ids = self._engine._observation(result.text)
    text = decode(self._engine._tokenizer, ids)
    sequence.events.append(
      ToolEvent(
        step_id=sequence.step_id,
        name=call.name,
        argument=call.argument,
        result=text,
        status=result.status if call.name else "malformed",
        seconds=now - call.asked,
      )
    )
    if sequence.malformed_calls >= self._config.max_malformed_calls:
      self._finish(sequence, FinishReason.MALFORMED)
      return False
    if now > sequence.deadline:
      self._finish(sequence, FinishReason.TIMEOUT)
      return False
    # Room for the observation and for one token after it.
    if len(ids) >= self._room(sequence):
      self._finish(sequence, FinishReason.LENGTH)
      return False
    sequence.append(TokenKind.OBSERVATION, sequence.step_id, len(ids))
    sequence.piece = ids
    sequence.steps[-1] += text
    sequence.step_id += 1
    return True

  # Retrieval.

  def _wants_retrieval(self, sequence: _Sequence) -> bool:
    """Draws at a step boundary, from the sequence's own stream."""
    request = sequence.request
    if not request.hybrid or self._retriever is None:
      return False
    if self._engine._retrieval.granularity == "trajectory" and any(
      isinstance(event, RetrievalEvent) and event.outcome == "hit"
      for event in sequence.events
    ):
      return False
    draw = np.random.default_rng(self._boundary_key(sequence))
    return bool(draw.random() < self._config.retrieval_prob)

  def _boundary_key(self, sequence: _Sequence) -> tuple[int, ...]:
    """Integers of a step boundary, the same whatever runs beside it."""
    request = sequence.request
    return (
      self._seed,
      self._update,
      query_number(request.query),
      request.index,
      sequence.step_id,
    )

  def _collect_steps(self) -> list[_Sequence]:
    """Sequences that have been answered, a retrieved step in `piece`."""
    if self._retriever is None:
      return []
    answers = self._retriever.take()
    for sequence, outcome in answers:
      self._take(sequence, outcome)
    return [sequence for sequence, _ in answers]

  def _take(self, sequence: _Sequence, outcome: _Outcome) -> None:
    step_id = sequence.step_id
    if not isinstance(outcome, retrieval_lib.Hit):
      name = "miss"
      if isinstance(outcome, retrieval_lib.Failed):
        name = "failed" if outcome.attempted else "open"
      sequence.events.append(RetrievalEvent(step_id, name))
      return
    trace = outcome.trace
    ids = self._engine._encode(f"<retrieve>{outcome.text}</retrieve>")
    fits = len(ids) < self._room(sequence)
    sequence.events.append(
      RetrievalEvent(
        step_id,
        "hit" if fits else "no_room",
        similarity=outcome.similarity,
        reward=trace.reward,
        trace_id=trace.trace_id,
        source=trace.source,
        answers=outcome.answers,
      )
    )
    if fits:
      sequence.append(TokenKind.RETRIEVED, step_id, len(ids))
      sequence.piece = sequence.piece + ids
      sequence.steps.append(decode(self._engine._tokenizer, ids))
      sequence.step_id += 1

  def _insert(self, sequences: list[_Sequence]) -> None:
    """Appends what came back to the slots, a fixed number at a time."""
    num_parts = self._engine._slot_parts
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

  def _finish(self, sequence: _Sequence, reason: FinishReason) -> None:
    length, slot = sequence.length, sequence.slot
    contents = self._contents
    assert contents is not None  # Nothing ends before its slot has stopped.
    kinds = np.empty(length, np.int8)
    step_ids = np.empty(length, np.int32)
    start = 0
    for kind, step_id, end in sequence.segments:
      kinds[start:end] = kind
      step_ids[start:end] = step_id
      start = end
    request = sequence.request
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
      events=tuple(sequence.events),
      buffer_version=self._buffer_version if request.hybrid else None,
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


def query_number(query: Query) -> int:
  """A 32-bit number of a query that is the same in every process."""
  return zlib.crc32(query.query_id.encode())


def _refusal(reason: str) -> tools_lib.ToolResult:
  return tools_lib.ToolResult(
    f"malformed tool call: {reason}", tools_lib.ToolStatus.ERROR
  )


def _end_ids(
  tokenizer: Any, named: Iterable[int], vocab_size: int
) -> list[int]:
  """Tokens that end a turn: by tokenizer, chat template and model files.

  Padding is not one of them.

  Raises:
    InputError: there is none, or one has no row in the embedding.
  """
  ids = {*tokenizer_end_ids(tokenizer), *named}
  if not ids:
    raise InputError(
      "a policy must have a token that ends its turn, and neither the "
      "tokenizer (eos_token), its chat template nor the model's "
      "generation_config.json (eos_token_id) names one: set eos_token."
    )
  if not all(0 <= token_id < vocab_size for token_id in ids):
    raise InputError(
      f"tokens that end a turn must have ids from 0 to {vocab_size - 1}, one "
      f"for each row of the embedding, got {sorted(ids)}: correct "
      "eos_token_id in the model's config.json and generation_config.json."
    )
  return sorted(ids)


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
