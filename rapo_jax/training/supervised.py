"""Supervised learning (SFT): the mean of -log p over the tokens in the loss.

The trainer takes any decoder, on one device or a mesh, whole or with adapters.
It goes on from a checkpoint as if it had never been stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from rapo_jax import hosts, models
from rapo_jax.errors import InputError
from rapo_jax.models import HEAD_CHUNK, Remat, sharding
from rapo_jax.ranges import check_numbers
from rapo_jax.training.checkpoints import Checkpoints
from rapo_jax.training.examples import (
  Example,
  SupervisedBatch,
  pack_examples,
)
from rapo_jax.training.update import TrainState

_HEADS = ("auto", "whole", "chunked")
# Up to this vocabulary all logits at once are faster than chunks of them.
_SMALL_VOCABULARY = 4096


@hosts.travels
@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  """Schedule, optimizer and batches of supervised learning.

  Attributes:
    num_steps: gradient steps.
    learning_rate: peak of AdamW's. It rises linearly, then falls to 0 along
      a cosine.
    warmup_steps: steps of the rise; fewer than `num_steps`. Step i (from 1) has
      i / warmup_steps of the peak.
    weight_decay: decoupled, per step.
    b1: decay of the first moment.
    b2: decay of the second moment.
    max_gradient_norm: global norm that gradients are clipped to.
    rows: rows of a batch, each packed with whole examples.
    row_length: tokens of a row; no example may be longer.
    rows_per_microbatch: rows whose activations are alive at a time; divides
      `rows`. None for all rows.
    steps_per_call: steps that one dispatch runs.
    dtype: that the model computes in. Parameters and moments keep their own.
    head: "whole" computes all logits of a micro-batch at once, "chunked" those
      of `head_chunk` tokens. "auto" chooses "whole" up to 4096 tokens of
      vocabulary, where it is faster.
    head_chunk: tokens of a device whose logits are alive at a time.
    remat: what each layer keeps for its backward pass, see `models.Remat`.
  """

  num_steps: int
  learning_rate: float = 1e-5
  warmup_steps: int = 0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.99
  max_gradient_norm: float = 1.0
  rows: int = 8
  row_length: int = 4096
  rows_per_microbatch: int | None = None
  steps_per_call: int = 1
  dtype: str = "float32"
  head: str = "auto"
  head_chunk: int = HEAD_CHUNK
  remat: Remat = "none"

  def __post_init__(self) -> None:
    check_numbers(
      self,
      "num_steps",
      "rows",
      "row_length",
      "steps_per_call",
      "head_chunk",
      at_least=1,
    )
    check_numbers(
      self, "learning_rate", "warmup_steps", "weight_decay", at_least=0
    )
    check_numbers(self, "b1", "b2", at_least=0, below=1)
    check_numbers(self, "max_gradient_norm", above=0)
    if self.head not in _HEADS:
      raise InputError(
        f"head must be one of {', '.join(_HEADS)}, got {self.head!r}:"
        " correct it."
      )
    if self.warmup_steps >= self.num_steps:
      raise InputError(
        f"warmup_steps must be below num_steps ({self.num_steps}), got "
        f"{self.warmup_steps}: lower it."
      )
    if self.rows_per_microbatch is not None:
      check_numbers(self, "rows_per_microbatch", at_least=1)
      if self.rows % self.rows_per_microbatch:
        raise InputError(
          f"rows_per_microbatch must divide rows ({self.rows}), got "
          f"{self.rows_per_microbatch}: take a divisor."
        )


class StepLoss(NamedTuple):
  """What a dispatch did.

  Attributes:
    step: steps done since the start.
    loss: mean of the dispatch's steps, in nats a token.
  """

  step: int
  loss: float


class SupervisedTrainer:
  """Trains a decoder on examples.

  With `checkpoints` it continues from the newest sound one, if there is one.

  Args:
    model: where to start from, placed by `sharding.TRAIN_RULES` where there is
      a mesh. The trainer owns it: hand in a copy if it is used elsewhere. With
      adapters they alone are trained.
    config: schedule and batches.
    mesh: devices that share the work; None for one device.
    checkpoints: where the state is saved; None for nowhere.
    checkpoint_every: steps between two checkpoints; the last step is always
      saved.

  Raises:
    InputError: the mesh does not divide the rows of a micro-batch, or the
      checkpoint is one of another config.
    BrokenCheckpointError: there are checkpoints, and none is sound.
  """

  def __init__(
    self,
    model: models.Decoder,
    config: SupervisedConfig,
    *,
    mesh: jax.sharding.Mesh | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 100,
  ):
    if mesh is not None:
      sharding.check_rows(
        "rows_per_microbatch", config.rows_per_microbatch or config.rows, mesh
      )
    self._config = config
    self._mesh = mesh
    self._checkpoints = checkpoints
    self._every = checkpoint_every
    self._state = _begin(model, config, mesh)
    self._step = self._saved = 0
    self._seen: str | None = None
    if checkpoints is not None:
      self._resume(checkpoints)

  @property
  def model(self) -> models.Decoder:
    """The model after the steps done; valid until the next one runs."""
    return self._state.model

  @property
  def step(self) -> int:
    """Steps done, those before a resume included."""
    return self._step

  def run(self, examples: Iterable[Example]) -> Iterator[StepLoss]:
    """Runs the steps that are left, a dispatch for each value.

    Args:
      examples: from the first one on, also after a resume: those of the steps
        done are skipped.

    Raises:
      InputError: the examples end too early, do not fit into rows, or differ
        from those that the checkpoint was trained on.
    """
    config, digest = self._config, hashlib.sha256()
    batches = pack_examples(
      examples, rows=config.rows, row_length=config.row_length
    )
    skipped = itertools.islice(batches, self._step)
    self._check_same(sum(1 for _ in _hashed(skipped, digest)), digest)
    while self._step < config.num_steps:
      count = min(config.steps_per_call, config.num_steps - self._step)
      part = list(_hashed(itertools.islice(batches, count), digest))
      if len(part) < count:
        raise InputError(
          f"the examples must fill {config.num_steps} steps (num_steps), and "
          f"end after {self._step + len(part)}: add examples, repeat them "
          "(repeat_examples), or lower num_steps."
        )
      stacked = SupervisedBatch(*map(np.stack, zip(*part, strict=True)))
      self._state, losses = _run_steps(self._state, stacked, config, self._mesh)
      before, self._step = self._step, self._step + count
      self._seen = digest.hexdigest()
      self._save(before)
      yield StepLoss(self._step, float(np.mean(losses)))

  def loss(self, examples: Iterable[Example]) -> float:
    """Mean of -log p over the tokens in the loss, in nats; trains nothing.

    Args:
      examples: at least one; they need not fill a batch.

    Raises:
      InputError: there is none, or one does not fit into a row.
    """
    config = self._config
    total, count = 0.0, 0
    for batch in pack_examples(
      examples, rows=config.rows, row_length=config.row_length
    ):
      total += _loss_of(self._state.model, batch, config, self._mesh)
      count += int(batch.where[:, 1:].sum())
    if not count:
      raise InputError("a loss needs at least one example, got 0: add some.")
    return total / count

  def save(self) -> None:
    """Saves the state as it is, if it is not saved yet."""
    if self._checkpoints is None or self._step == self._saved:
      return
    self._checkpoints.save(
      self._step,
      self._state,
      {"config": dataclasses.asdict(self._config), "examples": self._seen},
    )
    self._saved = self._step

  def _check_same(self, skipped: int, digest: Any) -> None:
    if self._step and (
      skipped < self._step or digest.hexdigest() != self._seen
    ):
      raise InputError(
        "the examples must be the same ones, in the same order, when training "
        f"is resumed, and those of the first {self._step} steps differ: give "
        "the same examples, or train from the start in another folder."
      )

  def _save(self, before: int) -> None:
    """Saves if a multiple of the interval was passed, or at the end."""
    passed = self._step // self._every > before // self._every
    if passed or self._step == self._config.num_steps:
      self.save()

  def _resume(self, checkpoints: Checkpoints) -> None:
    newest = checkpoints.newest_sound().update
    if newest is None:
      return
    metadata = checkpoints.metadata(newest)
    wanted = dataclasses.asdict(self._config)
    held = metadata["config"]
    other = sorted(
      name for name in {*wanted, *held} if wanted.get(name) != held.get(name)
    )
    if other:
      raise InputError(
        "training must be resumed with the config that it began with, and "
        f"these fields differ: {', '.join(other)}: set them back, or train "
        "from the start in another folder."
      )
    self._state = checkpoints.restore(newest, self._state)
    self._step = self._saved = newest
    self._seen = metadata["examples"]


@hosts.led
def _begin(
  model: models.Decoder,
  config: SupervisedConfig,
  mesh: jax.sharding.Mesh | None,
) -> TrainState:
  """The state before the first step."""
  with sharding.use_mesh(mesh):
    return TrainState(model, _init_optimizer(model, config))


@hosts.led
def _run_steps(
  state: TrainState,
  batches: SupervisedBatch,
  config: SupervisedConfig,
  mesh: jax.sharding.Mesh | None,
) -> tuple[TrainState, Float[Array, " N"]]:
  """Steps on batches that every host holds; see `_steps`."""
  with sharding.use_mesh(mesh):
    return _steps(state, sharding.replicate(batches, mesh), config)


@hosts.led
def _loss_of(
  model: models.Decoder,
  batch: SupervisedBatch,
  config: SupervisedConfig,
  mesh: jax.sharding.Mesh | None,
) -> float:
  """Sum of -log p over a batch that every host holds."""
  with sharding.use_mesh(mesh):
    return float(_summed_loss(model, sharding.replicate(batch, mesh), config))


def negative_log_likelihood(
  log_probs: Float[Array, " N"], weights: Float[Array, " N"]
) -> Float[Array, " N"]:
  """Weighted loss of each token, with the weights of "token" aggregation."""
  return -weights * log_probs


def _hashed(
  batches: Iterable[SupervisedBatch], digest: Any
) -> Iterator[SupervisedBatch]:
  for batch in batches:
    for array in batch:
      digest.update(np.ascontiguousarray(array))
    yield batch


@functools.cache
def _make_optimizer(config: SupervisedConfig) -> optax.GradientTransformation:
  # The schedule counts from 0, and the first step learns, too.
  schedule = optax.warmup_cosine_decay_schedule(
    config.learning_rate / max(config.warmup_steps, 1),
    config.learning_rate,
    max(config.warmup_steps - 1, 0),
    config.num_steps,
  )
  return optax.chain(
    optax.clip_by_global_norm(config.max_gradient_norm),
    optax.adamw(
      schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay
    ),
  )


@functools.partial(jax.jit, static_argnames="config")
def _init_optimizer(
  model: models.Decoder, config: SupervisedConfig
) -> optax.OptState:
  opt_state = _make_optimizer(config).init(models.trainable(model))
  # Moments lie where their parameters lie.
  return sharding.constrain_parameters(opt_state, sharding.TRAIN_RULES)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _steps(
  state: TrainState, batches: SupervisedBatch, config: SupervisedConfig
) -> tuple[TrainState, Float[Array, " N"]]:
  """Some gradient steps, one for each of `N` batches; losses in nats."""

  def step(
    state: TrainState, batch: SupervisedBatch
  ) -> tuple[TrainState, Float[Array, ""]]:
    trained = models.trainable(state.model)
    loss, gradients = _loss_and_gradients(state.model, batch, config)
    updates, opt_state = _make_optimizer(config).update(
      gradients, state.opt_state, trained
    )
    model = models.with_trainable(
      state.model, optax.apply_updates(trained, updates)
    )
    new_state = TrainState(model, opt_state)
    return (
      sharding.constrain_parameters(new_state, sharding.TRAIN_RULES),
      loss,
    )

  return jax.lax.scan(step, state, batches)


def _loss_and_gradients(
  model: models.Decoder, batch: SupervisedBatch, config: SupervisedConfig
) -> tuple[Float[Array, ""], dict[str, nnx.Variable]]:
  """Loss of a batch, and its gradients by what is trained.

  Micro-batches add up to the whole batch: all share the number of tokens.
  """
  trained = models.trainable(model)
  count = batch.where[:, 1:].sum()

  def loss(
    variables: dict[str, nnx.Variable], micro: SupervisedBatch
  ) -> Float[Array, ""]:
    return batch_loss(
      models.with_trainable(model, variables), micro, config, count
    )

  value_and_grad = jax.value_and_grad(loss)
  if config.rows_per_microbatch in (None, config.rows):
    return value_and_grad(trained, batch)

  def add(carry: Any, micro: SupervisedBatch) -> tuple[Any, None]:
    total = jax.tree.map(jnp.add, carry, value_and_grad(trained, micro))
    return sharding.constrain_parameters(total, sharding.TRAIN_RULES), None

  zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
  total, _ = jax.lax.scan(add, zeros, _micro_batches(batch, config))
  return total


@functools.partial(jax.jit, static_argnames="config")
def _summed_loss(
  model: models.Decoder, batch: SupervisedBatch, config: SupervisedConfig
) -> Float[Array, ""]:
  """Sum of -log p over a batch, a micro-batch at a time."""
  losses = jax.lax.map(
    lambda micro: batch_loss(model, micro, config, 1),
    _micro_batches(batch, config),
  )
  return losses.sum()


def _micro_batches(
  batch: SupervisedBatch, config: SupervisedConfig
) -> SupervisedBatch:
  """The micro-batches of a batch, one behind the other."""
  rows = config.rows_per_microbatch or config.rows
  return SupervisedBatch(*(x.reshape(-1, rows, x.shape[-1]) for x in batch))


def batch_loss(
  model: models.Decoder,
  batch: SupervisedBatch,
  config: SupervisedConfig,
  count: Array | int,
) -> Float[Array, ""]:
  """Negative log-likelihood of the tokens in the loss, over `count`.

  Args:
    model: the decoder; computes in `config.dtype`.
    batch: packed examples.
    config: the head and its chunks.
    count: tokens in the loss of the whole step.

  Returns:
    The loss in nats, differentiable by the model.
  """
  model = model.astype(config.dtype)
  tokens, segment_ids, where = (
    sharding.constrain(jnp.asarray(x), "batch", None) for x in batch
  )
  is_small = model.config.vocab_size <= _SMALL_VOCABULARY
  if config.head == "whole" or (config.head == "auto" and is_small):
    hidden = model.hidden_states(
      tokens, segment_ids=segment_ids, remat=config.remat
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      model.unembed(hidden[:, :-1]).astype(jnp.float32), tokens[:, 1:]
    )
    return jnp.where(where[:, 1:], losses, 0).sum() / count
  weights = jnp.where(where, 1 / count, 0)
  total, _ = models.token_loss_sum(
    model,
    tokens,
    negative_log_likelihood,
    weights,
    where=where,
    segment_ids=segment_ids,
    remat=config.remat,
    head_chunk=config.head_chunk,
  )
  return total
