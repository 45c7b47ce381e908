"""What rollouts took, by hand."""

import dataclasses

import numpy as np

from rapo_jax.training.budget import Budget, budget_of
from rapo_jax.trajectory import (
  FinishReason,
  Source,
  TokenKind,
  ToolEvent,
  Trajectory,
)

# A prompt, a step of two tokens with a result, a step of one token.
KINDS = [TokenKind.PROMPT, 1, 1, TokenKind.OBSERVATION, 1]
STEPS = [-1, 0, 0, 0, 1]
ROOT = Trajectory(
  tokens=np.arange(5, dtype=np.int32),
  kinds=np.asarray(KINDS, np.int8),
  step_ids=np.asarray(STEPS, np.int32),
  log_probs=np.zeros(5, np.float32),
  entropies=np.zeros(5, np.float32),
  query_id="q",
  group_id=0,
  index=0,
  hybrid=False,
  policy_version=0,
  finish_reason=FinishReason.ANSWER,
  events=(ToolEvent(0, "search", "x", "y", "ok", 0.1),),
)
FORK = dataclasses.replace(ROOT, index=1, parent=0, shared_steps=1)


def test_what_is_shared_counts_once():
  assert budget_of([ROOT]) == Budget(1, 3, 1)
  assert budget_of([ROOT, FORK]) == Budget(2, 4, 1)
  afresh = dataclasses.replace(FORK, shared_steps=0)
  assert budget_of([ROOT, afresh]) == Budget(2, 6, 2)


def test_twins_count_by_what_they_do_not_share():
  twin = dataclasses.replace(FORK, index=0)
  probed = dataclasses.replace(ROOT, twins=(twin, twin))
  assert budget_of([probed]) == Budget(3, 5, 1)


def test_rows_of_others_take_nothing():
  others = [
    dataclasses.replace(ROOT, source=source)
    for source in (Source.REPLAY, Source.AGENT)
  ]
  assert budget_of([*others, ROOT]) == Budget(1, 3, 1)


def test_budgets_add_up():
  assert Budget(1, 10, 2).plus(Budget(3, 5, 0)) == Budget(4, 15, 2)
