"""Log-probabilities before the update, for losses that read them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, TokenLoss
from rapo_jax.training import OptimizerConfig, Trainer, init_train_state
from tests.tiny_decoder import tiny_decoder
from tests.training.answers import QUERY, ROLLOUT, TOKENIZER, UPDATE, Engine


def _moved(log_probs, columns, settings):
  del settings
  return log_probs - columns["proximal_log_probs"]


def _losses(algorithm, *, epochs: int) -> list[float]:
  """Mean losses of two updates."""
  trainer = Trainer(
    Engine(),
    TOKENIZER,
    rollout=ROLLOUT,
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    update=dataclasses.replace(UPDATE, epochs=epochs),
    seed=0,
    algorithm=algorithm,
  )
  state = init_train_state(
    tiny_decoder(vocab_size=len(TOKENIZER)), OptimizerConfig()
  )
  queries = [
    dataclasses.replace(QUERY, query_id=name, ground_truth=("a",))
    for name in ("live1", "live2")
  ]
  losses = []
  for update in range(2):
    state, _, row = trainer.step(state, queries, [np.array([1])] * 2, update)
    losses.append(row["loss"])
  return losses


@pytest.mark.parametrize(("epochs", "falls"), [(1, False), (2, True)])
def test_they_are_of_the_policy_before_the_first_minibatch(epochs, falls):
  loss = TokenLoss(_moved, ("proximal_log_probs",))
  algorithm = dataclasses.replace(ALGORITHMS["grpo"], loss=loss)
  for value in _losses(algorithm, epochs=epochs):
    # The loss pushes all log-probabilities down, from 0 in the first epoch.
    assert value < -1e-3 if falls else abs(value) < 1e-5


def test_a_loss_of_replayed_rollouts_trains_on_fresh_ones():
  algorithm = ALGORITHMS["rollout_replay"]
  assert np.isfinite(_losses(algorithm, epochs=2)).all()
