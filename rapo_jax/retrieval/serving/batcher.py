"""Puts what many requests ask for into one batch, and bounds how much waits.

Clients take turns: each batch has a job of every client that waits before it
has a second one of any. So a client with hundreds of jobs delays another by one
batch, not by all of its own. A client is a path of names, such as a machine and
a connection of it: machines take turns, and so do the connections of each.

An encoder is fastest on many texts at once, and an index on many vectors. So
requests that arrive while a batch is under way, or within a short wait, make
the next one. How much may wait is bounded: a server that takes everything
answers nobody in time (Nygard, "Release It!", 2007). A client that is refused
at once can try again.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

_RATE_MEMORY = 0.8
_MAX_RETRY_AFTER_S = 60
_SHARE_OF_QUEUE = 0.75
"""Of the queue that one client may fill, so that others get in."""


class OverloadedError(RuntimeError):
  """Too much waits already.

  Attributes:
    retry_after_s: when what waits now will have been answered, at least 1.
  """

  def __init__(self, message: str, retry_after_s: int):
    super().__init__(message)
    self.retry_after_s = retry_after_s


@dataclasses.dataclass(eq=False)
class _Job(Generic[Request, Answer]):
  request: Request
  size: int
  client: tuple[Hashable, Hashable]
  cost: float
  arrived: float
  answer: asyncio.Future[Answer]


class Batcher(Generic[Request, Answer]):
  """Runs requests in batches, in a thread of its own.

  Use it in one event loop, `async with` it.

  Args:
    run: answers the requests of a batch, or gives an exception in an answer's
      place; called in the thread.
    max_batch: queries in a batch. A request with more is a batch of its own.
    max_wait_s: for how long a batch waits for more requests.
    max_queue: queries that may wait or be under way.
    max_batch_s: for how long a batch may run, by what earlier ones took for
      their cost; one job always may.

  Attributes:
    num_queued: queries that wait or are under way.
    num_batches: so far.
  """

  def __init__(
    self,
    run: Callable[[Sequence[Request]], Sequence[Answer | Exception]],
    *,
    max_batch: int,
    max_wait_s: float,
    max_queue: int,
    max_batch_s: float = math.inf,
  ):
    self._run_batch = run
    self._max_batch = max_batch
    self._max_wait_s = max_wait_s
    self._max_queue = max_queue
    self._max_batch_s = max_batch_s
    self._seconds_per_cost = 0.0
    self._last_batch: list[_Job[Request, Answer]] = []
    # In order of arrival; a request whose time is up leaves from the middle.
    self._waiting: dict[_Job[Request, Answer], None] = {}
    # The same by machine and connection, whose turn is next first.
    self._turns: dict[
      Hashable, dict[Hashable, dict[_Job[Request, Answer], None]]
    ] = {}
    self._queued_of: collections.Counter[Hashable] = collections.Counter()
    self._num_waiting = 0
    self._changed = asyncio.Event()
    self._queries_per_s: float | None = None
    self.num_queued = 0
    self.num_batches = 0

  async def __aenter__(self) -> Batcher[Request, Answer]:
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix="retrieval"
    )
    self._task = asyncio.create_task(self._work(), name="batcher")
    return self

  async def __aexit__(self, *_: object) -> None:
    """Cancels all requests; a batch under way ends unheard."""
    self._task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
      await self._task
    for job in self._waiting:
      job.answer.cancel()
    await asyncio.get_running_loop().run_in_executor(
      None, self._thread.shutdown
    )

  def check_room(self, size: int, machine: Hashable = None) -> None:
    """Refuses queries for which there is no room.

    Args:
      size: queries that are to be submitted.
      machine: whose.

    Raises:
      OverloadedError: too much waits already, of all or of this machine.
    """
    most = self._max_queue
    if self.num_queued and self.num_queued + size > most:
      raise OverloadedError(
        f"{self.num_queued} queries wait, {size} more exceed the {most} that"
        " may.",
        self._retry_after_s(),
      )
    own, share = self._queued_of[machine], max(1, int(_SHARE_OF_QUEUE * most))
    if own and own + size > share:
      raise OverloadedError(
        f"{own} queries of this client wait, {size} more exceed the {share}"
        " that may of one client.",
        self._retry_after_s(),
      )

  async def submit(
    self,
    request: Request,
    *,
    size: int,
    timeout_s: float,
    client: tuple[Hashable, Hashable] = (None, None),
    cost: float = 1.0,
  ) -> Answer:
    """Waits for the answer to one request.

    Args:
      request: what is asked.
      size: its queries; see `check_room`.
      timeout_s: for how long.
      client: whose it is: a machine and a connection.
      cost: what it takes, beside others; in any unit.

    Raises:
      TimeoutError: there is no answer in time. It is not run if it still
        waited.
      Exception: what `run` gave in the answer's place, or raised.
    """
    loop = asyncio.get_running_loop()
    job = _Job[Request, Answer](
      request, size, client, cost, time.monotonic(), loop.create_future()
    )
    self._waiting[job] = None
    machine, connection = client
    connections = self._turns.setdefault(machine, {})
    connections.setdefault(connection, {})[job] = None
    self._queued_of[machine] += size
    self._num_waiting += size
    self.num_queued += size
    self._changed.set()
    try:
      return await asyncio.wait_for(job.answer, timeout_s)
    finally:
      self.num_queued -= size
      self._queued_of[machine] -= size
      if not self._queued_of[machine]:
        del self._queued_of[machine]
      self._forget(job)

  def _forget(self, job: _Job[Request, Answer]) -> None:
    if job not in self._waiting:
      return
    del self._waiting[job]
    self._num_waiting -= job.size
    machine, connection = job.client
    connections = self._turns[machine]
    jobs = connections[connection]
    del jobs[job]
    if not jobs:
      del connections[connection]
    if not connections:
      del self._turns[machine]

  def _retry_after_s(self) -> int:
    if self._queries_per_s is None:
      return 1
    seconds = math.ceil(self.num_queued / self._queries_per_s)
    return min(max(seconds, 1), _MAX_RETRY_AFTER_S)

  async def _work(self) -> None:
    """Makes batches until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
      batch = await self._next_batch()
      size = sum(job.size for job in batch)
      began = time.monotonic()
      try:
        answers = await loop.run_in_executor(
          self._thread, self._run_batch, [job.request for job in batch]
        )
      except asyncio.CancelledError:
        for job in batch:
          job.answer.cancel()
        raise
      # Raised again where each of the requests hears it.
      except Exception as error:
        answers = [error] * len(batch)
      self.num_batches += 1
      seconds = max(time.monotonic() - began, 1e-6)
      self._learn_rate(size / seconds)
      self._seconds_per_cost = seconds / sum(job.cost for job in batch)
      for job, answer in zip(batch, answers, strict=True):
        if job.answer.done():  # Its time was up.
          continue
        if isinstance(answer, Exception):
          job.answer.set_exception(answer)
        else:
          job.answer.set_result(answer)

  def _learn_rate(self, queries_per_s: float) -> None:
    old = self._queries_per_s
    self._queries_per_s = (
      queries_per_s
      if old is None
      else _RATE_MEMORY * old + (1 - _RATE_MEMORY) * queries_per_s
    )

  async def _next_batch(self) -> list[_Job[Request, Answer]]:
    """The requests whose turn it is, at least one."""
    while True:
      self._changed.clear()
      left_s = math.inf
      if self._waiting:
        first = next(iter(self._waiting))
        left_s = first.arrived + self._max_wait_s - time.monotonic()
        if self._num_waiting >= self._max_batch or left_s <= 0:
          return self._take()
      with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(
          self._changed.wait(), None if math.isinf(left_s) else left_s
        )

  def _take(self) -> list[_Job[Request, Answer]]:
    """Jobs for a batch, by turns; one that does not fit is first next time."""
    # Clients that came during the last batch go before those that were in it.
    for job in self._last_batch:
      self._to_the_end(*job.client)
    batch: list[_Job[Request, Answer]] = []
    size, seconds = 0, 0.0
    while self._turns:
      jobs = next(iter(next(iter(self._turns.values())).values()))
      job = next(iter(jobs))
      size += job.size
      seconds += job.cost * self._seconds_per_cost
      if batch and (size > self._max_batch or seconds > self._max_batch_s):
        break
      batch.append(job)
      self._forget(job)
      self._to_the_end(*job.client)
    self._last_batch = batch
    return batch

  def _to_the_end(self, machine: Hashable, connection: Hashable) -> None:
    """Puts a client behind all others, if more of it waits."""
    if machine not in self._turns:
      return
    self._turns[machine] = connections = self._turns.pop(machine)
    if connection in connections:
      connections[connection] = connections.pop(connection)
