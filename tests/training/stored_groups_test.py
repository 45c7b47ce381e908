"""Groups of earlier updates, with an engine that knows the answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, Plan, Resample
from rapo_jax.algorithms.groups import rewards_differ
from rapo_jax.algorithms.replay import Replay
from rapo_jax.errors import InputError
from rapo_jax.training import OptimizerConfig, Trainer, init_train_state
from rapo_jax.training.stored_groups import from_bytes, to_bytes
from rapo_jax.trajectory import RetrievalEvent, Source, ToolEvent
from tests.tiny_decoder import tiny_decoder
from tests.training.answers import QUERY, ROLLOUT, TOKENIZER, UPDATE, Engine

ALGORITHM = ALGORITHMS["rollout_replay"]


def _trainer():
  return Trainer(
    Engine(),
    TOKENIZER,
    rollout=ROLLOUT,
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(),
    update=UPDATE,
    seed=0,
    algorithm=ALGORITHM,
  )


def _step(trainer, names, update, store=()):
  state = init_train_state(
    tiny_decoder(vocab_size=len(TOKENIZER)), OptimizerConfig()
  )
  queries = [
    dataclasses.replace(QUERY, query_id=name, ground_truth=("a",))
    for name in names
  ]
  prompts = [np.array([1])] * len(queries)
  _, experience, row = trainer.step(
    state, queries, prompts, update, store=store
  )
  return experience, row


@pytest.fixture(scope="module")
def stored():
  trainer = _trainer()
  experience, _ = _step(trainer, ["live1", "dead1"], 3)
  return trainer.stored([], experience)


def test_what_teaches_is_stored(stored):
  (group,) = stored
  assert group.query_id == "live1"
  assert group.correct.tolist() == [True, False]
  assert group.content.query.query_id == "live1"
  assert {t.policy_version for t in group.content.trajectories} == {3}


def test_half_of_an_update_comes_from_the_store(stored):
  trainer = _trainer()
  assert trainer.num_fresh(stored) == 1
  experience, row = _step(trainer, ["live2"], 7, stored)
  by_source = {
    source: [t for t in experience.trajectories if t.source is source]
    for source in Source
  }
  assert {t.query_id for t in by_source[Source.POLICY]} == {"live2"}
  assert {t.query_id for t in by_source[Source.REPLAY]} == {"live1"}
  assert {t.policy_version for t in by_source[Source.REPLAY]} == {3}
  assert sorted(t.group_id for t in experience.trajectories) == [0, 0, 1, 1]
  for trajectory in experience.trajectories:
    query = experience.queries[trajectory.group_id]
    assert query.query_id == trajectory.query_id
  # Advantages are those of the group, as it was sampled.
  np.testing.assert_allclose(
    np.abs(experience.advantages), np.abs(experience.advantages[0]), rtol=1e-6
  )
  assert row["groups/replayed"] == 1
  assert row["budget/rollouts"] == 2
  assert row["budget/leaves"] == 4
  own = sum(int(t.policy_mask.sum()) for t in by_source[Source.POLICY])
  assert row["rollout/generated_tokens"] == own
  assert row["rollout/finished_answer"] == 1.0
  # What is replayed is not stored again, and not lost.
  names = [g.query_id for g in trainer.stored(stored, experience)]
  assert names == ["live1", "live2"]


def test_a_question_too_many(stored):
  with pytest.raises(InputError, match="asks 1 questions, got 2"):
    _step(_trainer(), ["live2", "live3"], 7, stored)


def test_groups_are_written_and_read_again(stored):
  (group,) = stored
  first, second = group.content.trajectories
  events = (
    ToolEvent(0, "search", "\ud800é", "<result> x </result>", "ok", 0.1),
    RetrievalEvent(1, "hit", similarity=1 / 3, answers=True),
  )
  first = dataclasses.replace(first, group_id=0, events=events)
  second = dataclasses.replace(second, group_id=0, parent=0, shared_steps=1)
  content = group.content._replace(trajectories=[first, second])
  (read,) = from_bytes(to_bytes([group._replace(content=content)]))
  assert read.query_id == group.query_id
  assert read.rewards.tolist() == group.rewards.tolist()
  assert read.correct.dtype == bool
  assert read.content.query == group.content.query
  assert [s.record() for s in read.content.scores] == [
    s.record() for s in group.content.scores
  ]
  for new, old in zip(read.content.trajectories, [first, second], strict=True):
    for field in dataclasses.fields(old):
      mine, wanted = getattr(new, field.name), getattr(old, field.name)
      if isinstance(wanted, np.ndarray):
        assert mine.dtype == wanted.dtype
        np.testing.assert_array_equal(mine, wanted)
      else:
        assert mine == wanted
  assert from_bytes(to_bytes([])) == []


def test_a_plan_fills_an_update_in_one_way():
  with pytest.raises(InputError, match="one way to fill an update"):
    Plan(replay=Replay(), resample=Resample(rewards_differ))
