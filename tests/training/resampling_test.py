"""Several rollouts before one update, with an engine that knows the answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, Plan, Resample
from rapo_jax.training import OptimizerConfig, Trainer, init_train_state
from tests.tiny_decoder import tiny_decoder
from tests.training.answers import QUERY, ROLLOUT, TOKENIZER, UPDATE, Engine


def _batches(*rounds):
  """Queries of each round, by their ids."""
  return [
    [
      dataclasses.replace(QUERY, query_id=name, ground_truth=("a",))
      for name in names
    ]
    for names in rounds
  ]


def _step(batches, *, algorithm=None, max_rounds=3, more=True):
  engine = Engine()
  dapo = ALGORITHMS["dapo"]
  plan = Plan(resample=Resample(dapo.plan.resample.keep, max_rounds=max_rounds))
  trainer = Trainer(
    engine,
    TOKENIZER,
    rollout=ROLLOUT,
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(),
    update=UPDATE,
    seed=0,
    algorithm=algorithm or dataclasses.replace(dapo, plan=plan),
  )
  state = init_train_state(
    tiny_decoder(vocab_size=len(TOKENIZER)), OptimizerConfig()
  )
  prompts = [np.array([1])] * 2
  _, experience, row = trainer.step(
    state,
    batches[0],
    prompts,
    5,
    more=(lambda number: (batches[number], prompts)) if more else None,
  )
  return engine, experience, row


def _trained(experience):
  return [query.query_id for query in experience.queries]


def test_dead_groups_give_way_to_those_of_the_next_round():
  engine, experience, row = _step(
    _batches(["dead1", "live1"], ["live2", "live3"])
  )
  # The surplus is cut off, in order.
  assert _trained(experience) == ["live1", "live2"]
  assert row["rollout/rounds"] == 2
  assert row["groups/dropped"] == 2
  assert row["groups/live_fraction"] == 1.0
  assert [t.group_id for t in experience.trajectories] == [0, 0, 1, 1]
  assert {t.policy_version for t in experience.trajectories} == {5}
  # Random streams go by the index, so that a question can come again.
  assert engine.calls[0] == [
    ("dead1", 0),
    ("dead1", 1),
    ("live1", 0),
    ("live1", 1),
  ]
  assert [index for _, index in engine.calls[1]] == [2, 3, 2, 3]
  # What is dropped was sampled all the same.
  assert row["budget/rollouts"] == 8
  assert row["budget/leaves"] == 4
  assert row["budget/generated_tokens"] > row["rollout/generated_tokens"]
  assert row["rollout/seconds"] == 2.0
  assert row["tools/search/retries"] == 2


def test_the_last_round_fills_up_what_is_missing():
  _, experience, row = _step(
    _batches(["dead1", "dead2"], ["dead3", "live1"], ["dead4", "dead5"])
  )
  assert _trained(experience) == ["live1", "dead4"]
  assert row["rollout/rounds"] == 3
  assert row["groups/live_fraction"] == 0.5


def test_enough_groups_need_one_round():
  engine, experience, row = _step(_batches(["live1", "live2"]))
  assert _trained(experience) == ["live1", "live2"]
  assert len(engine.calls) == row["rollout/rounds"] == 1
  assert row["budget/generated_tokens"] == row["rollout/generated_tokens"]
  assert row["groups/dropped"] == 0


@pytest.mark.parametrize("case", ["no more questions", "no resampling"])
def test_without_resampling_all_groups_are_trained_on(case):
  changes = (
    {"more": False}
    if case == "no more questions"
    else {"algorithm": ALGORITHMS["grpo"]}
  )
  engine, experience, _ = _step(_batches(["dead1", "live1"]), **changes)
  assert len(engine.calls) == 1
  assert sorted(_trained(experience)) == ["dead1", "live1"]
