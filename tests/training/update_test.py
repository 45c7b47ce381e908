"""The update: split-invariant, masked, and GRPO where nothing is retrieved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rapo_jax import models, objectives
from rapo_jax.training import (
  ObjectiveConfig,
  OptimizerConfig,
  init_train_state,
  make_optimizer,
  pack,
  update_minibatch,
)
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory
from tests.closeness import assert_close
from tests.tiny_decoder import tiny_decoder

_OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
_LORA = models.LoraConfig(2, 4.0, ("query", "value", "down"))
_LENGTHS = (9, 17, 12, 24, 7, 20)


def _model():
  return tiny_decoder(num_heads=2, num_kv_heads=1)


@pytest.fixture(scope="module")
def trajectories():
  rng = np.random.default_rng(0)
  result = []
  for number, length in enumerate(_LENGTHS):
    kinds = rng.choice(
      [TokenKind.POLICY, TokenKind.OBSERVATION, TokenKind.RETRIEVED],
      size=length,
      p=[0.7, 0.2, 0.1],
    ).astype(np.int8)
    kinds[:5] = TokenKind.PROMPT
    kinds[5] = TokenKind.POLICY
    policy = kinds == TokenKind.POLICY
    tokens = rng.integers(0, 40, length).astype(np.int32)
    # Two groups with a prompt each.
    tokens[:5] = range(number // 3, number // 3 + 5)
    result.append(
      Trajectory(
        tokens=tokens,
        kinds=kinds,
        step_ids=np.where(kinds == TokenKind.PROMPT, -1, 0).astype(np.int32),
        log_probs=np.where(policy, -3.7, 0).astype(np.float32),
        entropies=np.zeros(length, np.float32),
        query_id="q",
        group_id=0,
        index=number,
        hybrid=True,
        policy_version=0,
        finish_reason=FinishReason.ANSWER,
      )
    )
  return result


def _packed(
  trajectories,
  row_length,
  rows,
  *,
  fraction=None,
  poison=None,
  share_prompts=True,
):
  where = np.zeros((len(trajectories), max(_LENGTHS)), bool)
  for row, trajectory in enumerate(trajectories):
    where[row, : len(trajectory.tokens)] = trajectory.policy_mask
  count = len(trajectories)
  batch, _ = pack(
    trajectories,
    advantages=np.linspace(-1.5, 2, count).astype(np.float32),
    retrieved_fraction=(
      np.linspace(0, 0.5, count)
      if fraction is None
      else np.full(count, fraction)
    ).astype(np.float32),
    weights=np.asarray(objectives.loss_weights(where, aggregation="sequence")),
    row_length=row_length,
    rows_per_microbatch=rows,
    share_prompts=share_prompts,
  )
  if poison is not None:
    columns = {
      name: np.where(batch.where, column, poison)
      for name, column in batch.columns.items()
    }
    batch = batch._replace(columns=columns)
  return batch


def _update(batch, objective=None, *, remat="none"):
  # The state is donated, so each call starts from a model of its own.
  state, metrics = update_minibatch(
    init_train_state(_model(), _OPTIMIZER),
    batch,
    objective=objective or ObjectiveConfig(),
    optimizer=_OPTIMIZER,
    temperature=1.0,
    dtype="float32",
    remat=remat,
    head_chunk=32,
  )
  # The first moment: a step of Adam's divides gradients by their own size, and
  # rounding of one near 0 would become a difference of a whole step.
  return jax.tree.leaves(optax.tree.get(state.opt_state, "mu")), metrics


@pytest.mark.parametrize(
  ("row_length", "rows"), [(24, 2), (32, 3), (96, 1), (24, 6)]
)
def test_any_split_into_rows_and_microbatches_gives_the_same(
  trajectories, row_length, rows
):
  expected, expected_metrics = _update(_packed(trajectories, 48, 4))
  actual, metrics = _update(_packed(trajectories, row_length, rows))
  assert_close(metrics.loss, expected_metrics.loss)
  assert_close(metrics.gradient_norm, expected_metrics.gradient_norm)
  assert metrics.tokens == expected_metrics.tokens
  assert_close(actual, expected)


def test_a_shared_prompt_is_computed_once_and_changes_nothing(trajectories):
  apart = _packed(trajectories, 48, 4, share_prompts=False)
  shared = _packed(trajectories, 48, 4)

  def positions(batch):
    return np.count_nonzero(batch.segment_ids)

  # Rows of 48 hold a group or a part of one; a prompt of 5 shares 4.
  assert positions(apart) == sum(_LENGTHS)
  assert positions(shared) < positions(apart) - 4 * 2
  expected, expected_metrics = _update(apart)
  actual, metrics = _update(shared)
  assert_close(metrics.loss, expected_metrics.loss)
  assert_close(metrics.gap_sum, expected_metrics.gap_sum)
  assert metrics.tokens == expected_metrics.tokens
  assert_close(actual, expected)


def test_loss_equals_the_objective_on_unpacked_trajectories(trajectories):
  shape = (len(trajectories), max(_LENGTHS))
  tokens, where = np.zeros(shape, np.int32), np.zeros(shape, bool)
  old = np.zeros(shape, np.float32)
  for row, trajectory in enumerate(trajectories):
    span = slice(0, len(trajectory.tokens))
    tokens[row, span] = trajectory.tokens
    where[row, span] = trajectory.policy_mask
    old[row, span] = trajectory.log_probs
  log_probs, _ = models.token_log_probs(
    _model(), jnp.asarray(tokens), where=jnp.asarray(where)
  )
  expected = objectives.rapo_loss(
    log_probs,
    jnp.asarray(old),
    jnp.linspace(-1.5, 2, len(trajectories)),
    jnp.linspace(0, 0.5, len(trajectories)),
    where=jnp.asarray(where),
  )
  _, metrics = _update(_packed(trajectories, 48, 2))
  assert_close(metrics.loss, expected)


@pytest.mark.parametrize("remat", ["nested", "layer", "attention", "dots"])
def test_remat_changes_memory_and_not_the_result(trajectories, remat):
  batch = _packed(trajectories, 48, 2)
  assert_close(_update(batch, remat=remat)[0], _update(batch)[0])


def test_nan_outside_the_policy_tokens_changes_nothing(trajectories):
  clean, _ = _update(_packed(trajectories, 48, 2))
  poisoned, metrics = _update(_packed(trajectories, 48, 2, poison=np.nan))
  assert np.isfinite(metrics.loss)
  assert np.isfinite(metrics.gap_max)
  for a, b in zip(poisoned, clean, strict=True):
    np.testing.assert_array_equal(a, b)


def test_without_retrieval_the_coefficients_change_no_bit(trajectories):
  batch = _packed(trajectories, 48, 2, fraction=0.0)
  grpo = ObjectiveConfig(retrieval_coef=0.0, shaping_coef=0.0)
  for coefficients in ({}, {"retrieval_coef": 3.0, "shaping_coef": 0.7}):
    rapo = dataclasses.replace(ObjectiveConfig(), **coefficients)
    for a, b in zip(
      _update(batch, rapo)[0], _update(batch, grpo)[0], strict=True
    ):
      np.testing.assert_array_equal(a, b)


def test_gap_is_the_distance_to_the_samplers_log_probs(trajectories):
  batch = _packed(trajectories, 48, 2)
  _, metrics = _update(batch)
  log_probs, _ = models.token_log_probs(
    _model(),
    jnp.asarray(batch.tokens[0]),
    where=jnp.asarray(batch.where[0]),
    segment_ids=jnp.asarray(batch.segment_ids[0]),
    prefix_ids=jnp.asarray(batch.prefix_ids[0]),
  )
  assert batch.num_microbatches == 1
  gap = np.abs(log_probs - batch.columns["old_log_probs"][0])[batch.where[0]]
  assert_close(metrics.gap_sum, gap.sum())
  assert_close(metrics.gap_max, gap.max())


def _lora_state(lora=_LORA, dtype="float32"):
  base = _model().astype(dtype)
  model = models.add_adapters(base, lora, rngs=nnx.Rngs(1))
  return init_train_state(model, _OPTIMIZER)


def _lora_update(state, batch, dtype="float32"):
  return update_minibatch(
    state,
    batch,
    objective=ObjectiveConfig(),
    optimizer=_OPTIMIZER,
    temperature=1.0,
    dtype=dtype,
    remat="layer",
    head_chunk=32,
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_train_and_the_base_keeps_every_bit(trajectories, dtype):
  batch = _packed(trajectories, 48, 2)
  state = _lora_state(dtype=dtype)
  before = [np.array(x) for x in jax.tree.leaves(state.model)]
  losses = []
  for _ in range(8):
    state, metrics = _lora_update(state, batch, dtype)
    losses.append(float(metrics.loss))
  assert losses[-1] < losses[0] - 0.05
  after, _ = jax.tree_util.tree_flatten_with_path(state.model)
  for (path, now), old in zip(after, before, strict=True):
    trained = "lora_" in jax.tree_util.keystr(path)
    assert np.array_equal(now, old) != trained, path
    assert now.dtype == ("float32" if trained else dtype)


def test_gradients_of_adapters_are_those_of_the_merged_weights(trajectories):
  # With W + s A B, dL/dB = s Aᵀ dL/dW; at B = 0 that is all there is to it.
  batch = _packed(trajectories, 48, 2)
  state = _lora_state(models.LoraConfig(2, 4.0, ("up",)))
  a = np.array(state.model.layers.feed_forward.up.lora_a[...])
  adapters, _ = _lora_update(state, batch)
  whole, _ = update_minibatch(
    init_train_state(_model(), _OPTIMIZER),
    batch,
    objective=ObjectiveConfig(),
    optimizer=_OPTIMIZER,
    temperature=1.0,
    dtype="float32",
    remat="none",
    head_chunk=32,
  )

  def gradient(state, name):
    # The first moment is a tenth of the first gradient.
    moments = optax.tree.get(state.opt_state, "mu")
    return 10 * np.asarray(moments[f"layers.feed_forward.up.{name}"][...])

  by_weight, by_b = gradient(whole, "kernel"), gradient(adapters, "lora_b")
  expected = 2 * np.einsum("lir,lio->lro", a, by_weight)
  # Both were clipped, each by a factor of its own.
  assert_close(by_b / np.linalg.norm(by_b), expected / np.linalg.norm(expected))
  np.testing.assert_array_equal(gradient(adapters, "lora_a"), 0)


def test_the_optimizer_holds_two_moments_of_the_adapters_alone():
  state = _lora_state()
  # Layers x rank x (in + out): query 16 + 16, value 16 + 8, down 32 + 16.
  adapters = 2 * 2 * (32 + 24 + 48)
  arrays = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sum(x.size for x in arrays) == 2 * adapters


def test_no_gradient_of_a_frozen_weight_is_computed(trajectories):
  batch = _packed(trajectories, 48, 2)

  def products(state):
    compiled = update_minibatch.lower(
      state,
      batch,
      objective=ObjectiveConfig(),
      optimizer=_OPTIMIZER,
      temperature=1.0,
      dtype="float32",
      remat="none",
      head_chunk=32,
    ).compile()
    text = compiled.as_text()
    # The embedding's gradient, summed over chunks of tokens.
    return text.count("f32[1,40,16]"), compiled.memory_analysis()

  frozen, small = products(_lora_state())
  whole, large = products(init_train_state(_model(), _OPTIMIZER))
  assert whole > 0
  assert frozen == 0
  assert small.temp_size_in_bytes < large.temp_size_in_bytes


@pytest.mark.parametrize("warmup", [0, 1, 2, 4])
def test_update_i_of_a_warm_up_has_its_share_of_the_learning_rate(warmup):
  optimizer = make_optimizer(
    OptimizerConfig(learning_rate=1e-3, warmup_updates=warmup)
  )
  parameters = jnp.ones(1)
  state = optimizer.init(parameters)
  for number in range(1, 7):
    # Adam's step of a gradient that stays the same is the learning rate.
    step, state = optimizer.update(jnp.full(1, 0.5), state, parameters)
    share = min(1.0, number / warmup) if warmup else 1.0
    np.testing.assert_allclose(-step, 1e-3 * share, rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_minibatch_that_is_not_finite_leaves_the_state_as_it_was(
  trajectories, value
):
  batch = _packed(trajectories, 48, 2)
  settings = {
    "objective": ObjectiveConfig(),
    "optimizer": _OPTIMIZER,
    "temperature": 1.0,
    "dtype": "float32",
    "remat": "none",
    "head_chunk": 32,
  }
  # One update, so that moments and count are not those of the start.
  state, metrics = update_minibatch(
    init_train_state(_model(), _OPTIMIZER), batch, **settings
  )
  assert metrics.skipped == 0
  before = jax.device_get(jax.tree.leaves(state))
  advantages = np.array(batch.columns["advantages"])
  row, token = np.argwhere(batch.where[0])[0]
  advantages[0, row, token] = value
  broken = batch._replace(columns={**batch.columns, "advantages": advantages})
  state, metrics = update_minibatch(state, broken, **settings)
  assert metrics.skipped == 1
  assert not np.isfinite(metrics.loss)
  after = jax.device_get(jax.tree.leaves(state))
  for old, new in zip(before, after, strict=True):
    np.testing.assert_array_equal(old, new)
  state, metrics = update_minibatch(state, batch, **settings)
  assert metrics.skipped == 0
  # The control: an update that is taken moves the parameters.
  moved = jax.device_get(jax.tree.leaves(state))
  assert any(
    not np.array_equal(a, b) for a, b in zip(moved, before, strict=True)
  )
