"""The store of groups, and the choice of questions, by hand."""

import math

import numpy as np
import pytest

from rapo_jax.algorithms.replay import (
  Replay,
  StoredGroup,
  difficulties,
  draw_by_difficulty,
  predicted_difficulties,
)
from rapo_jax.errors import InputError


def _group(name, rewards=(1.0, 0.0), content=None):
  rewards = np.asarray(rewards)
  return StoredGroup(name, rewards, rewards == 1, content)


def _names(groups):
  return [group.query_id for group in groups]


def test_the_newest_group_of_a_question_is_kept():
  replay = Replay(capacity=3)
  store = replay.stored([], [_group("a", content=1), _group("b")])
  store = replay.stored(
    store, [_group("dead", (1.0, 1.0)), _group("a", content=2), _group("c")]
  )
  assert _names(store) == ["b", "a", "c"]
  assert store[1].content == 2
  # A question that teaches nothing now leaves its older group in its place.
  store = replay.stored(store, [_group("b", (0.0, 0.0)), _group("d")])
  assert _names(store) == ["a", "c", "d"]


def test_a_share_of_an_update_comes_from_the_store():
  replay = Replay(share=0.5)
  assert replay.replayed(8, 4) == 4
  assert replay.replayed(8, 3) == 0
  assert replay.replayed(7, 100) == 3
  assert Replay(share=0.0).replayed(8, 100) == 0


def test_groups_are_drawn_once_and_again_the_same():
  replay = Replay(share=0.5)
  store = [_group(str(i)) for i in range(6)]

  def drawn(seed):
    return _names(replay.drawn(store, 8, np.random.default_rng([7, seed])))

  assert len(set(drawn(0))) == 4
  assert drawn(0) == drawn(0)
  counts = dict.fromkeys(_names(store), 0)
  for seed in range(300):
    for name in drawn(seed):
      counts[name] += 1
  # Each is expected 200 times.
  assert all(160 < count < 240 for count in counts.values())
  assert replay.drawn(store[:3], 8, np.random.default_rng(0)) == []


def test_difficulty_is_the_share_of_wrong_rollouts():
  correct = np.asarray([[True, True, True, False], [False] * 4])
  np.testing.assert_array_equal(difficulties(correct), [0.25, 1.0])


def test_like_questions_are_as_difficult():
  # Scores 1 and 0, after the division by 2: weights e and 1.
  predicted = predicted_difficulties(
    np.asarray([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
    np.asarray([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]),
    np.asarray([1.0, 0.0]),
  )
  np.testing.assert_allclose(predicted, [math.e / (math.e + 1), 0.5])


def test_questions_near_the_target_are_drawn():
  predicted = np.asarray([0.0, 0.45, 1.0, 0.52, 0.6])
  rng = np.random.default_rng(0)
  assert list(draw_by_difficulty(predicted, 3, rng)) == [3, 1, 4]
  first = [
    int(draw_by_difficulty(np.asarray([0.5, 0.6]), 1, rng, temperature=0.1)[0])
    for _ in range(1000)
  ]
  # Odds of e to 1: 731 of 1000 expected.
  assert 680 < first.count(0) < 780
  with pytest.raises(InputError, match="3 questions are to be drawn from 2"):
    draw_by_difficulty(predicted[:2], 3, rng)


@pytest.mark.parametrize(
  "changes", [{"share": 1.0}, {"share": -0.1}, {"capacity": 0}, {"keep": 3}]
)
def test_settings_out_of_range(changes):
  with pytest.raises(InputError, match=next(iter(changes))):
    Replay(**changes)
