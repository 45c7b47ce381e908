"""Eq. 5-10 from trajectories by hand, through the update, to the gradient.

Three rollouts of one question. The first retrieves between a step of entropy 2
and one of entropy 1; the second between steps of entropy 1 and 1; the third
does not retrieve.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rapo_jax import models
from rapo_jax.algorithms import ALGORITHMS, Algorithm
from rapo_jax.rewards import Score, ScoreStatus
from rapo_jax.training import (
  Experience,
  ObjectiveConfig,
  UpdateConfig,
  evaluate_trajectories,
  minibatches,
)
from rapo_jax.training.config import OptimizerConfig
from rapo_jax.training.update import init_train_state, update_minibatch
from rapo_jax.trajectory import FinishReason, TokenKind, ToolEvent, Trajectory
from tests.rollout import tag_world
from tests.tiny_decoder import tiny_decoder

TOKENIZER = tag_world.make_tokenizer()
QUERY = tag_world.make_queries()[0]
PROMPT, POLICY, SEEN, RETRIEVED = TokenKind
REWARDS = (1.0, 0.0, 0.5)
ENTROPIES = ((2.0, 1.0), (1.0, 1.0), (1.5, 0.5))
SETTINGS = ObjectiveConfig()


def _trajectory(index: int, kinds, steps, tokens) -> Trajectory:
  kinds = np.asarray(kinds, np.int8)
  steps = np.asarray(steps, np.int32)
  policy = kinds == POLICY
  first, last = ENTROPIES[index]
  entropies = np.where(steps == 0, first, last)
  return Trajectory(
    tokens=np.asarray(tokens, np.int32),
    kinds=kinds,
    step_ids=steps,
    log_probs=np.where(policy, -3.7, 0).astype(np.float32),
    entropies=np.where(policy, entropies, 0).astype(np.float32),
    query_id=QUERY.query_id,
    group_id=0,
    index=index,
    hybrid=True,
    policy_version=0,
    finish_reason=FinishReason.ANSWER,
    events=(ToolEvent(0, "", "", "", "malformed", 0.1),) if index == 2 else (),
  )


@pytest.fixture(scope="module")
def group() -> list[Trajectory]:
  hybrid = (
    [PROMPT, POLICY, POLICY, RETRIEVED, RETRIEVED, POLICY],
    [-1, 0, 0, 1, 1, 2],
  )
  return [
    _trajectory(0, *hybrid, [3, 10, 11, 20, 21, 12]),
    _trajectory(1, *hybrid, [3, 13, 14, 20, 21, 15]),
    _trajectory(
      2,
      [PROMPT, POLICY, SEEN, SEEN, POLICY],
      [-1, 0, 0, 0, 1],
      [3, 16, 30, 31, 17],
    ),
  ]


def _evaluated(
  group, algorithm: Algorithm = ALGORITHMS["rapo"], settings=SETTINGS
) -> Experience:
  scores = [Score(value, ScoreStatus.OK, "a") for value in REWARDS]
  return evaluate_trajectories(
    group,
    [QUERY],
    TOKENIZER,
    settings,
    max_length=8,
    max_steps=4,
    algorithm=algorithm,
    scores=scores,
  )


def test_retrieval_rewards_are_quality_times_timing(group):
  experience = _evaluated(group)
  # Eq. 5-7: dH = (2 - 1) / 2, tanh(2 dH) * 2; nothing changes; none retrieved.
  np.testing.assert_allclose(
    experience.retrieval_rewards, [2 * math.tanh(1), 0, 0], rtol=1e-5
  )
  # Eq. 8: 2 of 5 tokens of a response.
  np.testing.assert_allclose(
    experience.retrieved_fraction, [0.4, 0.4, 0], rtol=1e-6
  )


def test_advantages_join_both_rewards(group):
  experience = _evaluated(group)
  # Eq. 9-10 with a = 0.2: A_acc is (1, -1, 0), A_ret (2, -1, -1) / sqrt(3).
  np.testing.assert_allclose(
    experience.advantages,
    [1 + 0.4 / math.sqrt(3), -(1 - 0.2 / math.sqrt(3)), 0],
    rtol=1e-4,
    atol=1e-6,
  )


def _seen(group) -> dict[str, np.ndarray]:
  """What advantages are given."""
  found = {}

  def advantages(signals, settings):
    del settings
    jax.debug.callback(
      lambda **values: found.update(values),
      rewards=signals.step_rewards,
      malformed=signals.malformed,
      anchors=signals.anchors,
      retrieved=signals.retrieved,
      tree_ids=signals.tree_ids,
      node_ids=signals.node_ids,
    )
    return signals.rewards

  _evaluated(
    group, dataclasses.replace(ALGORITHMS["grpo"], advantages=advantages)
  )
  jax.effects_barrier()
  return {name: np.asarray(value) for name, value in found.items()}


def test_steps_have_rewards_anchors_and_marks(group):
  seen = _seen(group)
  np.testing.assert_allclose(
    seen["rewards"], [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0.5, 0, 0]]
  )
  # All begin after the prompt; two go on after the same retrieved step.
  np.testing.assert_array_equal(
    seen["anchors"], [[0, -1, 1, -1], [0, -1, 1, -1], [0, 2, -1, -1]]
  )
  np.testing.assert_array_equal(np.argwhere(seen["malformed"]), [[2, 0]])
  np.testing.assert_array_equal(
    np.argwhere(seen["retrieved"]), [[0, 1], [1, 1]]
  )


def test_trajectories_share_what_was_written_before_a_fork(group):
  alone = _seen(group)
  np.testing.assert_array_equal(alone["tree_ids"], [0, 1, 2])
  np.testing.assert_array_equal(
    alone["node_ids"], [[0, 1, 2, -1], [4, 5, 6, -1], [8, 9, -1, -1]]
  )
  # The first was forked from the second, and the third from the first; the
  # order of trajectories says nothing.
  indices = {0: 1, 1: 0, 2: 2}
  forked = [
    dataclasses.replace(
      t, index=indices[row], parent=parent, shared_steps=steps
    )
    for row, t, parent, steps in zip(
      range(3), group, (0, None, 1), (2, 0, 1), strict=True
    )
  ]
  seen = _seen(forked)
  np.testing.assert_array_equal(seen["tree_ids"], [1, 1, 1])
  np.testing.assert_array_equal(
    seen["node_ids"], [[4, 5, 2, -1], [4, 5, 6, -1], [4, 9, -1, -1]]
  )
  forked[1] = dataclasses.replace(forked[1], finish_reason=FinishReason.TIMEOUT)
  seen = _seen(forked)
  np.testing.assert_array_equal(seen["tree_ids"], [1, -1, 1])
  np.testing.assert_array_equal(seen["node_ids"][1], [-1] * 4)
  np.testing.assert_array_equal(seen["node_ids"][2], [4, 9, -1, -1])


def _by_step(signals, settings):
  """A number for each step: 10 rows and steps."""
  del settings
  rows, steps = signals.step_rewards.shape
  return 10.0 * jnp.arange(rows)[:, None] + jnp.arange(steps)


def test_advantages_of_steps_reach_their_tokens(group):
  algorithm = dataclasses.replace(ALGORITHMS["grpo"], advantages=_by_step)
  experience = _evaluated(group, algorithm)
  np.testing.assert_array_equal(
    experience.advantages[0], [0, 0, 0, 0, 0, 2, 0, 0]
  )
  np.testing.assert_array_equal(
    experience.advantages[2], [0, 20, 0, 0, 21, 0, 0, 0]
  )
  assert experience.mean_advantage(2) == 20.5
  batch = _batch(experience, 16)
  np.testing.assert_array_equal(
    batch.columns["advantages"][0, 0][:6], [0, 0, 0, 0, 0, 2]
  )


def test_advantages_that_are_not_finite_are_refused(group):
  algorithm = dataclasses.replace(
    ALGORITHMS["grpo"], advantages=lambda s, _: s.rewards / 0
  )
  with pytest.raises(ValueError, match="advantages of the algorithm grpo must"):
    _evaluated(group, algorithm)


def _batch(experience, row_length, algorithm=ALGORITHMS["rapo"]):
  update = UpdateConfig(
    queries_per_update=1,
    queries_per_minibatch=1,
    row_length=row_length,
    rows_per_microbatch=1,
  )
  return minibatches(experience, update, SETTINGS, algorithm)[0].batch


@pytest.mark.parametrize("row_length", [6, 16])
def test_the_gradient_is_that_of_the_equations(group, row_length):
  experience = _evaluated(group)
  optimizer = OptimizerConfig(max_gradient_norm=1e9)
  state, metrics = update_minibatch(
    init_train_state(_model(), optimizer),
    _batch(experience, row_length),
    objective=SETTINGS,
    optimizer=optimizer,
    temperature=1.0,
    dtype="float32",
    remat="none",
    head_chunk=32,
  )
  value, gradient = jax.value_and_grad(_by_hand)(
    models.trainable(_model()), group
  )
  np.testing.assert_allclose(metrics.loss, value, rtol=1e-4)
  # The first moment is a tenth of the first gradient.
  moments = jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
  for moment, leaf in zip(moments, jax.tree.leaves(gradient), strict=True):
    np.testing.assert_allclose(10 * moment, leaf, rtol=1e-3, atol=1e-6)


def _model() -> models.Decoder:
  return tiny_decoder(vocab_size=len(TOKENIZER))


def _by_hand(variables, group):
  """Eq. 8 and 11 of each trajectory by itself, with advantages by hand."""
  model = models.with_trainable(_model(), variables)
  advantages = (1 + 0.4 / math.sqrt(3), -(1 - 0.2 / math.sqrt(3)), 0.0)
  fractions = (0.4, 0.4, 0.0)
  total = 0.0
  for trajectory, a, f in zip(group, advantages, fractions, strict=True):
    tokens = jnp.asarray(trajectory.tokens)[None]
    logits = model(tokens)[0]
    policy = np.flatnonzero(trajectory.policy_mask)
    scores = jax.nn.log_softmax(logits, axis=-1)[policy - 1]
    log_probs = scores[np.arange(len(policy)), trajectory.tokens[policy]]
    ratio = (1 + 0.05 * f) * jnp.exp(log_probs + 3.7)
    clipped = jnp.clip(ratio, 0.8, 1.28)
    total -= jnp.mean(jnp.minimum(ratio * a, clipped * a)) / 3
  return total
