"""Rollouts by a rule when to retrieve, with an engine that knows the answers.

In a group of four the plain rollouts are 0 and 1. Those with an even index are
right on questions called "live", all of them on those called "dead".
"""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig
from rapo_jax.errors import InputError
from rapo_jax.retrieval import Miss, RetrievalConfig
from rapo_jax.rollout.between import Boundary
from rapo_jax.rollout.requests import group_requests
from rapo_jax.rollout.retriever import RetrievalHook
from rapo_jax.training import OptimizerConfig, Trainer, init_train_state
from tests.tiny_decoder import tiny_decoder
from tests.training.answers import QUERY, ROLLOUT, TOKENIZER, UPDATE, Engine


class Noting(Engine):
  """Notes which requests may retrieve, and how often."""

  def __init__(self):
    super().__init__()
    self.guidance = []

  def rollout(self, model, requests, *, seed, update):
    self.guidance.append(
      {
        (r.query.query_id, r.index): r.guidance if r.hybrid else 0.0
        for r in requests
      }
    )
    return super().rollout(model, requests, seed=seed, update=update)


def _step(method, share=1.0, num_hybrid=2):
  engine = Noting()
  trainer = Trainer(
    engine,
    TOKENIZER,
    rollout=dataclasses.replace(
      ROLLOUT, num_generations=4, num_hybrid=num_hybrid
    ),
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(),
    update=UPDATE,
    seed=0,
    algorithm=ALGORITHMS[method],
  )
  state = init_train_state(
    tiny_decoder(vocab_size=len(TOKENIZER)), OptimizerConfig()
  )
  queries = [
    dataclasses.replace(QUERY, query_id=name, ground_truth=truth)
    for name, truth in (("dead1", ("a",)), ("live1", ("a",)))
  ]
  _, experience, row = trainer.step(
    state, queries, [np.array([1])] * 2, 3, guidance=share
  )
  return engine, experience, row


def test_by_group_the_plain_half_decides():
  engine, experience, row = _step("rapo_dead")
  plain, hybrid = engine.guidance
  assert plain == {
    ("dead1", 0): 0.0,
    ("dead1", 1): 0.0,
    ("live1", 0): 0.0,
    ("live1", 1): 0.0,
  }
  assert hybrid == {
    ("dead1", 2): 1.0,
    ("dead1", 3): 1.0,
    ("live1", 2): 0.0,
    ("live1", 3): 0.0,
  }
  places = [(t.group_id, t.index) for t in experience.trajectories]
  assert places == [(g, i) for g in (0, 1) for i in range(4)]
  # Right, wrong, right, wrong on the live one.
  assert [s.correct for s in experience.scores] == [True] * 5 + [
    False,
    True,
    False,
  ]
  assert row["guidance/needed"] == row["guidance/given"] == 0.5
  assert row["rollout/rounds"] == 2
  assert row["rollout/seconds"] == 2.0
  assert row["budget/rollouts"] == row["budget/leaves"] == 8


def test_without_a_hybrid_half_there_is_one_rollout():
  engine, experience, row = _step("rapo_dead", num_hybrid=0)
  assert len(engine.guidance) == row["rollout/rounds"] == 1
  assert len(experience.trajectories) == 8


def test_a_solved_question_needs_no_guidance():
  engine, _, row = _step("rapo_unsolved")
  assert set(engine.guidance[1].values()) == {0.0}
  assert row["guidance/needed"] == row["guidance/given"] == 0.0


def test_by_share_all_are_sampled_at_once():
  engine, _, row = _step("rapo_dead_share", share=0.25)
  assert len(engine.guidance) == row["rollout/rounds"] == 1
  assert engine.guidance[0] == {
    (name, index): 0.25 if index > 1 else 0.0
    for name in ("dead1", "live1")
    for index in range(4)
  }
  assert row["guidance/given"] == 0.25
  # For the next update.
  assert row["guidance/needed"] == 0.5


@pytest.mark.parametrize("method", ["rapo_dead", "rapo_dead_share"])
def test_a_group_without_a_plain_half_is_refused(method):
  with pytest.raises(InputError, match="4 with 4 hybrid ones: lower"):
    _step(method, num_hybrid=4)


def test_methods_without_a_rule_say_nothing_of_it():
  _, _, row = _step("rapo")
  assert not [name for name in row if name.startswith("guidance/")]


class _Empty:
  """A buffer that holds nothing."""

  version = 0

  def retrieve(self, questions, histories, *, config, keys=None):
    return [Miss("empty buffer")] * len(questions)


@pytest.mark.parametrize(
  ("guidance", "wanted"), [(1.0, 0.5), (0.5, 0.25), (0.0, 0.0)]
)
def test_guidance_scales_the_probability(guidance, wanted):
  session = RetrievalHook(_Empty(), RetrievalConfig(), 0.5).session(
    threading.Condition()
  )
  [request] = group_requests(
    [QUERY], [np.array([1])], num_generations=1, num_hybrid=1
  )
  request = dataclasses.replace(request, guidance=guidance)
  found = np.mean(
    [
      session.wants(Boundary(None, request, 1, (), (), (0, i), 0.0))
      for i in range(2000)
    ]
  )
  assert found == pytest.approx(wanted, abs=0.04)
