"""LUFFY's loss and advantages by hand."""

import dataclasses

import numpy as np
import pytest

from rapo_jax.algorithms import (
  ALGORITHMS,
  ObjectiveConfig,
  TokenLoss,
  check_algorithm,
)
from rapo_jax.algorithms.luffy import MixedLoss, on_policy_advantages
from rapo_jax.trajectory import Source
from tests.algorithms import signals
from tests.algorithms.losses import tokens


@pytest.mark.parametrize("name", ["luffy", "luffy_published"])
def test_it_is_an_algorithm(name):
  check_algorithm(ALGORITHMS[name], ObjectiveConfig())


@pytest.mark.parametrize(
  ("name", "value", "slope"),
  [("luffy", -1.2, 0.0), ("luffy_published", -2.0, -2.0)],
)
def test_the_policys_ratio_is_clipped_in_the_paper_alone(name, value, slope):
  values, slopes = tokens(
    ALGORITHMS[name],
    [2.0, 0.5],
    [1.0, 1.0],
    source=[Source.POLICY, Source.REPLAY],
  )
  np.testing.assert_allclose(values, [value, -0.5], rtol=1e-5)
  np.testing.assert_allclose(slopes, [slope, -0.5], rtol=1e-5)


@pytest.mark.parametrize(
  ("gamma", "shaped", "slope"),
  # p = 0.1: 0.1 / 0.2, and 0.1 * 0.1 / 0.2²; without shaping p itself.
  [(0.1, 0.5, 0.25), (None, 0.1, 0.1)],
)
def test_another_agents_tokens_are_shaped(gamma, shaped, slope):
  luffy = ALGORITHMS["luffy"]
  loss = TokenLoss(MixedLoss(gamma=gamma), luffy.loss.columns)
  values, slopes = tokens(
    dataclasses.replace(luffy, loss=loss),
    np.asarray([0.1, 0.1]) * np.exp(1.5),
    [2.0, -1.0],
    source=[Source.AGENT, Source.AGENT],
    # An agent's log-probabilities are not kept.
    old_log_probs=[0.0, np.nan],
  )
  np.testing.assert_allclose(values, [-2 * shaped, shaped], rtol=1e-5)
  np.testing.assert_allclose(slopes, [-2 * slope, slope], rtol=1e-5)


def test_an_agents_success_among_failures_stands_out():
  made = signals.make(
    [0.0, 0.0, 1.0, 3.0, 1.0, 4.0, 1.0],
    [0, 0, 0, 1, 1, 1, 2],
    sources=[0, 0, Source.AGENT, 0, 0, Source.AGENT, Source.AGENT],
  )
  plain = ObjectiveConfig(advantage_std=False)
  np.testing.assert_allclose(
    on_policy_advantages(made, plain), [0, 0, 1, 1, -1, 2, 0], atol=1e-6
  )
  # Deviations: 0, which counts as 1, and sqrt(2).
  root = 2**0.5
  np.testing.assert_allclose(
    on_policy_advantages(made, ObjectiveConfig(advantage_eps=0.0)),
    [0, 0, 1, 1 / root, -1 / root, 2 / root, 0],
    atol=1e-6,
  )
