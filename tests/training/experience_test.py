"""Rewards and advantages of groups, and what is left out of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rapo_jax import objectives
from rapo_jax.algorithms import ALGORITHMS
from rapo_jax.rollout import RolloutStats
from rapo_jax.training import (
  Experience,
  ObjectiveConfig,
  OptimizerConfig,
  PackedBatch,
  UpdateConfig,
  evaluate_trajectories,
  init_train_state,
  minibatches,
  summarise,
  update_minibatch,
)
from rapo_jax.trajectory import FinishReason, Source, ToolEvent, Trajectory
from tests.closeness import assert_close
from tests.rollout import tag_world
from tests.tiny_decoder import tiny_decoder

RIGHT = "<think>x</think><answer>\\boxed{a}</answer>"
WRONG = "<think>x</think><answer>\\boxed{b}</answer>"
CALL = "<think>x</think><search>a</search>"
TOKENIZER = tag_world.make_tokenizer()
QUERIES = tag_world.make_queries()[:2]


def made(
  index: int,
  text: str,
  reason: FinishReason = FinishReason.ANSWER,
  *,
  group: int = 0,
  statuses: tuple[str, ...] = (),
) -> Trajectory:
  prompt, ids = TOKENIZER.encode("ab"), TOKENIZER.encode(text)
  kinds = np.array([0] * len(prompt) + [1] * len(ids), np.int8)
  return Trajectory(
    tokens=np.array(prompt + ids, np.int32),
    kinds=kinds,
    step_ids=np.where(kinds == 0, -1, 0).astype(np.int32),
    log_probs=np.where(kinds == 0, 0, -3.0).astype(np.float32),
    entropies=np.zeros(len(kinds), np.float32),
    query_id=QUERIES[group].query_id,
    group_id=group,
    index=index,
    hybrid=False,
    policy_version=0,
    finish_reason=reason,
    events=tuple(ToolEvent(0, "search", "a", "r", s, 0.1) for s in statuses),
  )


def evaluated(
  trajectories: list[Trajectory],
  config: ObjectiveConfig | None = None,
  **budget: int,
) -> Experience:
  return evaluate_trajectories(
    trajectories,
    QUERIES,
    TOKENIZER,
    config or ObjectiveConfig(),
    max_length=128,
    max_steps=9,
    **budget,
  )


CUT = {
  "out of time": made(7, CALL, FinishReason.TIMEOUT),
  "out of calls after one that broke": made(
    7, CALL, FinishReason.TOOL_LIMIT, statuses=("ok", "failed")
  ),
  "out of calls after one that was refused": made(
    7, CALL, FinishReason.TOOL_LIMIT, statuses=("refused",)
  ),
}
OWN = {
  "out of calls": made(7, CALL, FinishReason.TOOL_LIMIT, statuses=("ok",)),
  "a wrong answer after a call that broke": made(
    7, WRONG, statuses=("failed",)
  ),
  "malformed": made(7, CALL, FinishReason.MALFORMED, statuses=("malformed",)),
  "too long": made(7, CALL, FinishReason.LENGTH),
}


@pytest.mark.parametrize("name", CUT)
def test_what_the_system_cut_has_no_say(name: str):
  others = [made(i, RIGHT if i < 2 else WRONG) for i in range(7)]
  experience = evaluated([*others, CUT[name]])
  alone = evaluated(others)
  assert experience.counted.tolist() == [True] * 7 + [False]
  assert experience.advantages[7] == 0.0
  np.testing.assert_array_equal(experience.advantages[:7], alone.advantages)
  # Mean 2/7, deviation sqrt((2·(5/7)² + 5·(2/7)²) / 6) = sqrt(10/42).
  assert experience.advantages[0] == pytest.approx(
    (1 - 2 / 7) / np.sqrt(10 / 42), rel=1e-4
  )


@pytest.mark.parametrize("name", CUT)
def test_wrong_answers_earn_nothing_from_an_outage(name: str):
  experience = evaluated([*(made(i, WRONG) for i in range(7)), CUT[name]])
  assert not experience.advantages.any()
  assert experience.live_groups.tolist() == [False, False]


@pytest.mark.parametrize("name", OWN)
def test_what_the_agent_ended_counts(name: str):
  experience = evaluated([*(made(i, RIGHT) for i in range(7)), OWN[name]])
  assert experience.counted.all()
  assert experience.advantages[7] < 0


def test_a_group_of_one_that_counts_is_dead():
  cut = CUT["out of time"]
  experience = evaluated(
    [made(0, RIGHT), cut, made(0, RIGHT, group=1), made(1, WRONG, group=1)]
  )
  assert experience.live_groups.tolist() == [False, True]
  assert experience.advantages[0] == 0.0


@pytest.mark.parametrize(
  "reason", [FinishReason.LENGTH, FinishReason.STEP_LIMIT]
)
def test_limits_of_the_agent_can_be_masked(reason: FinishReason):
  group = [*(made(i, RIGHT) for i in range(7)), made(7, "<think>x", reason)]
  kept = evaluated(group)
  assert kept.counted.all()
  assert kept.advantages[7] < 0
  masked = evaluated(group, ObjectiveConfig(length_limit="mask"))
  assert not masked.counted[7]
  assert not masked.advantages.any()


def test_the_soft_punishment_by_hand():
  group = [made(i, RIGHT) for i in range(2)]
  length = int(group[0].response_mask.sum())
  # At the budget -1; with twice the room nothing; in between by the line:
  # (L - 0.8 B) / (0.2 B) with L = 0.9 B is 1/2.
  config = ObjectiveConfig(length_limit="soft", soft_length_share=0.2)
  for budget, expected in (
    (length, 0.0),
    (2 * length, 1.0),
    (round(length / 0.9), 0.5),
  ):
    experience = evaluated(group, config, max_response_tokens=budget)
    np.testing.assert_allclose(experience.rewards, expected, atol=0.1)
    assert experience.scores[0].value == 1.0
  with pytest.raises(ValueError, match="needs max_response_tokens"):
    evaluated(group, config)


def packed(
  experience: Experience,
  objective: ObjectiveConfig,
  rows: int,
  row_length: int = 128,
  method: str = "rapo",
) -> PackedBatch:
  update = UpdateConfig(
    queries_per_update=2,
    queries_per_minibatch=2,
    row_length=row_length,
    rows_per_microbatch=rows,
  )
  (only,) = minibatches(experience, update, objective, ALGORITHMS[method])
  return only.batch


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_groups_without_an_advantage_are_not_computed(aggregation):
  group = [
    *(made(i, RIGHT) for i in range(2)),
    *(made(i, text, group=1) for i, text in enumerate((RIGHT, WRONG))),
  ]
  length = 16 if aggregation == "constant" else None
  objective = ObjectiveConfig(
    aggregation=aggregation, aggregation_length=length
  )
  experience = evaluated(group, objective)
  assert experience.live_groups.tolist() == [False, True]
  loss = ALGORITHMS["rapo"].loss
  whole_loss = dataclasses.replace(loss, vanishes=False)
  update = UpdateConfig(
    queries_per_update=2,
    queries_per_minibatch=2,
    row_length=128,
    rows_per_microbatch=1,
  )

  def batch(loss, **changes):
    (only,) = minibatches(
      experience,
      update,
      dataclasses.replace(objective, **changes),
      dataclasses.replace(ALGORITHMS["rapo"], loss=loss),
    )
    return only.batch

  def policy_tokens(batch):
    return int(batch.where.sum())

  part, whole = batch(loss), batch(whole_loss)
  assert policy_tokens(whole) == sum(t.policy_mask.sum() for t in group)
  assert policy_tokens(part) == sum(t.policy_mask.sum() for t in group[2:])
  # Nothing is left out where there is another gradient.
  for changes in ({"kl_coef": 0.1}, {"entropy_coef": 0.1}):
    assert policy_tokens(batch(loss, **changes)) == policy_tokens(whole)
  expected, expected_metrics = updated(whole, objective)
  actual, metrics = updated(part, objective)
  assert_close(metrics.loss, expected_metrics.loss)
  assert_close(metrics.gradient_norm, expected_metrics.gradient_norm)
  assert_close(actual, expected)


def test_metrics_leave_out_what_others_sampled():
  group = [made(0, RIGHT), made(1, WRONG)]
  assert "source" not in packed(evaluated(group), ObjectiveConfig(), 2).columns
  group[1] = dataclasses.replace(group[1], source=Source.REPLAY)
  batch = packed(
    evaluated(group), ObjectiveConfig(), 2, method="rollout_replay"
  )
  assert set(np.unique(batch.columns["source"])) == {0, Source.REPLAY}
  _, metrics = updated(batch, ObjectiveConfig())
  assert metrics.sampled == group[0].policy_mask.sum()
  assert metrics.tokens == sum(t.policy_mask.sum() for t in group)


def updated(batch, objective: ObjectiveConfig):
  state, metrics = update_minibatch(
    init_train_state(
      tiny_decoder(vocab_size=len(TOKENIZER)), OptimizerConfig()
    ),
    batch,
    objective=objective,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    temperature=1.0,
    dtype="float32",
    remat="none",
    head_chunk=32,
  )
  return jax.tree.leaves(state.model), metrics


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_the_loss_leaves_out_what_does_not_count(aggregation):
  objective = ObjectiveConfig(aggregation=aggregation)
  kept = [made(0, RIGHT), made(1, WRONG), made(0, RIGHT, group=1)]
  kept.append(made(1, WRONG + "ab", group=1))
  cut = CUT["out of time"]
  others = [cut, dataclasses.replace(cut, group_id=1)]
  alone = packed(evaluated(kept), objective, 2)
  expected, expected_metrics = updated(alone, objective)
  for rows, row_length in ((2, 128), (1, 256)):
    batch = packed(evaluated([*kept, *others]), objective, rows, row_length)
    assert float(batch.weights.sum()) == pytest.approx(1.0)
    actual, metrics = updated(batch, objective)
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, atol=1e-6)
    assert metrics.tokens == expected_metrics.tokens
    for one, other in zip(actual, expected, strict=True):
      np.testing.assert_allclose(one, other, atol=1e-6)


def test_weights_are_untouched_where_all_count():
  group = [made(0, RIGHT), made(1, WRONG), made(2, RIGHT)]
  batch = packed(evaluated(group), ObjectiveConfig(), 3)
  where = np.zeros((3, 128), bool)
  for row, t in enumerate(group):
    where[row, : len(t.tokens)] = t.policy_mask
  expected = np.asarray(objectives.loss_weights(where))
  seen = np.asarray(batch.weights)
  np.testing.assert_array_equal(np.unique(seen), np.unique(expected))


def test_metrics_are_of_what_counts():
  objective = ObjectiveConfig()
  group = [made(0, RIGHT), made(1, WRONG), CUT["out of time"]]
  experience = evaluated(group)
  batch = packed(experience, objective, 3)
  _, metrics = updated(batch, objective)
  report = summarise(experience, RolloutStats(), [metrics])
  assert report["rollout/left_out"] == 1
  assert report["reward/accuracy"] == 0.5
  assert report["reward/mean"] == 0.5


def test_an_update_of_which_nothing_counts_changes_nothing():
  objective = ObjectiveConfig()
  cut = CUT["out of time"]
  experience = evaluated([cut, dataclasses.replace(cut, index=6)])
  batch = packed(experience, objective, 2)
  before = jax.tree.leaves(tiny_decoder(vocab_size=len(TOKENIZER)))
  after, metrics = updated(batch, objective)
  for one, other in zip(after, before, strict=True):
    np.testing.assert_array_equal(one, other)
  report = summarise(experience, RolloutStats(), [metrics])
  assert report["rollout/left_out"] == 2
  assert all(np.isfinite(value) for value in report.values())


@pytest.mark.parametrize(
  "changes",
  [
    {"length_limit": "drop"},
    {"soft_length_share": 0.0},
    {"soft_length_share": float("nan")},
    {"min_retrieval_factor": -0.1},
    {"min_retrieval_factor": float("nan")},
  ],
)
def test_settings_out_of_range(changes):
  unchecked = ObjectiveConfig.__post_init__
  config = ObjectiveConfig()
  for name, value in changes.items():
    object.__setattr__(config, name, value)
  with pytest.raises(ValueError, match=next(iter(changes))):
    getattr(unchecked, "__wrapped__", unchecked)(config)
