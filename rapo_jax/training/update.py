"""The update: clipped objective, gradients over micro-batches, optimizer."""

from __future__ import annotations

import functools
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from rapo_jax import hosts, models, objectives
from rapo_jax.algorithms import CLIPPED_LOSS, ObjectiveConfig, TokenLoss
from rapo_jax.models import sharding
from rapo_jax.training.config import OptimizerConfig
from rapo_jax.training.packing import PackedBatch
from rapo_jax.trajectory import Source


@hosts.held(lambda state: state.model)
class TrainState(NamedTuple):
  """What training carries from update to update.

  Attributes:
    model: the policy.
    opt_state: optimizer state of `models.trainable(model)`.
  """

  model: models.Decoder
  opt_state: optax.OptState


class UpdateMetrics(NamedTuple):
  """Sums and maxima over policy tokens; means come last, over everything.

  With them comes what the trainer makes of each token.

  Attributes:
    loss: the objective, negated.
    gradient_norm: before clipping.
    tokens: policy tokens.
    sampled: those of them that the policy sampled for this update.
    clipped_low: of these, tokens whose ratio fell below the range and whose
      advantage is negative, so that their gradient is cut off.
    clipped_high: tokens whose ratio rose above it and whose advantage is
      positive.
    gap_sum: Σ |log-prob of the trainer - log-prob of the sampler|.
    gap_max: the largest of them.
    skipped: minibatches that were not taken; see `update_minibatch`.
    log_probs: of each token of the batch under the policy before this step, 0
      for what is not in the loss.
  """

  loss: Float[Array, ""]
  gradient_norm: Float[Array, ""]
  tokens: Float[Array, ""]
  sampled: Float[Array, ""]
  clipped_low: Float[Array, ""]
  clipped_high: Float[Array, ""]
  gap_sum: Float[Array, ""]
  gap_max: Float[Array, ""]
  skipped: Float[Array, ""]
  log_probs: Float[Array, "M R T"]


@functools.cache
def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Global-norm clipping and AdamW. One object per config, so that jit hits."""
  learning_rate: optax.ScalarOrSchedule = config.learning_rate
  if config.warmup_updates:
    # The schedule counts from 0: the first update learns, the update numbered
    # warmup_updates is the first with the whole rate.
    learning_rate = optax.linear_schedule(
      config.learning_rate / config.warmup_updates,
      config.learning_rate,
      config.warmup_updates - 1,
    )
  return optax.chain(
    optax.clip_by_global_norm(config.max_gradient_norm),
    optax.adamw(
      learning_rate,
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
    ),
  )


@hosts.led
def init_train_state(
  model: models.Decoder,
  config: OptimizerConfig,
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
  """The state before the first update. It owns the model: hand in a copy.

  Args:
    model: placed by `sharding.TRAIN_RULES` where there is a mesh. What is
      trained, see `models.trainable`, in float32: small learning rates are
      lost in fewer bits.
    config: the optimizer.
    mesh: devices that share the state; None for one device.
  """
  with sharding.use_mesh(mesh):
    return TrainState(model, _init_optimizer(model, config))


@functools.partial(jax.jit, static_argnames="config")
def _init_optimizer(
  model: models.Decoder, config: OptimizerConfig
) -> optax.OptState:
  opt_state = make_optimizer(config).init(models.trainable(model))
  # Moments lie where their parameters lie.
  return sharding.constrain_parameters(opt_state, sharding.TRAIN_RULES)


@functools.partial(
  jax.jit,
  static_argnames=(
    "objective",
    "loss",
    "optimizer",
    "temperature",
    "dtype",
    "remat",
    "head_chunk",
  ),
  donate_argnames="state",
)
def update_minibatch(
  state: TrainState,
  batch: PackedBatch,
  *,
  objective: ObjectiveConfig,
  optimizer: OptimizerConfig,
  temperature: float,
  dtype: str,
  remat: models.Remat,
  head_chunk: int,
  loss: TokenLoss = CLIPPED_LOSS,
) -> tuple[TrainState, UpdateMetrics]:
  """One optimizer update on one minibatch (Eq. 11).

  Gradients are summed over micro-batches with weights that were computed over
  the whole minibatch. So they do not depend on the split. They are of what is
  trained: adapters where there are any, else all parameters.

  A minibatch whose loss or gradient is not finite, or that is `unlearned`, is
  skipped: the state stays as it was, the optimizer's moments and count too.

  Args:
    state: donated.
    batch: packed trajectories.
    objective: coefficients and clip range, as the loss reads them.
    optimizer: of which the state is a part.
    temperature: at which the tokens were sampled.
    dtype: that the model computes in, the sampler's. Parameters, gradients'
      sum and moments keep their own.
    remat: what each layer keeps for its backward pass.
    head_chunk: tokens of a device whose logits are alive at a time.
    loss: of each token.
  """
  scoring: _Scoring = {
    "temperature": temperature,
    "remat": remat,
    "head_chunk": head_chunk,
  }
  trained = models.trainable(state.model)

  def microbatch_loss(
    variables: dict[str, nnx.Variable], micro: PackedBatch
  ) -> tuple[Array, UpdateMetrics]:
    model = models.with_trainable(state.model, variables)
    total, log_probs = _loss_sum(
      model.astype(dtype), micro, loss, objective, scoring
    )
    return total, _metrics(total, log_probs, micro, objective)

  gradient = jax.grad(microbatch_loss, has_aux=True)

  def body(
    index: Array, carry: tuple[dict[str, nnx.Variable], UpdateMetrics]
  ) -> tuple[dict[str, nnx.Variable], UpdateMetrics]:
    gradients, metrics = carry
    micro = _microbatch(batch, index)
    if loss.segment is not None:
      micro = _with_segments(state.model.astype(dtype), micro, loss, scoring)
    new_gradients, new_metrics = gradient(trained, micro)
    gradients = jax.tree.map(jnp.add, gradients, new_gradients)
    gradients = sharding.constrain_parameters(gradients, sharding.TRAIN_RULES)
    return gradients, _merge(metrics, new_metrics, index)

  zeros = UpdateMetrics(
    **dict.fromkeys(UpdateMetrics._fields, jnp.zeros(()))
  )._replace(log_probs=jnp.zeros(batch.tokens.shape))
  gradients, metrics = jax.lax.fori_loop(
    0,
    batch.num_microbatches,
    body,
    (jax.tree.map(jnp.zeros_like, trained), zeros),
  )
  updates, opt_state = make_optimizer(optimizer).update(
    gradients, state.opt_state, trained
  )
  norm = optax.tree.norm(gradients)
  sound = jnp.isfinite(norm + metrics.loss) & (batch.num_microbatches >= 0)
  # Elementwise, so that the donated state is written over. A branch would hold
  # both.
  variables, opt_state = jax.tree.map(
    lambda new, old: jnp.where(sound, new, old),
    (optax.apply_updates(trained, updates), opt_state),
    (trained, state.opt_state),
  )
  metrics = metrics._replace(
    gradient_norm=norm, skipped=1.0 - sound.astype(jnp.float32)
  )
  new_state = TrainState(
    models.with_trainable(state.model, variables), opt_state
  )
  return (
    sharding.constrain_parameters(new_state, sharding.TRAIN_RULES),
    metrics,
  )


def _microbatch(batch: PackedBatch, index: Array) -> PackedBatch:
  """The arrays of one micro-batch, each `[R, T]`."""
  micro: PackedBatch = jax.tree.map(
    lambda x: sharding.constrain(x[index], "batch", None) if x.ndim else x,
    batch,
  )
  return micro


class _Scoring(TypedDict):
  """How tokens are scored: arguments of `models.token_log_probs`."""

  temperature: float
  remat: models.Remat
  head_chunk: int


def _loss_sum(
  model: models.Decoder,
  micro: PackedBatch,
  loss: TokenLoss,
  objective: ObjectiveConfig,
  scoring: _Scoring,
) -> tuple[Float[Array, ""], Float[Array, "R T"]]:
  """The weighted sum of token losses, and log-probs without gradient."""
  weighted = functools.partial(_weighted_losses, loss=loss, objective=objective)
  needed = {*loss.columns}
  if objective.kl_coef:
    needed.add("reference_log_probs")
  columns = {name: micro.columns[name] for name in sorted(needed)}
  if not objective.entropy_coef:
    return models.token_loss_sum(
      model,
      micro.tokens,
      weighted,
      (columns, micro.weights),
      where=micro.where,
      segment_ids=micro.segment_ids,
      prefix_ids=micro.prefix_ids,
      **scoring,
    )
  # The fused head differentiates by log-probs alone.
  log_probs, entropies = models.token_log_probs(
    model,
    micro.tokens,
    where=micro.where,
    segment_ids=micro.segment_ids,
    prefix_ids=micro.prefix_ids,
    **scoring,
  )
  chosen = jax.tree.map(
    lambda x: jnp.where(micro.where, x, 0).ravel(),
    (log_probs, (columns, micro.weights)),
  )
  losses = weighted(*chosen).reshape(log_probs.shape)
  losses -= objective.entropy_coef * micro.weights * entropies
  total = jnp.sum(jnp.where(micro.where, losses, 0))
  return total, jax.lax.stop_gradient(log_probs)


def _weighted_losses(
  log_probs: Float[Array, " N"],
  arguments: tuple[dict[str, Float[Array, " N"]], Float[Array, " N"]],
  *,
  loss: TokenLoss,
  objective: ObjectiveConfig,
) -> Float[Array, " N"]:
  """Weighted losses of some policy tokens of a packed batch."""
  columns, weights = arguments
  named = {name: columns[name] for name in loss.columns}
  losses = loss.function(log_probs, named, objective)
  if objective.kl_coef:
    losses += objective.kl_coef * objectives.kl_estimate(
      log_probs,
      columns["reference_log_probs"],
      estimator=objective.kl_estimator,
      limit=objective.kl_limit,
    )
  return weights * losses


def _with_segments(
  model: models.Decoder, micro: PackedBatch, loss: TokenLoss, scoring: _Scoring
) -> PackedBatch:
  """Adds the mean log-ratios of the segments of a micro-batch."""
  log_probs, _ = models.token_log_probs(
    model,
    micro.tokens,
    where=micro.where,
    segment_ids=micro.segment_ids,
    prefix_ids=micro.prefix_ids,
    **scoring,
  )
  ids = micro.segment_ids
  if loss.segment == "step":
    # Steps of a trajectory lie in a row, one after the other.
    steps = micro.columns["step_ids"]
    starts = (jnp.diff(ids, axis=1) != 0) | (jnp.diff(steps, axis=1) != 0)
    ids = jnp.cumsum(jnp.pad(starts, ((0, 0), (1, 0))), axis=1)
  else:
    ids = jnp.maximum(ids - 1, 0)
  ratio = objectives.segment_log_ratio(
    log_probs, micro.columns["old_log_probs"], ids, where=micro.where
  )
  return micro._replace(columns={**micro.columns, "segment_log_ratio": ratio})


@functools.partial(
  jax.jit, static_argnames=("temperature", "dtype", "remat", "head_chunk")
)
def score_reference(
  model: models.Decoder,
  batch: PackedBatch,
  *,
  temperature: float,
  dtype: str,
  remat: models.Remat,
  head_chunk: int,
) -> PackedBatch:
  """Adds the column `reference_log_probs` to a minibatch.

  Args:
    model: the reference. One with adapters is read with all of them off.
    batch: packed trajectories.
    temperature: at which the tokens were sampled.
    dtype: that the model computes in.
    remat: as for `update_minibatch`.
    head_chunk: as for `update_minibatch`.
  """
  if model.config.lora is not None:
    off = jax.tree.map(jnp.zeros_like, models.trainable(model))
    model = models.with_trainable(model, off)
  return _scored(
    model,
    batch,
    "reference_log_probs",
    dtype,
    {"temperature": temperature, "remat": remat, "head_chunk": head_chunk},
  )


@functools.partial(
  jax.jit, static_argnames=("temperature", "dtype", "remat", "head_chunk")
)
def score_proximal(
  model: models.Decoder,
  batch: PackedBatch,
  *,
  temperature: float,
  dtype: str,
  remat: models.Remat,
  head_chunk: int,
) -> PackedBatch:
  """Adds the column `proximal_log_probs` to a minibatch.

  Args:
    model: the policy before the update.
    batch: packed trajectories.
    temperature: at which the tokens were sampled.
    dtype: that the model computes in.
    remat: as for `update_minibatch`.
    head_chunk: as for `update_minibatch`.
  """
  return _scored(
    model,
    batch,
    "proximal_log_probs",
    dtype,
    {"temperature": temperature, "remat": remat, "head_chunk": head_chunk},
  )


def _scored(
  model: models.Decoder,
  batch: PackedBatch,
  name: str,
  dtype: str,
  scoring: _Scoring,
) -> PackedBatch:
  """Adds log-probabilities under a model as a column."""
  model = model.astype(dtype)

  def body(index: Array, scored: Float[Array, "M R T"]) -> Array:
    micro = _microbatch(batch, index)
    log_probs, _ = models.token_log_probs(
      model,
      micro.tokens,
      where=micro.where,
      segment_ids=micro.segment_ids,
      prefix_ids=micro.prefix_ids,
      **scoring,
    )
    return scored.at[index].set(log_probs)

  scored = jax.lax.fori_loop(
    0, batch.num_microbatches, body, jnp.zeros(batch.tokens.shape)
  )
  return batch._replace(columns={**batch.columns, name: scored})


def _metrics(
  loss: Float[Array, ""],
  log_probs: Float[Array, "R T"],
  micro: PackedBatch,
  objective: ObjectiveConfig,
) -> UpdateMetrics:
  """Metrics of one micro-batch."""
  columns = micro.columns
  where = micro.where
  if "source" in columns:
    # What others sampled has other log-probabilities, or none.
    where &= columns["source"] == Source.POLICY
  gap = jnp.where(where, log_probs - columns["old_log_probs"], 0.0)
  ratio = jnp.exp(columns.get("segment_log_ratio", gap)) * (
    1 + objective.shaping_coef * columns["retrieved_fraction"]
  )
  advantages = columns["advantages"]
  low = (ratio < 1 - objective.clip_epsilon_low) & (advantages < 0)
  high = (ratio > 1 + objective.clip_epsilon_high) & (advantages > 0)
  return UpdateMetrics(
    loss=loss,
    gradient_norm=jnp.zeros(()),
    tokens=jnp.sum(micro.where, dtype=jnp.float32),
    sampled=jnp.sum(where, dtype=jnp.float32),
    clipped_low=jnp.sum(low & where, dtype=jnp.float32),
    clipped_high=jnp.sum(high & where, dtype=jnp.float32),
    gap_sum=jnp.sum(jnp.abs(gap)),
    gap_max=jnp.max(jnp.abs(gap)),
    skipped=jnp.zeros(()),
    log_probs=jnp.where(micro.where, log_probs, 0.0),
  )


def _merge(
  total: UpdateMetrics, micro: UpdateMetrics, index: Array
) -> UpdateMetrics:
  """Adds the metrics of a micro-batch to those of its minibatch."""
  log_probs = total.log_probs.at[index].set(micro.log_probs)
  return jax.tree.map(jnp.add, total, micro)._replace(
    gap_max=jnp.maximum(total.gap_max, micro.gap_max),
    log_probs=sharding.constrain(log_probs, None, "batch", None),
  )
