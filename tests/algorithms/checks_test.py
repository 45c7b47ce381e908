"""What is refused of an algorithm before the first rollout."""

import dataclasses

import jax.numpy as jnp
import pytest

from rapo_jax.algorithms import (
  ALGORITHMS,
  ObjectiveConfig,
  TokenLoss,
  check_algorithm,
)
from rapo_jax.errors import InputError

GRPO = ALGORITHMS["grpo"]


def _checked(**changes):
  check_algorithm(dataclasses.replace(GRPO, **changes), ObjectiveConfig())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_of_the_table_passes(name):
  check_algorithm(ALGORITHMS[name], ObjectiveConfig())


def test_a_loss_of_three_lines_passes():
  def reinforce(log_probs, columns, settings):
    return -columns["advantages"] * log_probs

  _checked(loss=TokenLoss(reinforce))


@pytest.mark.parametrize(
  ("loss", "message"),
  [
    (lambda p, c, s: p - p.mean(), "must take each token by itself"),
    (lambda p, c, s: p * c["advantages"].sum(), "take each token by itself"),
    (lambda p, c, s: jnp.cumsum(p)[::-1], "must take each token by itself"),
    (lambda p, c, s: p.sum(), r"one number a token, shape \(8,\), got \(\)"),
    (lambda p, c, s: p / 0, "must be finite, its value"),
    (lambda p, c, s: jnp.sqrt(p - p), "must be finite, its gradient"),
    (lambda p, c, s: p * c["entropies"], "reads 'entropies', which it does"),
  ],
)
def test_a_loss_that_breaks_the_rules(loss, message):
  with pytest.raises(InputError, match=message) as error:
    _checked(loss=TokenLoss(loss))
  assert "grpo" in str(error.value)


@pytest.mark.parametrize(
  ("advantages", "message"),
  [
    (lambda signals, settings: signals.rewards[:2], r"got shape \(2,\)"),
    (lambda signals, settings: 1.0, r"got shape \(\)"),
    (lambda signals, settings: signals.rewards * jnp.nan, "must be finite"),
  ],
)
def test_advantages_that_break_the_rules(advantages, message):
  with pytest.raises(InputError, match=message):
    _checked(advantages=advantages)


def test_a_retrieval_reward_of_another_shape():
  with pytest.raises(InputError, match="one number a trajectory"):
    _checked(retrieval_reward=lambda entropies, retrieved, **_: entropies)


def test_a_column_that_the_settings_do_not_make():
  loss = TokenLoss(lambda p, c, s: p, ("reference_log_probs",))
  with pytest.raises(InputError, match="needs a kl_coef above 0"):
    _checked(loss=loss)
