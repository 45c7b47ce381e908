"""A sweep as methods of their own."""

import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, Plan, variants
from rapo_jax.errors import InputError
from rapo_jax.retrieval import RetrievalConfig
from rapo_jax.rollout import RolloutConfig

RAPO = ALGORITHMS["rapo"]


def test_a_setting_of_each_section():
  low, high = variants(RAPO, "retrieval.noise_prob", (0.0, 0.5))
  assert (low.name, high.name) == (
    "rapo_noise_prob_0_0",
    "rapo_noise_prob_0_5",
  )
  assert high.label == "RAPO, noise_prob 0.5"
  assert high.plan.retrieval(RetrievalConfig()).noise_prob == 0.5
  assert low.colour != high.colour
  (few,) = variants(RAPO, "rollout.num_hybrid", (1,))
  assert few.plan.rollout(RolloutConfig()).num_hybrid == 1
  (weak,) = variants(RAPO, "objective.shaping_coef", (0.3,))
  assert weak.settings(ObjectiveConfig()).shaping_coef == 0.3
  # All else is the method's.
  assert weak.plan == RAPO.plan
  assert weak.loss == RAPO.loss


def test_a_method_without_hybrid_rollouts_has_none_whatever_it_sets():
  (grpo,) = variants(ALGORITHMS["grpo"], "rollout.num_hybrid", (3,))
  assert grpo.plan.rollout(RolloutConfig()).num_hybrid == 0


@pytest.mark.parametrize(
  ("setting", "values", "message"),
  [
    ("optimizer.learning_rate", (1.0,), "one of objective, retrieval, rollout"),
    ("retrieval.nois", (1.0,), "must be fields of RetrievalConfig, got nois"),
    ("objective.nois", (1.0,), "must be fields of ObjectiveConfig, got nois"),
    ("objective.shaping_coef", (0.1, 0.1), "values that differ"),
    ("objective.shaping_coef", (-1.0,), "shaping_coef"),
  ],
)
def test_what_cannot_be_swept(setting, values, message):
  with pytest.raises(InputError, match=message):
    variants(RAPO, setting, values)


def test_fields_of_a_plan_are_checked():
  with pytest.raises(InputError, match="rollout_changes of a plan"):
    Plan(rollout_changes={"hybrid": 3})
