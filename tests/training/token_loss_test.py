"""Token losses in the update: columns, segments, KL and entropy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rapo_jax import models, objectives
from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, TokenLoss
from rapo_jax.training import (
  OptimizerConfig,
  init_train_state,
  pack,
  update_minibatch,
)
from rapo_jax.training.packing import BASE_COLUMNS
from rapo_jax.training.update import score_reference
from rapo_jax.trajectory import FinishReason, Source, TokenKind, Trajectory
from tests.closeness import assert_close
from tests.tiny_decoder import tiny_decoder

_OPTIMIZER = OptimizerConfig(max_gradient_norm=1e9)
_LENGTHS = (9, 12, 7)
_ADVANTAGES = np.asarray([1.0, -0.5, 2.0], np.float32)
_SCORING = {
  "temperature": 1.0,
  "dtype": "float32",
  "remat": "none",
  "head_chunk": 8,
}


def _model() -> models.Decoder:
  return tiny_decoder(num_heads=2, num_kv_heads=1)


@pytest.fixture(scope="module")
def trajectories():
  """Three of two steps each, with one observation between them."""
  rng = np.random.default_rng(0)
  result = []
  for number, length in enumerate(_LENGTHS):
    kinds = np.full(length, TokenKind.POLICY, np.int8)
    kinds[:2] = TokenKind.PROMPT
    kinds[4] = TokenKind.OBSERVATION
    steps = np.where(np.arange(length) < 5, 0, 1)
    steps[:2] = -1
    policy = kinds == TokenKind.POLICY
    tokens = rng.integers(0, 40, length).astype(np.int32)
    # A prompt that is shared by those in a row.
    tokens[:2] = [7, 9]
    result.append(
      Trajectory(
        tokens=tokens,
        kinds=kinds,
        step_ids=steps.astype(np.int32),
        log_probs=np.where(policy, rng.uniform(-4, -3, length), 0).astype(
          np.float32
        ),
        entropies=np.where(policy, 2.0, 0).astype(np.float32),
        query_id="q",
        group_id=0,
        index=number,
        hybrid=False,
        policy_version=0,
        finish_reason=FinishReason.ANSWER,
      )
    )
  return result


def _packed(trajectories, row_length=12, rows=2, columns=()):
  where = np.zeros((len(trajectories), max(_LENGTHS)), bool)
  for row, trajectory in enumerate(trajectories):
    where[row, : len(trajectory.tokens)] = trajectory.policy_mask
  return pack(
    trajectories,
    advantages=_ADVANTAGES,
    retrieved_fraction=np.zeros(3, np.float32),
    weights=np.asarray(objectives.loss_weights(where)),
    row_length=row_length,
    rows_per_microbatch=rows,
    columns=(*BASE_COLUMNS, *columns),
  ).batch


def _update(batch, loss, objective=None, model=None):
  state, metrics = update_minibatch(
    init_train_state(model or _model(), _OPTIMIZER),
    batch,
    objective=objective or ObjectiveConfig(),
    optimizer=_OPTIMIZER,
    loss=loss,
    **_SCORING,
  )
  return jax.tree.leaves(optax.tree.get(state.opt_state, "mu")), metrics


def _by_hand(trajectories, of_trajectory):
  """Loss and tenths of its gradient, trajectory by trajectory.

  Args:
    trajectories: each by itself.
    of_trajectory: takes log-probs and entropies of the policy tokens, and the
      trajectory; returns the losses of the tokens.
  """

  def total(variables):
    model = models.with_trainable(_model(), variables)
    losses = []
    for number, trajectory in enumerate(trajectories):
      tokens = jnp.asarray(trajectory.tokens)[None]
      policy = np.flatnonzero(trajectory.policy_mask)
      scores = jax.nn.log_softmax(model(tokens)[0], axis=-1)[policy - 1]
      log_probs = scores[np.arange(len(policy)), trajectory.tokens[policy]]
      entropies = -jnp.sum(jnp.exp(scores) * scores, axis=-1)
      losses.append(
        jnp.mean(of_trajectory(log_probs, entropies, trajectory, number))
      )
    return jnp.mean(jnp.asarray(losses))

  value, gradient = jax.value_and_grad(total)(models.trainable(_model()))
  return value, [0.1 * leaf for leaf in jax.tree.leaves(gradient)]


def _reinforce(log_probs, columns, settings):
  return -columns["advantages"] * log_probs * columns["entropies"]


REINFORCE = TokenLoss(_reinforce, ("advantages", "entropies"))


def test_a_loss_of_ones_own_reads_the_columns_it_names(trajectories):
  batch = _packed(trajectories, columns=REINFORCE.columns)
  gradients, metrics = _update(batch, REINFORCE)
  value, expected = _by_hand(
    trajectories,
    lambda log_probs, _, t, n: -_ADVANTAGES[n] * log_probs * 2.0,
  )
  assert_close(metrics.loss, value)
  assert_close(gradients, expected)


def _ratio(log_probs, columns, settings):
  """GSPO's, without a clip."""
  ratio = objectives.segment_ratio(log_probs, columns["segment_log_ratio"])
  return -columns["advantages"] * ratio


@pytest.mark.parametrize("segment", ["trajectory", "step"])
@pytest.mark.parametrize(("row_length", "rows"), [(12, 1), (28, 1), (16, 3)])
def test_the_ratio_of_a_segment_is_its_own(
  trajectories, segment, row_length, rows
):
  loss = TokenLoss(_ratio, ("advantages", "segment_log_ratio"), segment)
  extra = ("step_ids",) if segment == "step" else ()
  batch = _packed(trajectories, row_length, rows, extra)
  gradients, metrics = _update(batch, loss)

  def of_trajectory(log_probs, entropies, trajectory, number):
    del entropies
    policy = trajectory.policy_mask
    gap = log_probs - trajectory.log_probs[policy]
    steps = trajectory.step_ids[policy]
    if segment == "trajectory":
      steps = np.zeros_like(steps)
    losses = []
    for token, step in enumerate(steps):
      mean = jax.lax.stop_gradient(jnp.mean(gap[steps == step]))
      own = jnp.exp(mean) * jnp.exp(
        log_probs[token] - jax.lax.stop_gradient(log_probs[token])
      )
      losses.append(-_ADVANTAGES[number] * own)
    return jnp.stack(losses)

  value, expected = _by_hand(trajectories, of_trajectory)
  assert_close(metrics.loss, value)
  assert_close(gradients, expected)


def test_an_entropy_bonus_is_differentiated(trajectories):
  objective = ObjectiveConfig(entropy_coef=0.3)
  loss = TokenLoss(
    lambda p, c, s: -c["advantages"] * p,
  )
  gradients, metrics = _update(_packed(trajectories), loss, objective)
  value, expected = _by_hand(
    trajectories,
    lambda log_probs, entropies, t, n: (
      -_ADVANTAGES[n] * log_probs - 0.3 * entropies
    ),
  )
  assert_close(metrics.loss, value)
  assert_close(gradients, expected)


def test_kl_to_the_start_is_0_and_grows_with_the_distance(trajectories):
  objective = ObjectiveConfig(kl_coef=0.5, kl_estimator="k2")
  loss = TokenLoss(lambda p, c, s: 0 * p)
  batch = _packed(trajectories)
  own = score_reference(_model(), batch, **_SCORING)
  _, metrics = _update(own, loss, objective)
  assert_close(metrics.loss, 0.0)
  # A column of its own, one nat off everywhere: 0.5 * 1² / 2.
  reference = own.columns["reference_log_probs"] - batch.where
  columns = {**own.columns, "reference_log_probs": reference}
  _, metrics = _update(own._replace(columns=columns), loss, objective)
  assert_close(metrics.loss, 0.25)


def test_the_reference_of_a_policy_with_adapters_is_its_base(trajectories):
  lora = models.LoraConfig(2, 4.0, ("query", "down"))
  model = models.add_adapters(_model(), lora, rngs=nnx.Rngs(1))
  moved = jax.tree.map(lambda x: x + 0.3, models.trainable(model))
  model = models.with_trainable(model, moved)
  batch = _packed(trajectories)
  base = score_reference(_model(), batch, **_SCORING)
  scored = score_reference(model, batch, **_SCORING)
  assert_close(
    scored.columns["reference_log_probs"], base.columns["reference_log_probs"]
  )
  off = np.asarray(scored.columns["reference_log_probs"])[
    ~np.asarray(batch.where)
  ]
  assert not off.any()


def test_a_derivative_that_is_nan_off_the_tokens_changes_nothing(trajectories):
  # At a padded place the column is 0, and so the derivative 0 / 0.
  loss = TokenLoss(lambda p, c, s: -c["advantages"] * p / c["advantages"])
  gradients, metrics = _update(_packed(trajectories, 32, 1), loss)
  value, expected = _by_hand(trajectories, lambda p, *_: -p)
  assert_close(metrics.loss, value)
  assert_close(gradients, expected)


def test_gspo_counts_what_its_clip_stops(trajectories):
  gspo = ALGORITHMS["gspo"]
  lower = [
    dataclasses.replace(t, log_probs=t.log_probs - 3.0) for t in trajectories
  ]
  _, metrics = _update(
    _packed(lower), gspo.loss, gspo.settings(ObjectiveConfig())
  )
  # Ratios are above 1: clipped where the advantage is positive.
  tokens = [int(t.policy_mask.sum()) for t in trajectories]
  assert metrics.clipped_high == tokens[0] + tokens[2]
  assert metrics.clipped_low == 0


def _by_source(log_probs, columns, settings):
  del settings
  return -log_probs * (1 + columns["source"])


def test_a_loss_knows_who_wrote_a_token(trajectories):
  sources = (Source.POLICY, Source.AGENT, Source.REPLAY)
  mixed = [
    dataclasses.replace(t, source=source)
    for t, source in zip(trajectories, sources, strict=True)
  ]
  loss = TokenLoss(_by_source, ("source",))
  gradients, metrics = _update(_packed(mixed, columns=loss.columns), loss)
  value, expected = _by_hand(
    mixed, lambda log_probs, _, t, n: -log_probs * (1 + t.source)
  )
  assert_close(metrics.loss, value)
  assert_close(gradients, expected)
  # What others sampled says nothing of the trainer's error.
  tokens = [int(t.policy_mask.sum()) for t in mixed]
  assert metrics.tokens == sum(tokens)
  assert metrics.sampled == tokens[0]
  _, first = _update(_packed([mixed[0]] * 3, columns=loss.columns), loss)
  assert_close(3 * metrics.gap_sum, first.gap_sum)
  assert metrics.gap_sum > 0
