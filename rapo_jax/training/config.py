"""Settings of the objective, the optimizer and the update."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rapo_jax.errors import InputError
from rapo_jax.models import HEAD_CHUNK, Remat
from rapo_jax.objectives.advantages import MIN_RETRIEVAL_FACTOR
from rapo_jax.ranges import check_numbers


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """Retrieval-aware policy optimization (Eq. 5-11).

  With both coefficients 0 this is GRPO.

  Attributes:
    retrieval_coef: a, weight of the retrieval advantage (Eq. 10).
    min_retrieval_factor: least value of 1 + a * A_ret in Eq. 10, in [0, 1]. It
      keeps the sign of the outcome's advantage, which would flip where
      a * A_ret < -1 (from 28 rollouts on at a = 0.2). None for the equation
      as it is written.
    shaping_coef: m, weight of the retrieved fraction (Eq. 8).
    quality_scale: factor inside tanh (Eq. 6).
    clip_epsilon_low: the ratio is clipped below at 1 minus this.
    clip_epsilon_high: and above at 1 plus this.
    dual_clip: bound c on the loss of negative advantages; None for none.
    aggregation: "sequence" (the paper) or "token" (the authors' code).
    advantage_ddof: degrees of freedom left out of the group's deviation.
    advantage_eps: added to the deviation.
    length_limit: what becomes of trajectories that end at a limit of the
      agent, `length` or `step_limit`. "keep": they are scored like all others.
      "mask": they are left out, like those that the system cut. "soft": they
      stay, and every reward falls with the length of the response (DAPO's
      soft overlong punishment).
    soft_length_share: with "soft", the last share of `max_response_tokens`
      over which the punishment grows from 0 to 1, in (0, 1].
  """

  retrieval_coef: float = 0.2
  min_retrieval_factor: float | None = MIN_RETRIEVAL_FACTOR
  shaping_coef: float = 0.05
  quality_scale: float = 2.0
  clip_epsilon_low: float = 0.2
  clip_epsilon_high: float = 0.28
  dual_clip: float | None = None
  aggregation: Literal["sequence", "token"] = "sequence"
  advantage_ddof: int = 1
  advantage_eps: float = 1e-6
  length_limit: Literal["keep", "mask", "soft"] = "keep"
  soft_length_share: float = 0.2

  def __post_init__(self) -> None:
    check_numbers(
      self, "retrieval_coef", "shaping_coef", "quality_scale", at_least=0
    )
    check_numbers(self, "clip_epsilon_low", at_least=0, at_most=1)
    check_numbers(self, "clip_epsilon_high", "advantage_eps", at_least=0)
    check_numbers(self, "dual_clip", at_least=1)
    check_numbers(self, "advantage_ddof", at_least=0, at_most=1)
    check_numbers(self, "min_retrieval_factor", at_least=0, at_most=1)
    check_numbers(self, "soft_length_share", above=0, at_most=1)
    if self.length_limit not in ("keep", "mask", "soft"):
      raise InputError(
        "length_limit must be keep, mask or soft, got "
        f"{self.length_limit!r}: correct it."
      )


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
      divisors = [
        d
        for d in range(1, self.queries_per_update + 1)
        if self.queries_per_update % d == 0
      ]
      raise InputError(
        "queries_per_minibatch must divide queries_per_update "
        f"({self.queries_per_update}), got {self.queries_per_minibatch}: take "
        f"one of {divisors}."
      )
