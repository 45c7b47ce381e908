"""Algorithms, losses and plans as values."""

import dataclasses

import numpy as np
import pytest

from rapo_jax.algorithms import (
  ALGORITHMS,
  CLIPPED_LOSS,
  ObjectiveConfig,
  Plan,
  Resample,
  TokenLoss,
  find_algorithm,
  unique,
)
from rapo_jax.errors import InputError
from rapo_jax.rollout import RolloutConfig
from rapo_jax.trajectory import Source
from tests.algorithms import losses

GRPO = ALGORITHMS["grpo"]


def _loss(log_probs, columns, settings):
  return log_probs


def test_a_method_changes_what_it_names_and_nothing_else():
  objective = ObjectiveConfig(quality_scale=3.0, shaping_coef=0.5)
  settings = GRPO.settings(objective)
  assert settings == dataclasses.replace(
    objective, retrieval_coef=0.0, shaping_coef=0.0
  )
  assert ALGORITHMS["rapo"].settings(objective) == objective


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_without_an_advantage_a_loss_vanishes_if_it_says_so(name):
  algorithm = ALGORITHMS[name]
  assert algorithm.loss.vanishes
  ratios = np.asarray([0.01, 0.5, 1, 1.3, 20, 0.7], np.float32)
  gaps, slopes = losses.tokens(
    algorithm,
    ratios,
    np.zeros(6),
    retrieved_fraction=[0, 0.5, 0, 0.2, 0.9, 1],
    proximal_log_probs=np.linspace(-3, -0.1, 6, dtype=np.float32),
    segment_log_ratio=np.log(ratios),
    source=np.asarray([0, 0, 0, Source.AGENT, Source.AGENT, Source.REPLAY]),
  )
  np.testing.assert_array_equal(gaps, 0)
  np.testing.assert_array_equal(slopes, 0)


def test_a_plan_without_hybrid_rollouts_has_none():
  config = RolloutConfig(num_generations=8, num_hybrid=4)
  assert Plan().rollout(config).num_hybrid == 0
  assert Plan(hybrid=True).rollout(config) == config


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "My own"}, "lower case letters, digits and _"),
    ({"name": "base"}, "and none of base, warm_start, off_policy"),
    ({"loss": _loss}, r"must be a TokenLoss.*write TokenLoss\(function\)"),
    ({"advantages": 3}, "advantages of the algorithm grpo must be a function"),
    ({"colour": "red"}, "must be #rrggbb, got 'red'"),
    ({"changes": {"clip": 0.1}}, "fields of ObjectiveConfig, got clip"),
    ({"changes": {"clip_epsilon_low": 2.0}}, "clip_epsilon_low must lie in"),
  ],
)
def test_an_algorithm_that_cannot_be(changes, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(GRPO, **changes)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((3,), "needs a function, got 3"),
    ((_loss, ("log_probs",)), "must be a tuple of old_log_probs, adv"),
    ((_loss, "advantages"), "must be a tuple of"),
    ((_loss, (), "word"), "must be None, trajectory or step, got 'word'"),
    ((_loss, (), "step"), "both the column segment_log_ratio and segment"),
    ((_loss, ("segment_log_ratio",)), "both the column segment_log_ratio"),
  ],
)
def test_a_loss_that_cannot_be(arguments, message):
  with pytest.raises(InputError, match=message):
    TokenLoss(*arguments)


def test_resampling_needs_a_round():
  with pytest.raises(InputError, match="at least 1 round"):
    Resample(lambda rewards, correct: True, max_rounds=0)


def test_the_table_knows_its_methods_by_name():
  assert find_algorithm("grpo") is GRPO
  assert find_algorithm(GRPO) is GRPO
  assert list(ALGORITHMS) == sorted(ALGORITHMS)
  for name, algorithm in ALGORITHMS.items():
    assert algorithm.name == name
  assert len({a.colour for a in ALGORITHMS.values()}) == len(ALGORITHMS)
  with pytest.raises(InputError, match=r"must be one of aepo, .*got 'ppo'"):
    find_algorithm("ppo")


def test_two_methods_of_one_name_are_refused():
  with pytest.raises(InputError, match="two that are called 'grpo'"):
    unique([GRPO, dataclasses.replace(GRPO, loss=TokenLoss(_loss))])
  # Keys of compiled programs: equal values are the same key.
  assert len({CLIPPED_LOSS, dataclasses.replace(CLIPPED_LOSS)}) == 1
  assert hash(dataclasses.replace(GRPO)) == hash(GRPO)
