"""Worked trajectories as examples of supervised learning: a warm start.

An example is what a rollout would have: the prompt, what the agent writes,
results, and in some of them retrieved steps. The agent's own tokens alone are
in the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rapo_jax.data.order import epoch_order
from rapo_jax.errors import InputError
from rapo_jax.rollout import RolloutConfig
from rapo_jax.training.agent_rows import AgentEncoder, Response
from rapo_jax.training.examples import Example
from rapo_jax.trajectory import TokenKind

Steps = tuple[str, ...]


class Worked(NamedTuple):
  """A trajectory that fits.

  Attributes:
    query_id: of its question.
    steps: texts of its steps.
    response: the same in tokens, without retrieved steps.
  """

  query_id: str
  steps: Steps
  response: Response


class Demonstrations:
  """Trajectories to learn from, and others to measure the loss on.

  One that is longer than a row, or than a rollout may be, is left out.

  Args:
    trajectories: texts of the steps of each, by question.
    prompts: tokens of a question's prompt, by its id.
    encode: writes steps in the policy's tokens.
    rollout: budgets of a rollout.
    row_length: most tokens of an example.
    held_out: questions that are kept apart for the loss.
    retrieved_share: share of the demonstrations that may hold retrieved steps.
    retrieved_prob: in those, probability of one at a boundary.
    seed: of all that is drawn.

  Attributes:
    train: trajectories to learn from.
    held_out: those on the questions that are kept apart.
    num_left_out: trajectories that do not fit.
  """

  def __init__(
    self,
    trajectories: Mapping[str, Sequence[Sequence[str]]],
    prompts: Callable[[str], Int[np.ndarray, " _"]],
    encode: AgentEncoder,
    rollout: RolloutConfig,
    *,
    row_length: int,
    held_out: int = 0,
    retrieved_share: float = 0.0,
    retrieved_prob: float = 0.0,
    seed: int = 0,
  ):
    self._prompts = prompts
    self._encode = encode
    self._rollout = rollout
    self._row_length = row_length
    self._share = retrieved_share
    self._prob = retrieved_prob
    self._seed = seed
    self.num_left_out = 0
    by_question: dict[str, list[Worked]] = {}
    for query_id, own in trajectories.items():
      for steps in own:
        response = self._fitting(query_id, tuple(steps))
        if response is None:
          self.num_left_out += 1
          continue
        worked = Worked(query_id, tuple(steps), response)
        by_question.setdefault(query_id, []).append(worked)
    self._steps = {
      query_id: [one.steps for one in own]
      for query_id, own in by_question.items()
    }
    names = list(by_question)
    order = epoch_order(seed, 0, len(names)) if names else ()
    apart = {names[i] for i in order[:held_out]}
    self.train = [w for n in names if n not in apart for w in by_question[n]]
    self.held_out = [w for n in names if n in apart for w in by_question[n]]

  def num_tokens(self, worked: Worked) -> int:
    """Tokens of an example without retrieved steps, its prompt among them."""
    return len(self._prompts(worked.query_id)) + len(worked.response.tokens)

  def held_out_examples(self) -> list[Example]:
    """Those to measure the loss on; none holds a retrieved step."""
    return [self._example(w.query_id, w.response) for w in self.held_out]

  def examples(self) -> Iterator[Example]:
    """Those to learn from, without end.

    Each epoch has an order of its own, and draws retrieved steps anew.

    Raises:
      InputError: there is none.
    """
    if not self.train:
      raise InputError(
        "demonstrations must hold at least one to learn from, got 0: give "
        "trajectories that fit."
      )
    epoch = 0
    while True:
      for index in epoch_order(self._seed, epoch, len(self.train)).tolist():
        rng = np.random.default_rng([self._seed, epoch, index])
        yield self._drawn(self.train[index], rng)
      epoch += 1

  def _drawn(self, worked: Worked, rng: np.random.Generator) -> Example:
    """An example, with retrieved steps if they are drawn and fit."""
    response = worked.response
    if rng.random() < self._share:
      others = self._steps[worked.query_id]
      steps, retrieved = with_retrieved(worked.steps, others, self._prob, rng)
      if retrieved:
        found = self._fitting(worked.query_id, steps, retrieved)
        response = response if found is None else found
    return self._example(worked.query_id, response)

  def _fitting(
    self, query_id: str, steps: Steps, retrieved: frozenset[int] = frozenset()
  ) -> Response | None:
    """A trajectory in tokens; None if it is longer than it may be."""
    response = self._encode(steps, retrieved)
    if response is None or not _within(response, self._rollout):
      return None
    length = len(self._prompts(query_id)) + len(response.tokens)
    return response if length <= self._row_length else None

  def _example(self, query_id: str, response: Response) -> Example:
    prompt = self._prompts(query_id)
    return Example(
      np.concatenate([prompt, response.tokens]).astype(np.int32),
      np.concatenate(
        [np.zeros(len(prompt), bool), response.kinds == TokenKind.POLICY]
      ),
    )


def with_retrieved(
  steps: Steps,
  others: Sequence[Steps],
  probability: float,
  rng: np.random.Generator,
) -> tuple[Steps, frozenset[int]]:
  """A trajectory that goes on from retrieved steps at some of its boundaries.

  At a boundary the next step of a trajectory with the same steps so far is
  retrieved. It is another one, where another goes on otherwise; else it is this
  one. From there on that trajectory is followed, behind the retrieved step. A
  last step that was retrieved is written all the same.

  Args:
    steps: of the trajectory. Its first step is always written.
    others: all trajectories on its question.
    probability: of a retrieval at a boundary. After one, a step is written.
    rng: source of what is drawn.

  Returns:
    The steps, and the numbers of those that are retrieved.
  """
  found, retrieved = [steps[0]], set()
  at = 1
  while at < len(steps):
    if rng.random() < probability:
      so_far, following = steps[:at], steps[at]
      fork = [
        other
        for other in others
        if other[:at] == so_far and len(other) > at and other[at] != following
      ]
      steps = fork[rng.integers(len(fork))] if fork else steps
      retrieved.add(len(found))
      found.append(steps[at])
      at = min(at + 1, len(steps) - 1)
    found.append(steps[at])
    at += 1
  return tuple(found), frozenset(retrieved)


def _within(response: Response, rollout: RolloutConfig) -> bool:
  """Whether a rollout's budgets for steps, results and calls hold it."""
  counts = {
    kind: np.bincount(response.step_ids[response.kinds == kind], minlength=1)
    for kind in (TokenKind.POLICY, TokenKind.OBSERVATION)
  }
  observed = counts[TokenKind.OBSERVATION]
  return bool(
    counts[TokenKind.POLICY].max() <= rollout.max_step_tokens
    and observed.max() <= rollout.max_tool_tokens
    and np.count_nonzero(observed) <= rollout.max_tool_calls
  )
