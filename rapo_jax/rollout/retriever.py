"""Asks the Step-Trace Buffer in a thread, while other slots decode.

All histories that wait when a search begins go out as one embedding batch and
one search; what comes meanwhile waits for the next. What a history gets does
not depend on when it asked or beside whom.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from rapo_jax.retrieval import (
  Buffer,
  Failed,
  GuardedBuffer,
  Hit,
  Miss,
  RetrievalConfig,
)
from rapo_jax.rollout.between import Boundary, Insertion
from rapo_jax.tools.tags import RETRIEVE
from rapo_jax.trajectory import RetrievalEvent

Owner = TypeVar("Owner")

# Apart from the draws whether to retrieve, and of noise.
_PROBE_STREAM = 2


@dataclasses.dataclass(eq=False)
class Question(Generic[Owner]):
  """A history that waits for a step.

  Attributes:
    owner: who waits.
    question: of the trajectory.
    history: texts of its steps so far, oldest first.
    key: integers of this boundary alone, for what is drawn at random.
    deadline: when the owner stops waiting, on the monotonic clock.
  """

  owner: Owner
  question: str
  history: tuple[str, ...]
  key: tuple[int, ...]
  deadline: float


class Retriever(Generic[Owner]):
  """The searches of one rollout. One thread uses it and must close it.

  Args:
    buffer: what is asked.
    config: how a trace is chosen.
    changed: guards the attributes, and is notified of answers.
    clock: monotonic, in seconds.

  Attributes:
    open: questions without an answer.
    answers: given and not yet taken.
    busy_seconds: in which the thread embedded and searched.
  """

  def __init__(
    self,
    buffer: GuardedBuffer,
    config: RetrievalConfig,
    changed: threading.Condition,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._buffer = buffer
    self._config = config
    self._changed = changed
    self._clock = clock
    self._waiting: list[Question[Owner]] = []
    self._running = False
    self._error: BaseException | None = None
    self.open: dict[Question[Owner], None] = {}
    self.answers: list[tuple[Owner, Hit | Miss | Failed]] = []
    self.busy_seconds = 0.0

  def submit(self, questions: Sequence[Question[Owner]]) -> None:
    """Has histories looked up."""
    with self._changed:
      self._waiting += questions
      self.open.update(dict.fromkeys(questions))
      if self._waiting and not self._running:
        self._running = True
        threading.Thread(
          target=self._work, name="retrieval", daemon=True
        ).start()

  @property
  def has_news(self) -> bool:
    """Whether there is something to take; with the lock held."""
    return bool(self.answers) or self._error is not None

  def left_s(self) -> float:
    """Until the first deadline of an open question; with the lock held."""
    now = self._clock()
    return min((q.deadline - now for q in self.open), default=math.inf)

  def take(self) -> list[tuple[Owner, Hit | Miss | Failed]]:
    """Answers that have come; `Failed` for those whose time is up.

    Raises:
      Exception: a bug of the encoder or the index, as the buffer raised it.
    """
    with self._changed:
      if self._error is not None:
        raise self._error
      now = self._clock()
      for question in [q for q in self.open if now > q.deadline]:
        self._answer(question, Failed("no answer within the trajectory's time"))
      answers, self.answers = self.answers, []
      return answers

  def close(self) -> None:
    """Forgets what is still open. A search under way ends unheard."""
    with self._changed:
      self._waiting.clear()
      self.open.clear()

  def _answer(
    self, question: Question[Owner], outcome: Hit | Miss | Failed
  ) -> None:
    if question in self.open:
      del self.open[question]
      self.answers.append((question.owner, outcome))

  def _work(self) -> None:
    """Searches until nobody waits."""
    while True:
      with self._changed:
        asked = [q for q in self._waiting if q in self.open]
        self._waiting = []
        if not asked:
          self._running = False
          return
      began = time.perf_counter()
      try:
        outcomes = self._buffer.retrieve(
          [q.question for q in asked],
          [q.history for q in asked],
          config=self._config,
          keys=[q.key for q in asked],
        )
      # Raised again where the rollout can hear it.
      except BaseException as error:
        with self._changed:
          self._running = False
          self._error = error
          self._changed.notify_all()
        return
      with self._changed:
        self.busy_seconds += time.perf_counter() - began
        for question, outcome in zip(asked, outcomes, strict=True):
          self._answer(question, outcome)
        self._changed.notify_all()


class RetrievalHook:
  """Retrieval from a Step-Trace Buffer between steps (Algorithm 1, Eq. 4).

  Args:
    buffer: what is asked. It may grow between two rollouts.
    config: how a trace is chosen among the nearest.
    probability: that a hybrid trajectory retrieves at a boundary, in [0, 1].
  """

  def __init__(
    self, buffer: Buffer, config: RetrievalConfig, probability: float
  ):
    self._buffer = GuardedBuffer(buffer)
    self._config = config
    self._probability = probability

  def session(self, changed: threading.Condition) -> RetrievalSession:
    """Retrieval of one rollout."""
    return RetrievalSession(
      self._buffer, self._config, self._probability, changed
    )

  def compile(self) -> None:
    """Asks the buffer once, so that what answers is compiled."""
    self._buffer.retrieve(
      ["question"], [("step",)], config=self._config, keys=[(0,)]
    )


class RetrievalSession:
  """Retrieval of one rollout; see `BetweenSession`.

  Attributes:
    version: of the buffer, when the rollout began.
  """

  def __init__(
    self,
    buffer: GuardedBuffer,
    config: RetrievalConfig,
    probability: float,
    changed: threading.Condition,
  ):
    self.version = buffer.version
    self._config = config
    self._probability = probability
    self._retriever: Retriever[Boundary] = Retriever(buffer, config, changed)

  @property
  def busy_seconds(self) -> float:
    """In which a thread embedded histories and searched."""
    return self._retriever.busy_seconds

  @property
  def open(self) -> Mapping[Question[Boundary], None]:
    """Questions without an answer."""
    return self._retriever.open

  @property
  def has_news(self) -> bool:
    """Whether there is something to take; with the lock held."""
    return self._retriever.has_news

  def left_s(self) -> float:
    """Until the first deadline of an open question; with the lock held."""
    return self._retriever.left_s()

  def wants(self, boundary: Boundary) -> bool:
    """Draws for a hybrid trajectory, from the boundary's own stream."""
    if not boundary.request.hybrid:
      return False
    if self._config.granularity == "trajectory" and any(
      isinstance(event, RetrievalEvent) and event.outcome == "hit"
      for event in boundary.events
    ):
      return False
    draw = np.random.default_rng(boundary.key)
    probability = self._probability * boundary.request.guidance
    return bool(draw.random() < probability)

  def submit(self, boundaries: Sequence[Boundary]) -> None:
    """Has the histories of boundaries looked up."""
    self._retriever.submit(
      [
        Question(b, b.request.query.question, b.history, b.key, b.deadline)
        for b in boundaries
      ]
    )

  def take(self) -> list[tuple[Boundary, Insertion]]:
    """Answers that have come.

    Raises:
      Exception: a bug of the encoder or the index, as the buffer raised it.
    """
    return [
      (b, _insertion(b, found, self._config.probe_share))
      for b, found in self._retriever.take()
    ]

  def close(self) -> None:
    """Forgets what is still open."""
    self._retriever.close()


def retrieved_text(step: str) -> str:
  """A step of another trajectory as it is inserted."""
  return f"<{RETRIEVE}>{step}</{RETRIEVE}>"


def _insertion(
  boundary: Boundary, found: Hit | Miss | Failed, probe_share: float
) -> Insertion:
  if not isinstance(found, Hit):
    name = "miss"
    if isinstance(found, Failed):
      name = "failed" if found.attempted else "open"
    return Insertion(RetrievalEvent(boundary.step_id, name))
  event = RetrievalEvent(
    boundary.step_id,
    "hit",
    similarity=found.similarity,
    reward=found.trace.reward,
    trace_id=found.trace.trace_id,
    source=found.trace.source,
    answers=found.answers,
    others=found.others,
  )
  draw = np.random.default_rng([*boundary.key, _PROBE_STREAM])
  return Insertion(
    event,
    retrieved_text(found.text),
    probe=bool(draw.random() < probe_share),
  )
