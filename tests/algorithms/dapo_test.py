"""DAPO's rule of resampling, and what becomes of several rounds."""

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig

DAPO = ALGORITHMS["dapo"]


@pytest.mark.parametrize(
  ("rewards", "kept"),
  [
    ([0.1, 0.1, 0.1, 0.1], False),
    ([0.3, 0.1 + 0.2], True),
    ([1.0, 0.0], True),
    ([0.5], True),
  ],
)
def test_equal_rewards_teach_nothing(rewards, kept):
  rewards = np.asarray(rewards)
  assert DAPO.plan.resample.keep(rewards, rewards == 1) == kept


def test_the_recipe():
  settings = DAPO.settings(ObjectiveConfig(shaping_coef=0.3))
  assert settings.clip_epsilon_high == 0.28
  assert settings.dual_clip == 3.0
  assert settings.aggregation == "token"
  assert settings.length_limit == "soft"
  assert settings.shaping_coef == 0.0
