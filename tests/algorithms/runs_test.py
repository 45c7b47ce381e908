"""Every method trains: two updates of a tiny policy with known answers.

What they run was compiled before, and that left the state as it was.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax import models, rewards
from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.compilation import compilations
from rapo_jax.training import OptimizerConfig, Trainer, init_train_state
from rapo_jax.training.agent_rows import AgentEncoder, AgentRows
from tests.tiny_decoder import tiny_decoder
from tests.training.answers import (
  QUERY,
  ROLLOUT,
  TOKENIZER,
  UPDATE,
  WRONG,
  Engine,
)

# RAPO's ablations differ in what is retrieved, of which nothing is here.
METHODS = [name for name in ALGORITHMS if not name.startswith("rapo_")]


@pytest.mark.parametrize("method", METHODS)
def test_two_updates(method):
  trainer = Trainer(
    Engine(),
    TOKENIZER,
    rollout=ROLLOUT,
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(),
    update=UPDATE,
    seed=0,
    algorithm=ALGORITHMS[method],
    agent_rows=AgentRows(
      {"live1": [(WRONG,)], "live2": [(WRONG,)]},
      AgentEncoder(
        TOKENIZER,
        rewards.RECIPE_TAGS,
        max_response_tokens=ROLLOUT.max_response_tokens,
        max_steps=ROLLOUT.max_steps,
      ),
    ),
  )
  state = init_train_state(
    tiny_decoder(vocab_size=len(TOKENIZER)), OptimizerConfig()
  )
  # As where a part of it is restored.
  leaves, treedef = jax.tree.flatten(state)
  leaves[::2] = jax.device_put(leaves[::2], jax.devices()[0])
  state = jax.tree.unflatten(treedef, leaves)
  whole = jax.device_get(state)
  state = trainer.compile(state)
  jax.tree.map(np.testing.assert_array_equal, whole, jax.device_get(state))
  before = jax.device_get(jax.tree.leaves(models.trainable(state.model)))
  queries = [
    dataclasses.replace(QUERY, query_id=name, ground_truth=("a",))
    for name in ("live1", "live2")
  ]
  store = []
  for update in range(2):
    count = trainer.num_fresh(store)
    with compilations() as compiled:
      state, experience, row = trainer.step(
        state,
        queries[:count],
        [np.array([1])] * count,
        update,
        store=store,
      )
    assert compiled == []
    store = trainer.stored(store, experience)
    assert np.isfinite(row["loss"])
    assert 0 < row["gradient_norm"] < 1e3
    if ALGORITHMS[method].plan.teacher == "all":
      assert (experience.advantages == 1).all()
      continue
    # Right answers come first in each group, and wrong ones second.
    for index in (0, 2):
      assert experience.mean_advantage(index) > 0
      assert experience.mean_advantage(index + 1) < 0
  after = jax.tree.leaves(models.trainable(state.model))
  assert any(np.any(new != old) for new, old in zip(after, before, strict=True))
