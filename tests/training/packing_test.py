"""Rows of packed trajectories."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapo_jax.algorithms import ALGORITHMS
from rapo_jax.training import packing
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory


def make_trajectory(prompt, policy, observation=0, *, offset=0, group=0):
  """Prompt, policy and observation tokens whose ids count up from offset."""
  kinds = (
    [TokenKind.PROMPT] * prompt
    + [TokenKind.POLICY] * policy
    + [TokenKind.OBSERVATION] * observation
  )
  length = len(kinds)
  kinds = np.asarray(kinds, np.int8)
  is_policy = kinds == TokenKind.POLICY
  return Trajectory(
    tokens=np.arange(offset, offset + length, dtype=np.int32),
    kinds=kinds,
    step_ids=np.where(kinds == TokenKind.PROMPT, -1, 0).astype(np.int32),
    log_probs=np.where(is_policy, -0.5, 0).astype(np.float32),
    entropies=np.where(is_policy, 0.7, 0).astype(np.float32),
    query_id=f"q{group}",
    group_id=group,
    index=0,
    hybrid=False,
    policy_version=0,
    finish_reason=FinishReason.ANSWER,
  )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_rows_hold_every_item_once_and_no_row_is_too_long(lengths):
  rows = packing.assign_rows(lengths, 20)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(sum(lengths[i] for i in row) <= 20 for row in rows)


def test_refuses_what_is_longer_than_a_row():
  with pytest.raises(ValueError, match=r"at most 20 tokens .* has 21"):
    packing.assign_rows([3, 21], 20)


def _check_places(trajectories, batch, placements):
  assert sorted(p.member for p in placements) == [0, 1, 2]
  for placement in placements:
    tokens = trajectories[placement.member].tokens
    assert placement.own.stop == len(tokens)
    np.testing.assert_array_equal(
      batch.tokens[placement.at], tokens[placement.own]
    )


def test_packs_each_trajectory_with_its_own_figures():
  # Lengths 6, 4, 3 in rows of 8: [6], [4, 3].
  trajectories = [
    make_trajectory(1, 2, 1, offset=20),
    make_trajectory(2, 3, 1, offset=10),
    make_trajectory(1, 2, offset=30),
  ]
  weights = np.asarray([[1] * 8, [2] * 8, [3] * 8], np.float32)
  batch, placements = packing.pack(
    trajectories,
    advantages=np.asarray([0.1, 0.2, 0.3], np.float32),
    retrieved_fraction=np.asarray([0.5, 0.0, 0.25], np.float32),
    weights=weights,
    row_length=8,
    rows_per_microbatch=2,
  )
  # Worst case 3 rows, so 2 micro-batches of 2; 2 rows used, so 1 of them.
  assert batch.tokens.shape == (2, 2, 8)
  assert batch.num_microbatches == 1
  np.testing.assert_array_equal(
    batch.tokens[0],
    [[10, 11, 12, 13, 14, 15, 0, 0], [20, 21, 22, 23, 30, 31, 32, 0]],
  )
  np.testing.assert_array_equal(
    batch.segment_ids[0],
    [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 2, 2, 2, 0]],
  )
  np.testing.assert_array_equal(
    batch.where[0], [[0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1, 1, 0]]
  )
  np.testing.assert_allclose(
    batch.columns["advantages"][0, 1], [0.1] * 4 + [0.3] * 3 + [0]
  )
  np.testing.assert_allclose(
    batch.columns["retrieved_fraction"][0, 1], [0.5] * 4 + [0.25] * 3 + [0]
  )
  np.testing.assert_array_equal(batch.weights[0, 1], [1] * 4 + [3] * 3 + [0])
  _check_places(trajectories, batch, placements)
  # 3 of 16 positions in use are padding.
  assert batch.padding_fraction == pytest.approx(3 / 16)
  assert not batch.segment_ids[1].any()


@settings(max_examples=100, deadline=None)
@given(
  st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=30
  )
)
def test_rows_hold_each_prefix_once(items):
  # Prefixes of 0, 3, 6 and 9 tokens.
  prefixes = [packing.Prefix(key, 3 * key) for key, _ in items]
  lengths = [3 * key + own for key, own in items]
  rows = packing.assign_rows(lengths, 20, prefixes)
  assert sorted(i for row in rows for i in row) == list(range(len(items)))
  for row in rows:
    held = sum(3 * key for key in {items[i][0] for i in row})
    assert held + sum(items[i][1] for i in row) <= 20


def test_a_row_holds_a_shared_prompt_once():
  def answered(policy, offset):
    trajectory = make_trajectory(4, policy, offset=offset)
    trajectory.tokens[:4] = [5, 6, 7, 8]
    return trajectory

  trajectories = [answered(2, 20), make_trajectory(1, 2), answered(3, 30)]
  weights = np.asarray([[1] * 8, [2] * 8, [3] * 8], np.float32)

  def packed(**options):
    return packing.pack(
      trajectories,
      advantages=np.asarray([0.1, 0.2, 0.3], np.float32),
      retrieved_fraction=np.zeros(3, np.float32),
      weights=weights,
      row_length=14,
      rows_per_microbatch=1,
      **options,
    )

  batch, placements = packed()
  # The prompt but for its last token, then each with that token and its own.
  np.testing.assert_array_equal(
    batch.tokens[0, 0], [5, 6, 7, 8, 34, 35, 36, 8, 24, 25, 0, 1, 2, 0]
  )
  np.testing.assert_array_equal(
    batch.segment_ids[0, 0], [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4, 0]
  )
  np.testing.assert_array_equal(
    batch.prefix_ids[0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
  )
  np.testing.assert_array_equal(
    batch.where[0, 0], [0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0]
  )
  np.testing.assert_allclose(
    batch.columns["advantages"][0, 0],
    [0] * 3 + [0.3] * 4 + [0.1] * 3 + [0.2] * 3 + [0],
  )
  _check_places(trajectories, batch, placements)
  assert batch.num_microbatches == 1
  apart, _ = packed(share_prompts=False)
  assert apart.num_microbatches == 2
  assert apart.prefix_ids is None


def test_columns_are_of_the_method_and_not_of_the_update():
  base = packing.BASE_COLUMNS
  assert packing.packed_columns(ALGORITHMS["grpo"]) == base
  # Stored groups come from the second update on, a row of an agent sometimes.
  for method in ("rollout_replay", "luffy", "sft"):
    assert packing.packed_columns(ALGORITHMS[method]) == (*base, "source")
