"""Runs tool calls in threads and answers each of them, whatever the tools do.

A tool may raise, hang, return what is no result, or a gigabyte of text; the
caller gets a `ToolResult` in any case, in time. Every tool has threads of its
own, so that one which is slow or hangs holds up no other. A thread that hangs
cannot be ended from outside: it is given up and replaced, up to a bound beyond
which the tool's calls are refused. Threads live while there is work and are
daemons, so the interpreter can exit.

Tools share the interpreter with the rollout. One that computes in Python
belongs into processes of its own, as `PythonTool` does it.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from rapo_jax import hosts
from rapo_jax import tools as tools_lib
from rapo_jax.errors import InputError
from rapo_jax.rollout.config import RolloutConfig
from rapo_jax.tools import ToolResult, ToolStatus

_log = logging.getLogger(__name__)
_MAX_ERROR_CHARS = 200

Owner = TypeVar("Owner")


@hosts.travels
@dataclasses.dataclass
class ToolStats:
  """What became of the calls of one tool.

  Attributes:
    counts: calls by how they ended (`ToolStatus`).
    seconds: for each call that a thread took up, from then to its answer.
    waited_seconds: for each call, how long it waited for a thread.
    retries: calls that were made again.
    hung: threads that hang in calls that were given up, at the end.
    own: what the tool counts itself since it was started, at the end.
  """

  counts: dict[str, int] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(map(str, ToolStatus), 0)
  )
  seconds: list[float] = dataclasses.field(default_factory=list)
  waited_seconds: list[float] = dataclasses.field(default_factory=list)
  retries: int = 0
  hung: int = 0
  own: dict[str, float] = dataclasses.field(default_factory=dict)

  def numbers(self) -> dict[str, float]:
    """The same as numbers by name: counts, and quantiles of the times.

    A quantile of no call is 0. What the tool counts under a name of ours is
    left out.
    """
    numbers: dict[str, float] = self.own | self.counts
    for name, values in (
      ("seconds", self.seconds),
      ("waited_seconds", self.waited_seconds),
    ):
      p50, p95, longest = np.quantile(values or [0.0], [0.5, 0.95, 1.0])
      numbers[f"{name}_p50"] = float(p50)
      numbers[f"{name}_p95"] = float(p95)
      numbers[f"{name}_max"] = float(longest)
    return numbers | {"retries": self.retries, "hung": self.hung}


@dataclasses.dataclass(eq=False)
class Call(Generic[Owner]):
  """A call that somebody waits for.

  Attributes:
    owner: who waits.
    name: of the tool; "" for a call that could not be parsed.
    argument: text for the tool.
    deadline: when the owner stops waiting, on the monotonic clock.
    asked: when the call was written, on the same clock.
  """

  owner: Owner
  name: str
  argument: str
  deadline: float
  asked: float


@dataclasses.dataclass(eq=False)
class _Batch:
  """Calls that one thread makes together.

  `started` is when the thread took them up: waiting for a free thread does not
  count against a call, or load would change what agents read.
  """

  lane: _Lane
  session: ToolSession
  calls: list[Call]
  queued: float
  started: float | None = None
  given_up: threading.Event = dataclasses.field(default_factory=threading.Event)

  def due(self, call: Call) -> float:
    """When to stop waiting for a call, on the monotonic clock."""
    if self.started is None:
      return call.deadline
    return min(call.deadline, self.started + self.lane.timeout_s)


@dataclasses.dataclass(eq=False)
class _Lane:
  """A tool, its threads and the calls that wait for one.

  `running` and `hung` count threads, `waiting` holds batches.
  """

  name: str
  tool: tools_lib.Tool
  max_running: int
  max_hung: int
  timeout_s: float
  retries: int
  idempotent: bool
  waiting: collections.deque[_Batch] = dataclasses.field(
    default_factory=collections.deque
  )
  running: int = 0
  hung: int = 0
  failure_logged: bool = False

  @property
  def is_stuck(self) -> bool:
    return self.hung >= self.max_hung


class ToolRunner:
  """Threads for the tools of an engine.

  Args:
    tools: tools by name.
    config: limits, deadlines, retries.
    max_chars: characters kept of a result. The rest is dropped where the tool
      returns it, so that no one carries it further.
    clock: monotonic, in seconds.

  Attributes:
    changed: guards everything that threads share.

  Raises:
    InputError: a tool's own policy is out of range.
  """

  def __init__(
    self,
    tools: Mapping[str, tools_lib.Tool],
    config: RolloutConfig,
    *,
    max_chars: int,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._max_chars = max_chars
    self._backoff_s = config.tool_backoff_s
    self._clock = clock
    self._lanes = {name: _lane(name, tools[name], config) for name in tools}
    # Guards the lanes, their batches and the sessions; tells sessions of
    # answers. Never held while a tool runs.
    self.changed = threading.Condition()

  def session(self) -> ToolSession[Any]:
    """Somebody's calls, apart from those of others."""
    return ToolSession(self)

  # All below with the lock held, but for what runs in a thread.

  def _queue(
    self, lane: _Lane, session: ToolSession, calls: list[Call]
  ) -> _Batch:
    batch = _Batch(lane, session, calls, self._clock())
    session.open.update(dict.fromkeys(calls, batch))
    return batch

  def _fill(self, lane: _Lane) -> None:
    """Starts threads for what waits, or refuses it."""
    while lane.waiting and not lane.is_stuck:
      if lane.running >= lane.max_running:
        return
      batch = self._take_up(lane)
      lane.running += 1
      thread = threading.Thread(
        target=self._work, args=(batch,), name=f"tool-{lane.name}", daemon=True
      )
      try:
        thread.start()
      except RuntimeError:
        lane.running -= 1
        self._refuse(batch, "the system gives no more threads")
    while lane.waiting:
      self._refuse(
        lane.waiting.popleft(),
        f"{lane.hung} earlier calls have not come back",
      )

  def _take_up(self, lane: _Lane) -> _Batch:
    batch = lane.waiting.popleft()
    batch.started = self._clock()
    # Some may have become late while they waited.
    is_open = batch.session.open
    batch.calls = [call for call in batch.calls if call in is_open]
    return batch

  def _refuse(self, batch: _Batch, reason: str) -> None:
    result = ToolResult(
      f"{batch.lane.name} is out of order: {reason}", ToolStatus.REFUSED
    )
    for call in batch.calls:
      self._answer(batch, call, result)

  def _answer(self, batch: _Batch, call: Call, result: ToolResult) -> None:
    """Answers a call, unless that has been done."""
    session = batch.session
    if session.open.get(call) is not batch:
      return
    del session.open[call]
    now = self._clock()
    started = now if batch.started is None else batch.started
    stats = session.stats[batch.lane.name]
    stats.counts[result.status] += 1
    stats.waited_seconds.append(started - batch.queued)
    if batch.started is not None:
      stats.seconds.append(now - started)
    session.answers.append((call, result))
    self.changed.notify_all()

  def _give_up(self, batch: _Batch) -> None:
    """Leaves a batch that nobody waits for any more to itself."""
    lane = batch.lane
    if batch.started is None:
      lane.waiting.remove(batch)
      return
    batch.given_up.set()
    lane.running -= 1
    lane.hung += 1
    if lane.is_stuck:
      _log.error(
        "%d calls of %s hang past their deadline (max_hung_calls): its calls "
        "are refused until one comes back.",
        *(lane.hung, lane.name),
      )
    self._fill(lane)

  # In the threads.

  def _work(self, batch: _Batch) -> None:
    """Makes calls until none waits or this thread has been given up."""
    lane = batch.lane
    while True:
      self._make(batch)
      with self.changed:
        if batch.given_up.is_set():
          lane.hung -= 1
          return
        if lane.is_stuck or not lane.waiting:
          lane.running -= 1
          return
        batch = self._take_up(lane)

  def _make(self, batch: _Batch) -> None:
    """Makes the calls of a batch and answers them, or queues them once more."""
    lane, calls = batch.lane, batch.calls
    results = self._attempt(lane, calls)
    if len(calls) == 1:
      results = self._try_again(batch, results)
    failed = [
      call
      for call, result in zip(calls, results, strict=True)
      if result.status is ToolStatus.FAILED
    ]
    alone = failed if len(calls) > 1 and lane.idempotent else []
    with self.changed:
      for call, result in zip(calls, results, strict=True):
        if call not in alone:
          self._answer(batch, call, result)
      # One argument that a tool fails at takes down the batch that it is in.
      again = [c for c in alone if batch.session.open.get(c) is batch]
      for call in again:
        batch.session.stats[lane.name].retries += 1
        lane.waiting.append(self._queue(lane, batch.session, [call]))
      self._fill(lane)

  def _try_again(
    self, batch: _Batch, results: list[ToolResult]
  ) -> list[ToolResult]:
    """Makes a single call again while it fails and there is time."""
    lane = batch.lane
    assert batch.started is not None
    for attempt in range(lane.retries):
      if results[0].status is not ToolStatus.FAILED:
        break
      pause = self._backoff_s * 2**attempt
      if self._clock() + pause >= batch.due(batch.calls[0]):
        break
      if batch.given_up.wait(pause):
        break
      with self.changed:
        batch.session.stats[lane.name].retries += 1
      results = self._attempt(lane, batch.calls)
    return results

  def _attempt(self, lane: _Lane, calls: list[Call]) -> list[ToolResult]:
    """A result for each call, whatever the tool does."""
    try:
      if lane.tool.batched:
        given: Any = lane.tool.call_batch([call.argument for call in calls])
      else:
        given = [lane.tool.call(calls[0].argument)]
      if not isinstance(given, list | tuple):
        raise TypeError(f"call_batch returned {type(given).__name__}, no list")
      if len(given) != len(calls):
        raise InputError(
          f"call_batch returned {len(given)} results for {len(calls)} calls"
        )
    # Foreign code: SystemExit and whatever else it raises would end the thread
    # and leave the agents waiting.
    except BaseException as error:
      return [self._failed(lane, error)] * len(calls)
    return [self._checked(lane, result) for result in given]

  def _checked(self, lane: _Lane, result: Any) -> ToolResult:
    """A result of the right types, its text cut to what can be shown."""
    try:
      if not isinstance(result, ToolResult):
        raise TypeError(f"returned {type(result).__name__}, no ToolResult")
      if not isinstance(result.text, str):
        raise TypeError(f"returned {type(result.text).__name__}, no text")
      return ToolResult(
        str(result.text[: self._max_chars]), ToolStatus(result.status)
      )
    except BaseException as error:  # As above: a subclass can hold any code.
      return self._failed(lane, error)

  def _failed(self, lane: _Lane, error: BaseException) -> ToolResult:
    with self.changed:
      first, lane.failure_logged = not lane.failure_logged, True
    if first:
      _log.warning(
        "%s failed, and the agent reads that. Further failures are counted and "
        "not logged.",
        lane.name,
        exc_info=error,
      )
    return ToolResult(f"{lane.name} failed: {_text(error)}", ToolStatus.FAILED)


@runtime_checkable
class Answers(Protocol):
  """What is asked of threads; all of it read with `changed` held."""

  @property
  def open(self) -> Sized:
    """What has no answer."""

  @property
  def has_news(self) -> bool:
    """Whether there is something to take."""

  def left_s(self) -> float:
    """Seconds to the first deadline of what is open; infinite if nothing is."""


def wait_for_news(
  changed: threading.Condition, sources: Sequence[Answers], timeout_s: float
) -> None:
  """Waits until something is answered, nothing is open or time is up.

  Args:
    changed: notified of answers.
    sources: where answers come from.
    timeout_s: how long to wait at most; a deadline of theirs ends it earlier.
  """

  def done() -> bool:
    return any(source.has_news for source in sources) or not any(
      source.open for source in sources
    )

  with changed:
    left_s = min(timeout_s, *(source.left_s() + 1e-3 for source in sources))
    if left_s > 0:
      changed.wait_for(done, timeout=min(left_s, threading.TIMEOUT_MAX))


class ToolSession(Generic[Owner]):
  """The calls of one rollout. One thread uses it and must close it.

  Attributes:
    changed: guards the others, and is notified of answers.
    stats: by name of the tool.
    open: calls without an answer, and the batch that each is in.
    answers: given and not yet taken.
  """

  def __init__(self, runner: ToolRunner):
    self._runner = runner
    self.changed = runner.changed
    self._lanes = runner._lanes
    self.stats = {name: ToolStats() for name in self._lanes}
    self.open: dict[Call[Owner], _Batch] = {}
    self.answers: list[tuple[Call[Owner], ToolResult]] = []

  @property
  def num_pending(self) -> int:
    """Calls that have not been taken back with their answer."""
    with self.changed:
      return len(self.open) + len(self.answers)

  def submit(self, calls: Sequence[Call[Owner]]) -> None:
    """Has calls made: in one batch a tool that works in batches."""
    groups: dict[str, list[Call[Owner]]] = {}
    for call in calls:
      groups.setdefault(call.name, []).append(call)
    with self.changed:
      for name, group in groups.items():
        lane = self._lanes[name]
        parts = [group] if lane.tool.batched else [[call] for call in group]
        for part in parts:
          lane.waiting.append(self._runner._queue(lane, self, part))
        self._runner._fill(lane)

  def answer(self, call: Call[Owner], result: ToolResult) -> None:
    """Answers a call that no tool has to make."""
    with self.changed:
      self.answers.append((call, result))

  @property
  def has_news(self) -> bool:
    """Whether there is something to take; with the lock held."""
    return bool(self.answers)

  def left_s(self) -> float:
    """Until the first deadline of an open call; with the lock held."""
    now = self._runner._clock()
    # A call that is taken up while we wait is due by then at the latest.
    due = (
      min(batch.due(call), now + batch.lane.timeout_s)
      for call, batch in self.open.items()
    )
    return min(due, default=math.inf) - now

  def take(self) -> list[tuple[Call[Owner], ToolResult]]:
    """Answers that have come, and those of calls whose time is up."""
    with self.changed:
      now = self._runner._clock()
      self._end([c for c, batch in self.open.items() if now > batch.due(c)])
      answers, self.answers = self.answers, []
      return answers

  def close(self) -> None:
    """Gives up what is still open and completes the stats."""
    with self.changed:
      self._end(list(self.open))
      for name, lane in self._lanes.items():
        self.stats[name].hung = lane.hung
    for name, lane in self._lanes.items():
      self.stats[name].own = _own_numbers(lane)

  def _end(self, calls: Sequence[Call[Owner]]) -> None:
    """Answers calls as late, and leaves batches that nobody waits for."""
    batches = {call: self.open[call] for call in calls}
    for call, batch in batches.items():
      limit = f"{batch.lane.timeout_s:g} s"
      if batch.due(call) == call.deadline:
        limit = "the trajectory's time"
      late = ToolResult(f"no answer within {limit}", ToolStatus.LATE)
      self._runner._answer(batch, call, late)
    # Those that still wait first, or leaving a thread would start them.
    for batch in sorted(
      dict.fromkeys(batches.values()), key=lambda b: b.started is not None
    ):
      if not any(call in self.open for call in batch.calls):
        self._runner._give_up(batch)


def _lane(name: str, tool: tools_lib.Tool, config: RolloutConfig) -> _Lane:
  policy = tools_lib.call_policy(tool)
  limit = policy.max_concurrency or config.tool_threads
  timeout_s = policy.timeout_s or config.tool_timeout_s
  retries = config.tool_retries if policy.retries is None else policy.retries
  return _Lane(
    name=name,
    tool=tool,
    max_running=dict(config.tool_limits).get(name, limit),
    max_hung=config.max_hung_calls,
    timeout_s=dict(config.tool_timeouts_s).get(name, timeout_s),
    retries=retries if policy.idempotent else 0,
    idempotent=policy.idempotent,
  )


def _own_numbers(lane: _Lane) -> dict[str, float]:
  try:
    return tools_lib.own_numbers(lane.tool)
  except Exception:  # Foreign code, whose figures are not worth a rollout.
    _log.warning("numbers() of %s failed.", lane.name, exc_info=True)
    return {}


def _text(error: BaseException) -> str:
  """Type and start of the message of an error."""
  try:
    message = str(error)[:_MAX_ERROR_CHARS]
  except BaseException:  # A message is foreign code too.
    message = ""
  name = type(error).__name__[:_MAX_ERROR_CHARS]
  return f"{name}: {message}" if message else name
