"""RAPO with measured effects, by hand."""

import jax.numpy as jnp
import numpy as np

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.algorithms.rapo_effect import effect_rewards
from rapo_jax.retrieval import RetrievalConfig
from tests.algorithms import signals

NONE = np.nan
EFFECTS = [[NONE, 1.0, NONE, 0.0], [NONE, -1.0, NONE, NONE], [NONE] * 4]


def made():
  return signals.make(
    [1.0, 0.0, 1.0],
    [0, 0, 0],
    anchors=np.arange(12).reshape(3, 4),
    # The paper's retrieval reward has no say.
    retrieval=[-9.0, 9.0, 3.0],
    effects=EFFECTS,
  )


def test_the_reward_is_the_mean_of_what_was_measured():
  np.testing.assert_allclose(effect_rewards(made()), [0.5, -1.0, 0.0])


def test_advantages_are_rapos_of_that_reward():
  objective = ObjectiveConfig(retrieval_coef=0.5)
  rapo = ALGORITHMS["rapo"]
  expected = rapo.advantages(
    signals.make([1.0, 0.0, 1.0], [0, 0, 0], retrieval=[0.5, -1.0, 0.0]),
    objective,
  )
  actual = ALGORITHMS["rapo_effect"].advantages(made(), objective)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  assert np.isfinite(actual).all()
  # The one whose retrieval helped gains more than the one without a retrieval.
  assert actual[0] > actual[2] > 0 > actual[1]
  assert not jnp.allclose(actual, rapo.advantages(made(), objective))


def test_each_retrieved_step_is_probed():
  plan = ALGORITHMS["rapo_effect"].plan
  assert plan.retrieval(RetrievalConfig()).probe_share == 1.0
  assert ALGORITHMS["rapo"].plan.retrieval(RetrievalConfig()).probe_share == 0.0
