"""The row of metrics of an update, by hand."""

import numpy as np
import pytest

from rapo_jax.rewards import Score, ScoreStatus
from rapo_jax.rollout import RolloutStats
from rapo_jax.training import Experience
from rapo_jax.training.trainer import summarise
from rapo_jax.training.update import UpdateMetrics
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory


def _trajectory(index, tokens):
  count = len(tokens)
  return Trajectory(
    tokens=np.array(tokens),
    kinds=np.full(count, TokenKind.POLICY),
    step_ids=np.zeros(count, np.int32),
    log_probs=np.full(count, -0.5, np.float32),
    entropies=np.full(count, 0.7, np.float32),
    query_id="q",
    group_id=0,
    index=index,
    hybrid=False,
    policy_version=0,
    finish_reason=FinishReason.EOS,
  )


def _metrics(**figures):
  values = dict.fromkeys(UpdateMetrics._fields, 0.0) | figures
  return UpdateMetrics(**{k: np.float32(v) for k, v in values.items()})


@pytest.fixture(scope="module")
def experience():
  scores = [
    Score(1.0, ScoreStatus.OK, "a"),
    Score(0.0, ScoreStatus.BOX_EMPTY, ""),
    Score(-1.0, ScoreStatus.THINK_UNPAIRED, whole=False),
    Score(-1.0, ScoreStatus.THINK_UNPAIRED, whole=False),
  ]
  # The last one writes one token for ever.
  texts = [range(60), range(60), range(60), [5] * 60]
  return Experience(
    queries=[],
    trajectories=[_trajectory(i, list(text)) for i, text in enumerate(texts)],
    scores=scores,
    retrieval_rewards=np.zeros(4, np.float32),
    retrieved_fraction=np.zeros(4, np.float32),
    advantages=np.zeros(4, np.float32),
    live_groups=np.array([True]),
    rewards=np.array([s.value for s in scores], np.float32),
    counted=np.ones(4, bool),
  )


@pytest.fixture(scope="module")
def row(experience):
  return summarise(experience, RolloutStats(), [_metrics(tokens=240.0)])


def test_every_score_status_is_counted(row):
  counts = {k: v for k, v in row.items() if k.startswith("score/")}
  assert counts == {
    "score/ok": 1,
    "score/box_empty": 1,
    "score/think_unpaired": 2,
  }


def test_rewards_have_their_ends_and_the_share_of_whole_formats(row):
  assert (row["reward/min"], row["reward/max"]) == (-1.0, 1.0)
  assert row["reward/mean"] == -0.25
  assert row["reward/format_whole"] == 0.5


def test_trajectories_that_repeat_themselves_are_a_share(row):
  assert row["rollout/repetitive_fraction"] == 0.25


def test_what_the_policy_learned_in_an_update_is_no_mismatch(experience):
  exact = _metrics(sampled=4.0, gap_sum=4e-6, gap_max=2e-6)
  moved = _metrics(sampled=4.0, gap_sum=0.4, gap_max=0.3)
  skipped = _metrics(skipped=1.0)

  def largest(*history):
    report = summarise(experience, RolloutStats(), history)
    return report.get("mismatch/abs_log_prob_max")

  assert largest(exact, moved) == pytest.approx(2e-6)
  # A minibatch that is skipped does not move the policy.
  assert largest(skipped, exact) == pytest.approx(2e-6)
  # One without tokens does: moments from before are applied.
  assert largest(_metrics(), moved) is None
