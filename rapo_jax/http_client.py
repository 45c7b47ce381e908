"""Asks over HTTP: repeated while there is time, and of bounded size."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import time
from collections.abc import Callable, Mapping

import httpx2


class NoAnswer(Exception):
  """A server was not reached, or gave no whole answer.

  Attributes:
    late: whether the time ran out.
  """

  def __init__(self, reason: str, *, late: bool = False):
    super().__init__(reason)
    self.late = late


class TooLargeError(NoAnswer):
  """An answer has more bytes than are read."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server answered, whole.

  Attributes:
    status: of HTTP.
    headers: their names in any case.
    content: the body, decoded.
  """

  status: int
  headers: Mapping[str, str]
  content: bytes

  @property
  def is_success(self) -> bool:
    """Whether the server did what it was asked."""
    return 200 <= self.status < 300


@dataclasses.dataclass(frozen=True)
class Retries:
  """When a request is made again.

  Attributes:
    times: at most, beside the first.
    first_pause_s: seconds before the first repetition; each pause is twice the
      one before. A server may ask for more (`Retry-After`).
    statuses: of a server that is busy or restarts.
  """

  times: int = 3
  first_pause_s: float = 0.2
  statuses: tuple[int, ...] = (502, 503, 504)


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked.

  Attributes:
    method: of HTTP.
    url: with what stands in it.
    params: parameters of the URL.
    content: body; None for none.
    headers: of the request.
  """

  method: str
  url: str
  params: Mapping[str, str] = dataclasses.field(default_factory=dict)
  content: bytes | None = None
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


def ask(
  client: httpx2.Client,
  request: Request,
  *,
  deadline: float,
  max_bytes: int,
  retries: Retries,
  before: Callable[[], None] = lambda: None,
  cut: bool = False,
) -> Answer:
  """The answer to a request that may be repeated.

  Args:
    client: asks.
    request: what is asked.
    deadline: on the monotonic clock, repetitions included.
    max_bytes: most bytes of an answer, decoded.
    retries: when it is made again.
    before: called before each time that it is made; may raise.
    cut: whether an answer that is larger is read as far as it may, and is no
      failure.

  Returns:
    The last answer, whatever its status.

  Raises:
    NoAnswer: the server was not reached, or not in time.
  """
  pause_s = retries.first_pause_s
  for attempt in range(retries.times + 1):
    answer, failure, retry_after_s = None, None, 0.0
    before()
    try:
      answer = _answer(client, request, deadline, max_bytes, cut=cut)
    # A false content encoding raises a DecodingError, which is no
    # TransportError.
    except (httpx2.TransportError, httpx2.DecodingError) as error:
      failure = error
    else:
      if answer.status not in retries.statuses:
        return answer
      retry_after_s = _retry_after_s(answer)
    pause = max(pause_s, retry_after_s)
    if attempt == retries.times or time.monotonic() + pause >= deadline:
      break
    time.sleep(pause)
    pause_s *= 2
  if answer is not None:
    return answer
  assert failure is not None
  raise NoAnswer(
    f"{type(failure).__name__}: {failure}".rstrip(": "),
    late=isinstance(failure, httpx2.TimeoutException),
  ) from failure


def _answer(
  client: httpx2.Client,
  request: Request,
  deadline: float,
  max_bytes: int,
  *,
  cut: bool,
) -> Answer:
  """One answer, read no longer than there is time and no further than fits."""
  content = bytearray()
  with client.stream(
    request.method,
    request.url,
    params=request.params or None,
    content=request.content,
    headers=request.headers,
    timeout=max(deadline - time.monotonic(), 1e-3),
  ) as response:
    for chunk in response.iter_bytes():
      content += chunk
      if len(content) > max_bytes and cut:
        del content[max_bytes:]
        break
      if len(content) > max_bytes:
        raise TooLargeError(
          f"an answer may have {max_bytes} bytes, and this one has more"
        )
      # The client's own deadline begins anew with each part of the body.
      if time.monotonic() > deadline:
        raise httpx2.ReadTimeout("the answer did not end in time")
  return Answer(response.status_code, response.headers, bytes(content))


def _retry_after_s(answer: Answer) -> float:
  """Seconds that a server asks to wait; 0 if it does not say."""
  value = answer.headers.get("retry-after", "")
  if value.isdecimal():
    return float(value)
  try:
    when = email.utils.parsedate_to_datetime(value)
  except ValueError:
    return 0.0
  if when.tzinfo is None:
    when = when.replace(tzinfo=datetime.UTC)
  now = datetime.datetime.now(datetime.UTC)
  return max((when - now).total_seconds(), 0.0)
