"""Step traces: one step of a trajectory, the text of its key, and the cut.

A trace is a pair. Its key is the question with the history before the step,
`q + S_<t`; its value is the step `s_t`, thought, action and observation (RAPO,
section "hybrid-policy rollout", Eq. 3).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rapo_jax.errors import InputError
from rapo_jax.retrieval.encoder.sentence import SentenceEncoder
from rapo_jax.tools.tags import (
  TagSet,
  leaves_thought_open,
  with_opened_thought,
)

_RETRIEVE_TAGS = re.compile(r"</?retrieve>")
ANSWER_TAG = "<answer>"
_SPACE = " \t\r\n"


@dataclasses.dataclass(frozen=True)
class StepTrace:
  """One step of an off-policy trajectory, and what came before it.

  Attributes:
    question: the question `q`.
    history: texts of the steps before this one, `S_<t`, oldest first.
    step: text of the step `s_t`: thought, action and `<result>` (or answer).
    reward: outcome reward of the trajectory that the step is from.
    source: name of the agent that wrote it.
    trace_id: id, unique in a buffer.
    query_id: id of the question.
    step_index: `t`, from 0.
    answers: whether the step holds an answer, which a retrieval can leak.
    trajectory_id: id of the trajectory that the step is from, the same for all
      its steps and no others; "" where that is not known.
    extras: whatever else a source says of it, values of JSON.
  """

  question: str
  history: tuple[str, ...]
  step: str
  reward: float
  source: str
  trace_id: int
  query_id: str
  step_index: int
  answers: bool
  trajectory_id: str = ""
  extras: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )


def key_text(
  question: str, history: Sequence[str], encoder: SentenceEncoder
) -> str:
  """The text that a key or a waiting history is embedded as: `key_texts`."""
  return key_texts([question], [history], encoder)[0]


def check_lengths(
  questions: Sequence[str], histories: Sequence[Sequence[str]]
) -> None:
  """Refuses questions and histories that are not as many.

  Raises:
    InputError: with both numbers.
  """
  if len(questions) != len(histories):
    raise InputError(
      f"Each question needs one history, got {len(questions)} questions and"
      f" {len(histories)} histories."
    )


def key_texts(
  questions: Sequence[str],
  histories: Sequence[Sequence[str]],
  encoder: SentenceEncoder,
) -> list[str]:
  """Writes the texts that keys or waiting histories are embedded as.

  The encoder reads a bounded number of wordpieces, and histories of one
  question differ at their end. So the question stays whole and the newest
  history is kept. The oldest steps are left out first. Of the step that then
  only partly fits, its last words stay. A question that fills the encoder alone
  keeps its beginning, and its history does not count.

  Tags are left out. A sentence encoder spends three or four wordpieces on each
  of them, more than on a short step's text. They tell no history from another.
  And a retrieved step in a history has to look like an ordinary one.

  A step that stands in many histories is split into wordpieces once.

  Args:
    questions: N questions.
    histories: for each, the texts of its steps so far, oldest first.
    encoder: the encoder that will embed the texts.

  Returns:
    For each, the question and the kept history, a step a line.
  """
  return _Keys(encoder, questions, itertools.chain(*histories)).texts(
    questions, histories
  )


def trace_keys(
  traces: Sequence[StepTrace], encoder: SentenceEncoder
) -> tuple[list[str], list[int]]:
  """Writes the key texts of N traces and measures their steps.

  Returns:
    `key_texts` of the traces, and the wordpieces of each step, tags apart.
  """
  questions = [trace.question for trace in traces]
  histories = [trace.history for trace in traces]
  steps = [trace.step for trace in traces]
  keys = _Keys(encoder, questions, itertools.chain(steps, *histories))
  return keys.texts(questions, histories), [keys.length(s) for s in steps]


class _Keys:
  """Questions and steps with their lengths in wordpieces, each counted once."""

  def __init__(
    self,
    encoder: SentenceEncoder,
    questions: Iterable[str],
    steps: Iterable[str],
  ):
    self._encoder = encoder
    self._cleaned = {step: _without_tags(step) for step in dict.fromkeys(steps)}
    distinct = list(dict.fromkeys([*questions, *self._cleaned.values()]))
    counts = encoder.wordpieces.count(distinct)
    self._counts = dict(zip(distinct, counts, strict=True))

  def length(self, step: str) -> int:
    """Wordpieces of a step without its tags."""
    return self._counts[self._cleaned[step]]

  def texts(
    self, questions: Sequence[str], histories: Sequence[Sequence[str]]
  ) -> list[str]:
    """See `key_texts`."""
    window = self._encoder.max_tokens - self._encoder.num_tokens("")
    kept: list[list[str]] = []
    for question, history in zip(questions, histories, strict=True):
      room = window - self._counts[question]
      lines: list[str] = []
      for step in reversed(history):
        if room <= 0:
          break
        text = self._cleaned[step]
        if self._counts[text] > room:
          text = self._encoder.wordpieces.last_words(text, room)
        if text:
          lines.append(text)
        room -= self._counts[self._cleaned[step]]
      kept.append(lines)
    # Words never span lines, so the wordpieces of the lines add up.
    return [
      "\n".join([question, *reversed(lines)])
      for question, lines in zip(questions, kept, strict=True)
    ]


def _without_tags(step: str) -> str:
  """The text of a step, a space for tags that stand together.

  The tool that a step calls is known by the result behind the call.
  """
  return TagSet.of_text(step).remove_tags(step)


def step_traces(
  question: str,
  steps: Sequence[str],
  *,
  reward: float,
  source: str,
  query_id: str,
  first_trace_id: int,
  trajectory_id: str | None = None,
  extras: Mapping[str, Any] | None = None,
) -> list[StepTrace]:
  """Cuts one trajectory into step traces.

  A step that is blank once its tags are off gives no trace, as it would help no
  agent. It stays in the history of later steps.

  Args:
    question: its question.
    steps: texts of its steps in order, each with its result. Tags of a
      retrieved step are taken off: inside another retrieval they would nest.
      A thought that the chat template opened is given its opening tag.
    reward: its outcome reward.
    source: name of the agent that wrote it.
    query_id: id of the question.
    first_trace_id: id of the first trace; the others follow it.
    trajectory_id: id of the trajectory; None makes one of `source` and
      `first_trace_id`.
    extras: further values of JSON to keep with each step.

  Returns:
    A trace for every step that is not blank.
  """
  if trajectory_id is None:
    trajectory_id = f"{source}/{first_trace_id}"
  texts = tuple(
    _RETRIEVE_TAGS.sub("", step).strip(_SPACE)
    for step in _with_whole_thoughts(steps)
  )
  written = [(i, text) for i, text in enumerate(texts) if text.strip()]
  return [
    StepTrace(
      question=question,
      history=texts[:step_index],
      step=text,
      reward=float(reward),
      source=source,
      trace_id=first_trace_id + number,
      query_id=query_id,
      step_index=step_index,
      answers=ANSWER_TAG in text,
      trajectory_id=trajectory_id,
      extras=dict(extras or {}),
    )
    for number, (step_index, text) in enumerate(written)
  ]


def _with_whole_thoughts(steps: Sequence[str]) -> Iterator[str]:
  """The steps, each thought with its opening tag."""
  opened = False
  for step in steps:
    whole = step if opened else with_opened_thought(step)
    opened = leaves_thought_open(whole, opened=opened)
    yield whole


def select_top_k(
  query_ids: Sequence[str],
  rewards: Sequence[float],
  *,
  k: int,
  min_reward: float = 0.0,
) -> list[int]:
  """Picks each question's best trajectories for the buffer.

  Args:
    query_ids: question of each of N trajectories.
    rewards: outcome reward of each.
    k: most to keep for one question. The paper keeps 5 of 16.
    min_reward: a reward must be above it.

  Returns:
    Positions of the kept trajectories, ascending. Among equal rewards the
    earlier ones stay.
  """
  by_query: dict[str, list[int]] = collections.defaultdict(list)
  rows = zip(query_ids, rewards, strict=True)
  for position, (query_id, reward) in enumerate(rows):
    if reward > min_reward:
      by_query[query_id].append(position)
  best = (
    sorted(positions, key=lambda position: -rewards[position])[:k]
    for positions in by_query.values()
  )
  return sorted(itertools.chain.from_iterable(best))
