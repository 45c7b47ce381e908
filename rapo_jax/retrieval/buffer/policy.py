"""Which of the traces that were found is given: the retrieval policy.

Pure host code: numbers in, a choice out. Of the `top_k` traces by similarity
those that pass the thresholds compete; the highest reward wins, and among equal
rewards the greatest similarity. The paper names top-k and the reward (section
"hybrid-policy rollout"); thresholds and the order of ties are ours.

Two studies of the paper change what is given, and nothing else:

- *Noisy retrieval*: with probability `noise_prob` a trace drawn uniformly takes
  the place of the one that was found. Where none was found none is given, so
  that noise changes what is inserted and not how often. Only traces above
  `min_reward` are drawn: noise is a wrong history, not a failed agent. The draw
  uses the boundary's own key. So it depends neither on other rollouts nor on
  when a search was made. The paper gives the probabilities (0, .2, .4, .6, .8,
  1); the rest is our decision.
- *Trajectory-level off-policy* (`w/ TO`): `granularity="trajectory"`. A whole
  off-policy trajectory is inserted once in place of steps. Of this the paper
  names no more than the ablation. We find a trace as always and insert the
  whole trajectory that it is from, as one retrieved step. It goes from its
  first step to the last that the buffer has, answer included. A rollout that
  was given one asks no more.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.ranges import check_numbers
from rapo_jax.retrieval.buffer.step_trace import StepTrace
from rapo_jax.trajectory import Candidate

_NOISE_STREAM = 1
# Candidates that a log names beside the chosen one.
_NUM_OTHERS = 4


@hosts.travels
@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """How one trace is chosen among those found.

  Attributes:
    top_k: traces considered, by similarity, at least 1. The paper has 3.
    min_similarity: least cosine similarity of a key, in [-1, 1]. The paper
      has no threshold, which is -1.
    min_reward: a trace's reward must be above it.
    noise_prob: probability that a trace drawn uniformly is given in place of
      the one found, in [0, 1].
    granularity: "step" gives the step found, "trajectory" the whole trajectory
      that it is from, once a rollout.
    probe_share: share of the retrieved steps whose effect is measured, in
      [0, 1]: their trajectory is sampled once more from there on, without the
      step (`Trajectory.twins`).
    breaker_failures: failed searches among the last `breaker_window` at which
      no more are tried for a while; at least 1. A search is one batch of
      waiting histories.
    breaker_window: searches that this counts, at least `breaker_failures`.
    breaker_cooldown_s: for how many seconds none is tried then.
  """

  top_k: int = 3
  min_similarity: float = -1.0
  min_reward: float = 0.0
  noise_prob: float = 0.0
  granularity: Literal["step", "trajectory"] = "step"
  probe_share: float = 0.0
  breaker_failures: int = 4
  breaker_window: int = 8
  breaker_cooldown_s: float = 60.0

  def __post_init__(self) -> None:
    check_numbers(
      self, "top_k", "breaker_failures", "breaker_window", at_least=1
    )
    # A cosine.
    check_numbers(self, "min_similarity", at_least=-1, at_most=1)
    check_numbers(self, "min_reward")
    # 0 gives what was found, 1 always a random trace.
    check_numbers(self, "noise_prob", "probe_share", at_least=0, at_most=1)
    check_numbers(self, "breaker_cooldown_s", at_least=0, unit="seconds")
    if not 1 <= self.breaker_failures <= self.breaker_window:
      raise InputError(
        "breaker_failures must lie between 1 and breaker_window "
        f"({self.breaker_window}), got {self.breaker_failures}: lower it or "
        "raise breaker_window."
      )


@dataclasses.dataclass(frozen=True)
class Hit:
  """What is to be inserted.

  Attributes:
    trace: the trace that was chosen.
    similarity: of its key to the history; None for one drawn at random.
    text: what is to be inserted: its step, or its whole trajectory.
    answers: whether the text holds an answer.
    others: the next-best of the traces among which it was chosen, best first.
  """

  trace: StepTrace
  similarity: float | None
  text: str
  answers: bool
  others: tuple[Candidate, ...] = ()


@dataclasses.dataclass(frozen=True)
class Miss:
  """Nothing qualified.

  Attributes:
    reason: "empty buffer", "below min_similarity" or "below min_reward".
  """

  reason: str


@dataclasses.dataclass(frozen=True)
class Failed:
  """The search itself failed; nothing is to be inserted.

  Attributes:
    reason: the error, for the log. Never training text.
    attempted: whether there was a search; false while too many before it have
      failed.
  """

  reason: str
  attempted: bool = True


@runtime_checkable
class Buffer(Protocol):
  """What a rollout retrieves from."""

  @property
  def version(self) -> int:
    """Version of its content; another one where anything was added."""
    ...

  def retrieve(
    self,
    questions: Sequence[str],
    histories: Sequence[Sequence[str]],
    *,
    config: RetrievalConfig,
    keys: Sequence[Sequence[int]] | None = None,
  ) -> list[Hit | Miss | Failed]:
    """See `StepTraceBuffer.retrieve`."""
    ...


def step_hit(trace: StepTrace, similarity: float | None) -> Hit:
  """What inserts the step of a trace."""
  return Hit(trace, similarity, trace.step, trace.answers)


class Choice(NamedTuple):
  """One of the nearest traces.

  Attributes:
    row: of the trace.
    similarity: of its key to the history.
    others: row and similarity of the next-best ones, best first.
  """

  row: int
  similarity: float
  others: tuple[tuple[int, float], ...]


def choose(
  candidates: Iterable[tuple[int, float]],
  rewards: Float64[np.ndarray, " N"],
  config: RetrievalConfig,
) -> Choice | Miss:
  """Chooses among the nearest traces of one history.

  Args:
    candidates: row and similarity of traces, best first, and traces of one key
      by reward.
    rewards: of all N traces, by row.
    config: how to choose.

  Returns:
    The chosen trace, or why none was chosen.
  """
  nearest = list(itertools.islice(candidates, config.top_k))
  near = [(r, s) for r, s in nearest if s >= config.min_similarity]
  if not near:
    return Miss("below min_similarity")
  good = [(r, s) for r, s in near if rewards[r] > config.min_reward]
  if not good:
    return Miss("below min_reward")
  # `max` keeps the first of equals, and they come by similarity.
  row, similarity = max(good, key=lambda pair: rewards[pair[0]])
  others = (pair for pair in nearest if pair[0] != row)
  return Choice(row, similarity, tuple(itertools.islice(others, _NUM_OTHERS)))


def choose_hit(hits: Sequence[Hit], config: RetrievalConfig) -> Hit | Miss:
  """Chooses among the nearest traces of one history; see `choose`.

  Args:
    hits: with their similarities, best first.
    config: how to choose.

  Returns:
    One of the hits, or why none was chosen.
  """
  rewards = np.array([hit.trace.reward for hit in hits], np.float64)
  candidates = (
    (row, hit.similarity)
    for row, hit in enumerate(hits)
    if hit.similarity is not None
  )
  chosen = choose(candidates, rewards, config)
  if isinstance(chosen, Miss):
    return chosen
  others = tuple(
    Candidate(hits[row].trace.trace_id, similarity, hits[row].trace.reward)
    for row, similarity in chosen.others
  )
  return dataclasses.replace(hits[chosen.row], others=others)


def draw_noise(
  key: Sequence[int],
  rewards: Float64[np.ndarray, " N"],
  config: RetrievalConfig,
) -> int | None:
  """Draws whether a random trace is given at a boundary, and which.

  Args:
    key: integers that are the boundary's own, at least 0: seed, update, query,
      index in the group, step.
    rewards: of all N traces, one of them above `min_reward`.
    config: how likely it is.

  Returns:
    The row of the trace, or None for what was found.
  """
  if not config.noise_prob:
    return None
  # Another stream than that of the draw whether to retrieve at all.
  draw = np.random.default_rng([*key, _NOISE_STREAM])
  if draw.random() >= config.noise_prob:
    return None
  eligible = np.flatnonzero(rewards > config.min_reward)
  return int(eligible[draw.integers(len(eligible))])
