"""Trajectories of another agent as rows of a group, in the policy's tokens."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from rapo_jax.data import TextEncoder
from rapo_jax.retrieval import StepTrace
from rapo_jax.tools.tags import TagSet
from rapo_jax.trajectory import FinishReason, Source, TokenKind, Trajectory

_Response = tuple[np.ndarray, np.ndarray, np.ndarray]
# Only a result's tag shows that the text is not the agent's.
_RESULT = "<result>"
_THOUGHT = "<think>"


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


class AgentRows:
  """Another agent's trajectories, encoded once.

  What the agent wrote is of the kind `POLICY`, results are observations.
  Nothing in its text becomes a control token. A trajectory that is longer than
  a response may be is left out. So is one with a result behind a call that is
  not one of the policy's tools.

  Args:
    trajectories: texts of the steps of each, by question.
    tokenizer: of the policy.
    tag_set: tags of the policy's tools. They end what the agent wrote.
    max_response_tokens: most tokens of a response.
    max_steps: most steps of a trajectory.
    opened: whether prompts end within a thought, as some templates have it.
  """

  def __init__(
    self,
    trajectories: Mapping[str, Sequence[Sequence[str]]],
    tokenizer: Any,
    tag_set: TagSet,
    *,
    max_response_tokens: int,
    max_steps: int,
    opened: bool = False,
  ):
    self._encode = TextEncoder(tokenizer, tag_set)
    self._rows: dict[str, list[_Response]] = {}
    for query_id, own in trajectories.items():
      for steps in own:
        first = steps[0].removeprefix(_THOUGHT) if opened else steps[0]
        cut = [tag_set.split_step(step) for step in (first, *steps[1:])]
        if len(cut) > max_steps or any(_RESULT in text for text, _ in cut):
          continue
        response = self._response(cut)
        if len(response[0]) <= max_response_tokens:
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

  def _response(self, steps: Sequence[tuple[str, str]]) -> _Response:
    """Tokens, kinds and step ids of a response."""
    tokens: list[int] = []
    kinds: list[int] = []
    step_ids: list[int] = []
    for number, (own, result) in enumerate(steps):
      for kind, text in (
        (TokenKind.POLICY, own),
        (TokenKind.OBSERVATION, result),
      ):
        ids = self._encode(text) if text else []
        tokens += ids
        kinds += [kind] * len(ids)
        step_ids += [number] * len(ids)
    return np.array(tokens), np.array(kinds), np.array(step_ids)

  def _trajectory(
    self, query_id: str, prompt: Int[np.ndarray, " P"], response: _Response
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
