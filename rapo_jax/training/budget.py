"""What an update's rollouts took, so that methods are compared fairly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from rapo_jax.trajectory import Source, ToolEvent, Trajectory


class Budget(NamedTuple):
  """What was sampled for an update, trained on or not.

  Attributes:
    rollouts: trajectories that the policy sampled, twins too.
    generated_tokens: tokens that it sampled; those before a fork, or that a
      twin shares, count once.
    tool_calls: calls that it made, malformed ones too.
  """

  rollouts: int = 0
  generated_tokens: int = 0
  tool_calls: int = 0

  def plus(self, other: Budget) -> Budget:
    """What both took."""
    return Budget(*(a + b for a, b in zip(self, other, strict=True)))


def budget_of(trajectories: Iterable[Trajectory]) -> Budget:
  """What sampling these trajectories took.

  Rows of a store or of another agent took nothing.
  """
  sampled = [
    one
    for trajectory in trajectories
    if trajectory.source is Source.POLICY
    for one in (trajectory, *trajectory.twins)
  ]
  return Budget(
    len(sampled),
    sum(int(np.sum(own_tokens(t) & t.policy_mask)) for t in sampled),
    sum(len(own_calls(t)) for t in sampled),
  )


def own_tokens(trajectory: Trajectory) -> Bool[np.ndarray, " T"]:
  """Tokens of a response that are not copied from a parent."""
  own: Bool[np.ndarray, " T"] = trajectory.step_ids >= trajectory.shared_steps
  return own


def own_calls(trajectory: Trajectory) -> list[ToolEvent]:
  """Tool calls that are not copied from a parent."""
  first = trajectory.shared_steps
  return [e for e in trajectory.tool_events if e.step_id >= first]
