"""Trajectories of another agent as rows of a group, in the policy's tokens."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rapo_jax.data import TextEncoder
from rapo_jax.retrieval import StepTrace
from rapo_jax.rollout import retrieved_text
from rapo_jax.tools.tags import THINK, TagSet
from rapo_jax.trajectory import FinishReason, Source, TokenKind, Trajectory

# Only a result's tag shows that the text is not the agent's.
_RESULT = "<result>"
_THOUGHT = f"<{THINK}>"


def whole_trajectories(
  traces: Iterable[StepTrace],
  questions: Mapping[str, str],
  *,
  min_reward: float,
) -> dict[str, list[tuple[str, ...]]]:
  """Steps of the trajectories that a Step-Trace Buffer holds to their answer.

  Args:
    traces: of the buffer. Those without the id of a trajectory are left out.
    questions: text of each question that is wanted, by its id. Traces from
      elsewhere, which have other ids, are of the question with their text.
    min_reward: a reward must be above it.

  Returns:
    By question, in the order of the traces: texts of the steps.
  """
  ids = {text: query_id for query_id, text in questions.items()}
  found: dict[str, dict[str, tuple[str, ...]]] = collections.defaultdict(dict)
  for trace in traces:
    known = trace.query_id in questions
    name = trace.query_id if known else ids.get(trace.question)
    if (
      trace.trajectory_id
      and trace.answers
      and trace.reward > min_reward
      and name is not None
    ):
      found[name][trace.trajectory_id] = (*trace.history, trace.step)
  return {name: list(own.values()) for name, own in found.items()}


class Response(NamedTuple):
  """What an agent wrote and read behind a prompt, `T` tokens.

  Attributes:
    tokens: ids.
    kinds: `TokenKind` of each.
    step_ids: step of each, from 0 on.
  """

  tokens: Int[np.ndarray, " T"]
  kinds: Int[np.ndarray, " T"]
  step_ids: Int[np.ndarray, " T"]


class AgentEncoder:
  """Encodes another agent's steps as the policy's rollout would have them.

  What the agent wrote is of the kind `POLICY`, results are observations.
  Nothing in its text becomes a control token.

  Args:
    tokenizer: of the policy.
    tag_set: tags of the policy's tools. They end what the agent wrote.
    max_response_tokens: most tokens of a response.
    max_steps: most steps of a trajectory, retrieved ones among them.
    opened: whether prompts end within a thought, as some templates have it.
  """

  def __init__(
    self,
    tokenizer: Any,
    tag_set: TagSet,
    *,
    max_response_tokens: int,
    max_steps: int,
    opened: bool = False,
  ):
    self._encode = TextEncoder(tokenizer, tag_set)
    self._tag_set = tag_set
    self._max_tokens = max_response_tokens
    self._max_steps = max_steps
    self._opened = opened

  def __call__(
    self, steps: Sequence[str], retrieved: Collection[int] = ()
  ) -> Response | None:
    """Tokens of a trajectory.

    Args:
      steps: texts of its steps, each with its result.
      retrieved: numbers of those that were inserted between retrieve tags.

    Returns:
      None if it is longer than it may be, or has a result behind a call that
      is not one of the policy's tools.
    """
    if len(steps) > self._max_steps:
      return None
    pieces: list[tuple[TokenKind, int, list[int]]] = []
    for number, step in enumerate(steps):
      if number in retrieved:
        ids = self._encode(retrieved_text(step))
        pieces.append((TokenKind.RETRIEVED, number, ids))
        continue
      if self._opened and not number:
        step = _without_opening(step)
      own, result = self._tag_set.split_step(step)
      if _RESULT in own:
        return None
      pieces.append((TokenKind.POLICY, number, self._encode(own)))
      if result:
        pieces.append((TokenKind.OBSERVATION, number, self._encode(result)))
    if sum(len(ids) for _, _, ids in pieces) > self._max_tokens:
      return None
    lengths = [len(ids) for _, _, ids in pieces]
    return Response(
      np.array([token for _, _, ids in pieces for token in ids]),
      np.repeat([int(kind) for kind, _, _ in pieces], lengths),
      np.repeat([number for _, number, _ in pieces], lengths),
    )


def _without_opening(step: str) -> str:
  """A first step behind a prompt that opens its thought."""
  if step.lstrip().startswith(_THOUGHT):
    return step.lstrip().removeprefix(_THOUGHT)
  # It does not think: the thought is an empty one.
  return f"</{THINK}>{step}"


class AgentRows:
  """Another agent's trajectories, encoded once.

  One that `AgentEncoder` does not take is left out.

  Args:
    trajectories: texts of the steps of each, by question.
    encode: an `AgentEncoder`.
  """

  def __init__(
    self,
    trajectories: Mapping[str, Sequence[Sequence[str]]],
    encode: AgentEncoder,
  ):
    self._rows: dict[str, list[Response]] = {}
    for query_id, own in trajectories.items():
      for steps in own:
        response = encode(steps)
        if response is not None:
          self._rows.setdefault(query_id, []).append(response)

  @property
  def query_ids(self) -> frozenset[str]:
    """Questions with a trajectory."""
    return frozenset(self._rows)

  def draw(
    self,
    query_id: str,
    prompt: Int[np.ndarray, " P"],
    count: int,
    rng: np.random.Generator,
    *,
    fill: bool = False,
  ) -> list[Trajectory]:
    """Trajectories of a question, uniformly and each once.

    Args:
      query_id: of the question.
      prompt: its tokens.
      count: most that are wanted.
      rng: of the seed, update and question.
      fill: whether they come again, in the same order, up to `count`.

    Returns:
      As many as there are, up to `count`; their places are to be set.
    """
    own = self._rows.get(query_id, [])
    chosen = rng.permutation(len(own))
    if fill and own:
      chosen = np.resize(chosen, count)
    chosen = chosen[:count]
    return [self._trajectory(query_id, prompt, own[i]) for i in chosen]

  def draw_prefix(
    self, query_id: str, rng: np.random.Generator, *, room: int, most: int
  ) -> tuple[Int[np.ndarray, " _"], ...]:
    """First steps of a trajectory of a question, each with its result.

    Trajectory and number of steps are drawn uniformly; the last step is never
    among them.

    Args:
      query_id: of the question.
      rng: of the seed, update and question.
      room: most tokens of all steps.
      most: most steps.

    Returns:
      Token ids of each step; none where there is no trajectory.
    """
    own = self._rows.get(query_id, [])
    if not own:
      return ()
    tokens, _, step_ids = own[rng.integers(len(own))]
    last = int(step_ids[-1])
    ends = np.searchsorted(step_ids, np.arange(last), side="right")
    most = min(last, most, int(np.sum(ends <= room)))
    if most < 1:
      return ()
    count = int(rng.integers(1, most + 1))
    return tuple(np.split(tokens[: ends[count - 1]], ends[: count - 1]))

  def _trajectory(
    self, query_id: str, prompt: Int[np.ndarray, " P"], response: Response
  ) -> Trajectory:
    tokens, kinds, step_ids = response
    before = np.full(len(prompt), -1)
    return Trajectory(
      tokens=np.concatenate([prompt, tokens]).astype(np.int32),
      kinds=np.concatenate(
        [np.full(len(prompt), TokenKind.PROMPT), kinds]
      ).astype(np.int32),
      step_ids=np.concatenate([before, step_ids]).astype(np.int32),
      log_probs=np.zeros(len(prompt) + len(tokens), np.float32),
      entropies=np.zeros(len(prompt) + len(tokens), np.float32),
      query_id=query_id,
      group_id=0,
      index=0,
      hybrid=False,
      policy_version=0,
      finish_reason=FinishReason.ANSWER,
      source=Source.AGENT,
    )
