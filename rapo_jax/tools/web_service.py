"""What the tools of the web share: limits, a budget and a cache."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import httpx2

from rapo_jax import http_client
from rapo_jax.breaker import Breaker
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.tools.base import ToolResult, ToolStatus
from rapo_jax.tools.web_cache import CacheConfig, Key, open_cache

# Calls in a row that fail before a service is left alone, and for how long.
_FAILURES = 8
_COOLDOWN_S = 30.0
# Over the deadline of a call, to give its answer.
_GRACE_S = 5.0
_SHOWN_CHARS = 200
# The service does not know the key, does not allow it, or wants money.
_KEY_REFUSED = (401, 402, 403)
BUSY = (429, 500, 502, 503, 504)
"""Statuses of a server that is busy or broken, and may be asked again."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WebLimits:
  """How much a service is asked, and how long it is waited for.

  The budget counts requests, repetitions included, from the start of the tool:
  a run that is started again has the whole budget again. A call beyond it has
  the status `refused`. What the cache answers costs nothing.

  Attributes:
    timeout_s: seconds a call may take, repetitions and waiting included, > 0.
    max_retries: times a request is made again after a failure, >= 0.
    calls_per_s: most requests a second, > 0, over all threads; None for any.
    max_concurrency: requests under way at once, >= 1.
    max_bytes: most bytes of an answer, >= 1.
    max_calls: most requests, >= 0; None for any number.
    cost_per_call: price of a request, >= 0, in any unit.
    max_cost: most that all requests may cost, >= 0; None for any sum.

  Raises:
    InputError: a value is out of range.
  """

  timeout_s: float = 30.0
  max_retries: int = 3
  calls_per_s: float | None = None
  max_concurrency: int = 16
  max_bytes: int = 4 * 2**20
  max_calls: int | None = None
  cost_per_call: float = 0.0
  max_cost: float | None = None

  def __post_init__(self) -> None:
    check_numbers(self, "timeout_s", "calls_per_s", above=0)
    check_numbers(self, "max_concurrency", "max_bytes", at_least=1)
    check_numbers(
      *(self, "max_retries", "max_calls", "cost_per_call", "max_cost"),
      at_least=0,
    )


class NoResult(Exception):
  """A call that ended without an answer.

  Attributes:
    result: what the agent reads.
    reason: for the log; it holds no key.
  """

  def __init__(self, text: str, status: ToolStatus, reason: str = ""):
    super().__init__(text)
    self.result = ToolResult(text, status)
    self.reason = reason

  @property
  def is_failure(self) -> bool:
    """Whether the service, or the way to it, is at fault."""
    return self.result.status in (ToolStatus.FAILED, ToolStatus.LATE)


class WebService:
  """A service behind its limits, and a cache before it. Any thread may ask.

  Args:
    name: of the service, for texts such as "the search service".
    limits: how much it is asked.
    cache: keeps its answers.
    guarded: whether it is left alone for a while after many failures in a row.
    secret: a key, which no text shows even if the service repeats it.

  Raises:
    InputError: the cache is to be replayed and is not there, or is none.
  """

  def __init__(
    self,
    name: str,
    limits: WebLimits,
    cache: CacheConfig,
    *,
    guarded: bool = True,
    secret: str | None = None,
  ):
    self.limits = limits
    self.is_replayed = cache.mode == "replay"
    self._name = name
    self._secret = secret
    self._cache = open_cache(cache)
    self._places = threading.BoundedSemaphore(limits.max_concurrency)
    self._breaker = Breaker() if guarded else None
    # Guards the rest.
    self._lock = threading.Lock()
    self._under_way: dict[Key, Future[Any]] = {}
    self._next_at = 0.0
    self._closed_for = ""
    self._logged = False
    self._calls = self._cache_hits = self._errors = 0

  def numbers(self) -> dict[str, float]:
    """Requests, what they cost, answers from the cache, and failed calls."""
    with self._lock:
      return {
        "calls": self._calls,
        "cost": self._calls * self.limits.cost_per_call,
        "cache_hits": self._cache_hits,
        "errors": self._errors,
      }

  def close(self) -> None:
    """Closes the cache."""
    if self._cache is not None:
      self._cache.close()

  def answer(self, key: Key, ask: Callable[[float], Any], *others: Key) -> Any:
    """The answer that is kept, or a new one.

    Who asks what another thread is asking gets the other's answer.

    Args:
      key: what is asked.
      ask: asks the service until a deadline on the monotonic clock; calls
        `spend` before each request. Returns a value of JSON.
      *others: keys under which an answer may be kept, too.

    Raises:
      NoResult: there is none.
    """
    if self._cache is None:
      return self.ask(ask)
    for one in (key, *others):
      found = self.kept(one)
      if found is not None:
        return found
    deadline = time.monotonic() + self.limits.timeout_s
    with self._lock:
      other = self._under_way.get(key)
      own: Future[Any] = Future()
      if other is None:
        self._under_way[key] = own
    if other is not None:
      return self._other(other, deadline)
    try:
      value = self.ask(ask)
      self.keep(key, value)
      own.set_result(value)
      return value
    except BaseException as error:
      own.set_exception(error)
      raise
    finally:
      with self._lock:
        del self._under_way[key]

  def _other(self, other: Future[Any], deadline: float) -> Any:
    try:
      value = other.result(timeout=max(deadline - time.monotonic(), 0))
    except TimeoutError as error:
      raise self.late() from error
    with self._lock:
      self._cache_hits += 1
    return value

  def kept(self, key: Key) -> Any:
    """The answer that the cache holds, which is counted; or None."""
    found = None if self._cache is None else self._cache.get(key)
    if found is not None:
      with self._lock:
        self._cache_hits += 1
    return found

  def keep(self, key: Key, value: Any) -> None:
    """Keeps an answer."""
    if self._cache is not None:
      self._cache.add(key, value)

  def ask(self, ask: Callable[[float], Any]) -> Any:
    """Asks the service, within its limits.

    Args:
      ask: see `answer`.

    Raises:
      NoResult: it gives no answer, or must not be asked.
    """
    if self.is_replayed:
      raise NoResult(
        f"The {self._name} is replayed from a cache, which does not hold this.",
        ToolStatus.REFUSED,
      )
    if self._closed_for:
      raise NoResult(self._closed_for, ToolStatus.REFUSED)
    if self._breaker is not None and self._breaker.is_open:
      raise NoResult(
        f"The {self._name} is out of order and is not asked for a while.",
        ToolStatus.REFUSED,
      )
    deadline = time.monotonic() + self.limits.timeout_s
    if not self._places.acquire(timeout=self.limits.timeout_s):
      raise self.late()
    try:
      value = ask(deadline)
    except NoResult as error:
      self._count(error)
      raise
    finally:
      self._places.release()
    self._count(None)
    return value

  def spend(self, deadline: float) -> None:
    """Takes a request off the budget, and waits for its turn.

    Args:
      deadline: on the monotonic clock.

    Raises:
      NoResult: the budget is spent, or the turn comes too late.
    """
    limits = self.limits
    with self._lock:
      if self._closed_for:
        raise NoResult(self._closed_for, ToolStatus.REFUSED)
      cost = (self._calls + 1) * limits.cost_per_call
      over_calls = (
        limits.max_calls is not None and self._calls >= limits.max_calls
      )
      # Ten times 0.1 is more than 1.
      over_cost = limits.max_cost is not None and cost > limits.max_cost * (
        1 + 1e-9
      )
      if over_calls or over_cost:
        raise NoResult(
          f"The budget of the {self._name} is spent: no more calls are made.",
          ToolStatus.REFUSED,
        )
      now = time.monotonic()
      turn = max(now, self._next_at)
      if turn > deadline:
        raise self.late()
      if limits.calls_per_s is not None:
        self._next_at = turn + 1 / limits.calls_per_s
      self._calls += 1
    time.sleep(turn - now)

  def fetch(
    self, client: httpx2.Client, request: http_client.Request, deadline: float
  ) -> http_client.Answer:
    """A successful answer of the service.

    Args:
      client: asks.
      request: what is asked.
      deadline: on the monotonic clock.

    Raises:
      NoResult: there is none. Where the key is refused, no more calls are made.
    """
    try:
      answer = http_client.ask(
        client,
        request,
        deadline=deadline,
        max_bytes=self.limits.max_bytes,
        retries=http_client.Retries(
          self.limits.max_retries, first_pause_s=0.5, statuses=BUSY
        ),
        before=lambda: self.spend(deadline),
      )
    except http_client.NoAnswer as error:
      if error.late:
        raise self.late() from error
      raise self.failed("did not answer", self._shown(str(error))) from error
    if answer.is_success:
      return answer
    shown = self._shown(answer.content.decode("utf-8", "replace"))
    if answer.status in _KEY_REFUSED:
      self._close_for_good(answer.status, shown)
    raise self.failed(
      f"answered with status {answer.status}", f"it says {shown!r}"
    )

  def failed(self, what: str, reason: str) -> NoResult:
    """The service is at fault.

    Args:
      what: that it did, "answered no JSON".
      reason: more on it, for the log.
    """
    return NoResult(f"The {self._name} {what}.", ToolStatus.FAILED, reason)

  def late(self) -> NoResult:
    """The time of a call ran out."""
    return NoResult(
      f"The {self._name} did not answer within {self.limits.timeout_s:g} s.",
      ToolStatus.LATE,
    )

  def _shown(self, text: str) -> str:
    """The start of a text, without the key."""
    if self._secret:
      text = text.replace(self._secret, "…")
    return text[:_SHOWN_CHARS]

  def _close_for_good(self, status: int, shown: str) -> None:
    text = (
      f"The {self._name} refuses its key (status {status}): no more calls are "
      "made."
    )
    with self._lock:
      first, self._closed_for = not self._closed_for, text
    if first:
      _log.error(
        "%s Correct the key in the environment, or look into its account. The "
        "service says %r",
        *(text, shown),
      )

  def _count(self, error: NoResult | None) -> None:
    failed = error is not None and error.is_failure
    if failed and error is not None:
      with self._lock:
        self._errors += 1
        first, self._logged = not self._logged, True
      if first:
        _log.warning(
          "%s Further failures are counted and not logged. %s",
          *(error, error.reason),
        )
    # What was not asked says nothing of the service.
    refused = error is not None and error.result.status is ToolStatus.REFUSED
    if self._breaker is None or refused:
      return
    change = self._breaker.count(
      failed, window=_FAILURES, failures=_FAILURES, cooldown_s=_COOLDOWN_S
    )
    if change == "opened":
      _log.error(
        "The last %d calls of the %s failed: none is made for %g s. %s",
        *(_FAILURES, self._name, _COOLDOWN_S, error),
      )
    elif change == "closed":
      _log.warning("The %s works again.", self._name)


class WebTool:
  """How a tool of the web may be called, and what it counts.

  Repetitions and deadlines are the tool's own.
  """

  batched = False
  idempotent = True
  retries = 0

  def __init__(self, service: WebService):
    self._service = service

  @property
  def max_concurrency(self) -> int:
    """See `CallPolicy`."""
    return self._service.limits.max_concurrency

  @property
  def timeout_s(self) -> float:
    """See `CallPolicy`."""
    return self._service.limits.timeout_s + _GRACE_S

  def numbers(self) -> dict[str, float]:
    """See `WebService.numbers`."""
    return self._service.numbers()

  def close(self) -> None:
    """Closes connections and the cache."""
    self._service.close()


def parsed(content: bytes) -> Any:
  """The JSON of an answer, whose texts may hold half characters.

  Services cut snippets within a character. So `text_files` is too strict here.

  Raises:
    ValueError: it is no JSON.
  """
  try:
    return json.loads(content)
  except RecursionError as error:
    raise ValueError("the JSON is nested too deeply") from error


def plain(text: str) -> str:
  """A text without half characters and NUL."""
  return text.encode("utf-8", "replace").decode().replace("\0", " ")


def key_of(variable: str | None, what: str) -> str | None:
  """The key that a variable of the environment holds.

  Args:
    variable: its name; None for a service without a key.
    what: needs it, for the error.

  Raises:
    InputError: it is not set, or cannot be the value of a header. The error
      repeats nothing of it.
  """
  if variable is None:
    return None
  value = os.environ.get(variable, "")
  if not value:
    raise InputError(
      f"the key of {what} must be in the environment variable {variable}, "
      f"which is not set: export {variable}=…, or replay a cache (mode "
      "'replay')."
    )
  if not (value.isascii() and value.isprintable()) or value != value.strip():
    raise InputError(
      f"{variable}, the key of {what}, must be of printable ASCII characters "
      "without outer spaces, and is not: set it again, without a line end."
    )
  return value
