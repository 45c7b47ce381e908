"""What a run adds to its Step-Trace Buffer."""

import types

import numpy as np
import pytest

from experiments.config import GrowConfig
from experiments.stages import growth
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory

PROMPT, POLICY, OBSERVED, RETRIEVED = (
  TokenKind.PROMPT,
  TokenKind.POLICY,
  TokenKind.OBSERVATION,
  TokenKind.RETRIEVED,
)
QUERIES = [
  types.SimpleNamespace(query_id=name, question=f"Question {name}?")
  for name in "ab"
]


class Letters:
  """Token i is the i-th letter."""

  def decode(self, tokens, **_):
    return "".join(chr(97 + token) for token in tokens)


def trajectory(group_id, index, kinds, steps):
  count = len(kinds)
  return Trajectory(
    tokens=np.arange(count),
    kinds=np.array(kinds),
    step_ids=np.array(steps),
    log_probs=np.zeros(count),
    entropies=np.zeros(count),
    query_id=QUERIES[group_id].query_id,
    group_id=group_id,
    index=index,
    hybrid=True,
    policy_version=6,
    finish_reason=FinishReason.ANSWER,
  )


def own_traces(values, **changes):
  trajectories = [
    trajectory(0, 0, [PROMPT, POLICY, OBSERVED, POLICY], [-1, 0, 0, 1]),
    trajectory(0, 1, [PROMPT, POLICY, POLICY], [-1, 0, 0]),
    trajectory(
      0, 2, [PROMPT, POLICY, OBSERVED, RETRIEVED, POLICY], [-1, 0, 0, 1, 2]
    ),
    trajectory(1, 0, [PROMPT, POLICY], [-1, 0]),
  ]
  experience = types.SimpleNamespace(
    trajectories=trajectories,
    scores=[types.SimpleNamespace(value=value) for value in values],
  )
  return growth.own_traces(
    experience,
    QUERIES,
    Letters(),
    GrowConfig(**changes),
    update=7,
    first_trace_id=40,
  )


def test_the_best_of_each_question_that_retrieved_nothing():
  traces = own_traces([0.5, 0.25, 1.0, 1.1])
  assert [
    (t.trace_id, t.query_id, t.step_index, t.history, t.step) for t in traces
  ] == [
    (40, "a", 0, (), "bc"),
    (41, "a", 1, ("bc",), "d"),
    (42, "b", 0, (), "b"),
  ]
  assert [t.reward for t in traces] == [0.5, 0.5, 1.1]
  assert {t.source for t in traces} == {"policy"}
  assert {t.trajectory_id for t in traces} == {"update7/a/0", "update7/b/0"}
  assert traces[0].question == "Question a?"


def test_how_many_and_how_good():
  several = own_traces([0.5, 0.25, 1.0, 0.0], top_k_trajectories=2)
  assert [t.trajectory_id for t in several] == [
    *["update7/a/0"] * 2,
    "update7/a/1",
  ]
  assert own_traces([0.5, 0.25, 1.0, 0.5], min_reward=0.5) == []


@pytest.mark.parametrize("name", ["top_k_trajectories", "merge_every"])
def test_config_is_checked(name):
  with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
    GrowConfig(**{name: 0})
