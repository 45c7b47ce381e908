"""When a question needs guidance, by hand."""

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, GuideRule, Plan, Resample
from rapo_jax.algorithms.groups import rewards_differ
from rapo_jax.algorithms.guidance import dead, unsolved
from rapo_jax.errors import InputError


@pytest.mark.parametrize(
  ("rewards", "correct", "is_dead", "is_unsolved"),
  [
    ([0.0, 0.0], [False, False], True, True),
    ([1.0, 1.0], [True, True], True, False),
    ([0.0, 1.0], [False, True], False, False),
    # The format alone differs.
    ([-1.0, 0.0], [False, False], False, True),
    ([], [], True, True),
  ],
)
def test_what_needs_guidance(rewards, correct, is_dead, is_unsolved):
  arrays = np.array(rewards), np.array(correct, bool)
  assert dead(*arrays) == is_dead
  assert unsolved(*arrays) == is_unsolved


def test_one_rollout_is_judged_by_what_is_correct():
  # One reward cannot differ: `rewards_differ` keeps such a group.
  assert not dead(np.array([0.0]), np.array([False]))
  assert unsolved(np.array([0.0]), np.array([False]))


@pytest.mark.parametrize(
  ("method", "needed", "by"),
  [
    ("rapo_dead", dead, "group"),
    ("rapo_unsolved", unsolved, "group"),
    ("rapo_dead_share", dead, "share"),
    ("rapo_unsolved_share", unsolved, "share"),
  ],
)
def test_methods_are_rapo_with_a_rule(method, needed, by):
  algorithm, rapo = ALGORITHMS[method], ALGORITHMS["rapo"]
  assert algorithm.plan == Plan(hybrid=True, guide=GuideRule(needed, by))
  assert algorithm.loss == rapo.loss
  assert algorithm.advantages is rapo.advantages
  assert algorithm.changes == rapo.changes


@pytest.mark.parametrize(
  "wrong", [{"needed": "dead"}, {"needed": dead, "by": "question"}]
)
def test_a_wrong_rule_is_refused(wrong):
  with pytest.raises(InputError, match="GuideRule takes"):
    GuideRule(**wrong)


@pytest.mark.parametrize(
  "wrong",
  [{"hybrid": False}, {"hybrid": True, "resample": Resample(rewards_differ)}],
)
def test_a_rule_needs_rollouts_that_retrieve(wrong):
  with pytest.raises(InputError, match="needs a plan with hybrid=True"):
    Plan(guide=GuideRule(dead), **wrong)
