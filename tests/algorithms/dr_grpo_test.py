"""Dr. GRPO's advantages and settings."""

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.errors import InputError
from tests.algorithms import signals

DR_GRPO = ALGORITHMS["dr_grpo"]


def test_rewards_are_not_divided_by_their_deviation():
  made = signals.make([4.0, 0.0, 2.0], [0, 0, 0])
  actual = DR_GRPO.advantages(made, DR_GRPO.settings(ObjectiveConfig()))
  np.testing.assert_allclose(actual, [2.0, -2.0, 0.0])


def test_sums_are_divided_by_the_response_budget():
  settings = DR_GRPO.settings(ObjectiveConfig())
  assert settings.for_budget(300).aggregation_length == 300
  own = ObjectiveConfig(aggregation="constant", aggregation_length=7)
  assert own.for_budget(300) == own
  grpo = ALGORITHMS["grpo"].settings(ObjectiveConfig())
  assert grpo.for_budget(300) == grpo


def test_other_averages_have_no_length():
  with pytest.raises(InputError, match="to no other, got 7 with 'token'"):
    ObjectiveConfig(aggregation="token", aggregation_length=7)
