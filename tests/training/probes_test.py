"""Effects of retrieved steps: by hand, and where a step is known to hurt."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rapo_jax import rewards
from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, Plan
from rapo_jax.rollout import RolloutEngine, RolloutStats
from rapo_jax.training import (
  OptimizerConfig,
  Trainer,
  UpdateConfig,
  init_train_state,
)
from rapo_jax.training.probes import probe_numbers, scored_with_effects
from rapo_jax.training.trajectory_log import trajectory_records
from rapo_jax.trajectory import FinishReason, RetrievalEvent, TokenKind
from tests.rollout import between_test, tag_world
from tests.training.experience_test import made


def retrieved(index, steps, **changes):
  events = tuple(RetrievalEvent(step, "hit") for step in steps)
  return dataclasses.replace(made(index, "a"), events=events, **changes)


def twin(step, reason=FinishReason.ANSWER):
  return dataclasses.replace(
    made(0, "a"), parent=0, shared_steps=step, finish_reason=reason
  )


def scored(trajectories, values):
  asked = []

  def score(chosen):
    asked.append(len(chosen))
    return [rewards.Score(value, "ok") for value in values]

  noted, scores = scored_with_effects(trajectories, score)
  assert asked == [len(values)]
  assert [s.value for s in scores] == values[: len(trajectories)]
  assert not any(t.twins for t in noted)
  return [[e.effect for e in t.retrieval_events] for t in noted], noted


def test_effects_are_differences_of_rewards():
  effects, noted = scored(
    [
      retrieved(0, [1, 3], twins=(twin(1), twin(3))),
      made(1, "a"),
      retrieved(2, [2, 4], twins=(twin(4),)),
    ],
    [1.0, 0.5, 0.25, 0.0, 1.0, 0.75],
  )
  assert effects == [[1.0, 0.0], [], [None, -0.5]]
  stats = RolloutStats(twin_tokens=7, twin_seconds=0.5)
  numbers = probe_numbers(noted, stats)
  assert numbers["probe/generated_tokens"] == 7
  assert numbers["probe/seconds"] == 0.5
  assert numbers["retrieval/num_probed"] == 3
  assert numbers["retrieval/effect"] == pytest.approx(0.5 / 3)
  assert numbers["retrieval/effect_positive"] == pytest.approx(1 / 3)
  assert numbers["retrieval/effect_negative"] == pytest.approx(1 / 3)


def test_what_the_system_cut_has_no_effect():
  late = FinishReason.TIMEOUT
  effects, noted = scored(
    [
      retrieved(0, [1, 3], twins=(twin(1, late), twin(3))),
      retrieved(1, [1], twins=(twin(1),), finish_reason=late),
    ],
    [1.0, 0.0, 0.0, 0.0, 0.0],
  )
  assert effects == [[None, 1.0], [None]]
  numbers = probe_numbers(noted[1:], RolloutStats())
  assert numbers["retrieval/num_probed"] == 0
  assert "retrieval/effect" not in numbers


CONFIG = dataclasses.replace(
  tag_world.CONFIG, num_generations=4, num_hybrid=3, max_response_tokens=96
)
TOKENIZER = tag_world.make_tokenizer()
QUERIES = tag_world.make_queries()
OBJECTIVE = ObjectiveConfig()


class OneSession(between_test.Session):
  """Inserts a text before the second step, and has it probed."""

  def wants(self, boundary):
    return boundary.step_id == 1

  def take(self):
    return [
      (boundary, dataclasses.replace(insertion, probe=True))
      for boundary, insertion in super().take()
    ]


class OneHook(between_test.Hook):
  def session(self, changed):
    self.sessions.append(OneSession(self.text))
    return self.sessions[-1]


def num_retrieved(sample):
  return sum(kind is TokenKind.RETRIEVED for kind, _ in sample.segments)


@pytest.fixture(scope="module", params=[1, -1], ids=["helps", "hurts"])
def updated(request):
  """An update whose reward is the number of inserted texts, or the opposite."""
  sign = request.param
  engine = RolloutEngine(
    CONFIG,
    TOKENIZER,
    vocab_size=len(TOKENIZER),
    tools={"search": tag_world.EchoTool()},
    between_steps=OneHook(),
  )
  trainer = Trainer(
    engine,
    TOKENIZER,
    rollout=CONFIG,
    objective=OBJECTIVE,
    optimizer=OptimizerConfig(),
    update=UpdateConfig(
      queries_per_update=3,
      queries_per_minibatch=3,
      row_length=128,
      rows_per_microbatch=2,
    ),
    seed=1,
    algorithm=dataclasses.replace(
      ALGORITHMS["rapo_effect"], plan=Plan(hybrid=True)
    ),
    reward=rewards.reward(lambda sample: sign * num_retrieved(sample)),
  )
  policy = tag_world.make_policy(len(TOKENIZER))
  state = init_train_state(policy, OptimizerConfig())
  prompts = tag_world.make_prompts(QUERIES, TOKENIZER)
  _, experience, row = trainer.step(state, QUERIES, prompts, 3)
  return sign, experience, row


def test_a_step_that_is_known_to_hurt_or_help_does(updated):
  sign, experience, row = updated
  effects = [
    e.effect
    for t in experience.trajectories
    for e in t.retrieval_events
    if e.outcome == "hit"
  ]
  assert len(effects) > 2
  assert effects == [sign] * len(effects)
  assert row["retrieval/num_probed"] == len(effects)
  assert row["retrieval/effect"] == sign
  assert row["retrieval/effect_positive"] == (sign > 0)


def test_an_update_says_what_its_probes_took(updated):
  _, experience, row = updated
  took = row["probe/generated_tokens"]
  assert took > 0
  assert row["probe/seconds"] > 0
  assert (
    row["budget/generated_tokens"] == row["rollout/generated_tokens"] + took
  )
  assert row["budget/leaves"] == len(experience.trajectories)
  assert (
    row["budget/rollouts"] == row["budget/leaves"] + row["retrieval/num_probed"]
  )


def test_the_trainer_scores_what_the_sampler_scored(updated):
  _, experience, row = updated
  gaps = []
  scored = zip(
    experience.trajectories, experience.trainer_log_probs, strict=True
  )
  for number, (trajectory, log_probs) in enumerate(scored):
    computed = np.isfinite(log_probs)
    if computed.any():
      np.testing.assert_array_equal(computed, trajectory.policy_mask)
      gaps.append(np.abs(log_probs - trajectory.log_probs)[computed])
    else:
      # A group without an advantage is not computed.
      assert experience.mean_advantage(number) == 0
  gaps = np.concatenate(gaps)
  assert len(gaps) > 50
  assert gaps.max() < 1e-5
  np.testing.assert_allclose(gaps.mean(), row["mismatch/abs_log_prob_mean"])


def test_records_carry_figures_of_each_token(updated):
  _, experience, _ = updated
  records = [*trajectory_records(experience, QUERIES, TOKENIZER, 3)]
  trained = 0
  for number, trajectory in enumerate(experience.trajectories):
    found = [s for s in records[number].segments if s.kind == "policy"]
    for segment in found:
      assert sum(segment.tokens.lengths) == len(segment.text)
      assert len(segment.tokens.lengths) == segment.num_tokens
    for name, values in (
      ("log_prob", trajectory.log_probs),
      ("entropy", trajectory.entropies),
    ):
      written = np.concatenate([getattr(s.tokens, name) for s in found])
      np.testing.assert_allclose(
        written, values[trajectory.policy_mask], atol=1e-5
      )
    for segment in found:
      # Those of this method are the same for a whole trajectory.
      assert segment.tokens.advantage is None
      trained += sum(x is not None for x in segment.tokens.trainer_log_prob)
  assert trained > 50
  plain = trajectory_records(experience, QUERIES, TOKENIZER, 3, tokens=False)
  assert all(s.tokens is None for record in plain for s in record.segments)


def test_records_carry_the_effects(updated):
  _, experience, _ = updated
  records = list(trajectory_records(experience, QUERIES, TOKENIZER, 3))
  for record, trajectory in zip(records, experience.trajectories, strict=True):
    written = [e["effect"] for e in record.to_json()["events"] if "effect" in e]
    noted = [e.effect for e in trajectory.retrieval_events]
    assert written == pytest.approx(
      [e for e in noted if e is not None], abs=1e-5
    )
    retrieved_steps = np.unique(
      trajectory.step_ids[trajectory.kinds == TokenKind.RETRIEVED]
    )
    assert len(written) == len(retrieved_steps)
