"""Settings of the optimizer and the update; those of the objective beside."""

from __future__ import annotations

import dataclasses
import math

from rapo_jax import hosts
from rapo_jax.algorithms.settings import ObjectiveConfig as ObjectiveConfig
from rapo_jax.errors import InputError
from rapo_jax.models import HEAD_CHUNK, Remat
from rapo_jax.ranges import check_numbers


@hosts.travels
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW on a constant learning rate after a linear warm-up.

  Attributes:
    learning_rate: after the warm-up.
    warmup_updates: minibatch updates of the warm-up; 0 for none. Of these,
      update i (from 1) has i / warmup_updates of the learning rate.
    weight_decay: decoupled, per update.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    max_gradient_norm: global norm that gradients are clipped to.
  """

  learning_rate: float = 1e-6
  warmup_updates: int = 0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  max_gradient_norm: float = 1.0

  def __post_init__(self) -> None:
    check_numbers(
      self, "learning_rate", "warmup_updates", "weight_decay", at_least=0
    )
    check_numbers(self, "b1", "b2", at_least=0, below=1)
    check_numbers(self, "eps", "max_gradient_norm", above=0)


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
  """How one batch of trajectories becomes minibatch updates.

  Attributes:
    queries_per_update: queries that one rollout answers.
    queries_per_minibatch: queries of one optimizer update; divides
      `queries_per_update`.
    epochs: passes over the batch.
    row_length: tokens of a packed row; no trajectory may be longer.
    rows_per_microbatch: rows whose activations are alive at a time.
    remat: what each layer keeps for its backward pass, see `models.Remat`.
    head_chunk: tokens of a device whose logits are alive at a time; fewer take
      less memory and, on accelerators, more time.
  """

  queries_per_update: int = 32
  queries_per_minibatch: int = 16
  epochs: int = 1
  row_length: int = 5632
  rows_per_microbatch: int = 4
  remat: Remat = "layer"
  head_chunk: int = HEAD_CHUNK

  def __post_init__(self) -> None:
    check_numbers(
      self,
      "queries_per_update",
      "queries_per_minibatch",
      "epochs",
      "row_length",
      "rows_per_microbatch",
      "head_chunk",
      at_least=1,
    )
    if self.queries_per_update % self.queries_per_minibatch:
      raise InputError(
        "queries_per_minibatch must divide queries_per_update "
        f"({self.queries_per_update}), got {self.queries_per_minibatch}: take "
        f"one of {_divisors(self.queries_per_update)}."
      )


def _divisors(number: int) -> list[int]:
  small = range(1, math.isqrt(number) + 1)
  return sorted({d for i in small if number % i == 0 for d in (i, number // i)})
