"""Settings of the objective: the numbers that methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from rapo_jax import hosts
from rapo_jax.errors import InputError
from rapo_jax.objectives.advantages import MIN_RETRIEVAL_FACTOR
from rapo_jax.objectives.losses import Aggregation, Estimator
from rapo_jax.ranges import check_numbers

PLAIN_PPO: Mapping[str, Any] = {
  "retrieval_coef": 0.0,
  "shaping_coef": 0.0,
  "clip_epsilon_low": 0.2,
  "clip_epsilon_high": 0.2,
  "dual_clip": None,
  "aggregation": "token",
  "aggregation_length": None,
}
"""PPO's loss, mean over tokens: what other methods' recipes begin with."""


@hosts.travels
@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """Retrieval-aware policy optimization (Eq. 5-11), and what others add.

  With both coefficients 0 this is GRPO. A method may set some of these itself,
  see `Algorithm.changes`.

  Attributes:
    retrieval_coef: a, weight of the retrieval advantage (Eq. 10).
    min_retrieval_factor: least value of 1 + a * A_ret in Eq. 10, in [0, 1]. It
      keeps the sign of the outcome's advantage. Without it the sign would flip
      where a * A_ret < -1 (from 27 rollouts on at a = 0.2). None for the
      equation as it is written.
    shaping_coef: m, weight of the retrieved fraction (Eq. 8).
    quality_scale: factor inside tanh (Eq. 6).
    clip_epsilon_low: the ratio is clipped below at 1 minus this.
    clip_epsilon_high: and above at 1 plus this.
    dual_clip: bound c on the loss of negative advantages; None for none.
    aggregation: how token losses are averaged: "sequence" (the paper), "token"
      (the authors' code) or "constant" (Dr. GRPO), see
      `objectives.rapo_loss`.
    aggregation_length: tokens that "constant" divides by, at least 1; None for
      the response budget, and with the others.
    kl_coef: weight of KL(policy || reference) in the loss, at least 0. The
      reference is the policy before the first update. Above 0 it is kept, and
      scores every minibatch once. With adapters it is the base, and takes no
      memory.
    kl_estimator: "k1", "k2" or "k3", see `objectives.kl_estimate`.
    kl_limit: a k3 estimate above it counts as it, nats; None for no limit.
    entropy_coef: weight of the policy's entropy, which the loss is lowered by;
      at least 0. Above 0 the output head takes more time.
    advantage_std: whether advantages are divided by the group's deviation;
      Dr. GRPO's are not.
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
  aggregation: Aggregation = "sequence"
  aggregation_length: float | None = None
  kl_coef: float = 0.0
  kl_estimator: Estimator = "k3"
  kl_limit: float | None = None
  entropy_coef: float = 0.0
  advantage_std: bool = True
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
    check_numbers(self, "kl_coef", "entropy_coef", at_least=0)
    check_numbers(self, "kl_limit", above=0)
    check_numbers(self, "aggregation_length", at_least=1)
    if self.aggregation != "constant" and self.aggregation_length is not None:
      raise InputError(
        'aggregation_length belongs to aggregation="constant" and to no other, '
        f"got {self.aggregation_length} with {self.aggregation!r}: leave it "
        "out."
      )
    if self.length_limit not in ("keep", "mask", "soft"):
      raise InputError(
        "length_limit must be keep, mask or soft, got "
        f"{self.length_limit!r}: correct it."
      )

  def for_budget(self, max_response_tokens: int) -> ObjectiveConfig:
    """These settings, with the response budget where they leave it open."""
    if self.aggregation != "constant" or self.aggregation_length is not None:
      return self
    return dataclasses.replace(self, aggregation_length=max_response_tokens)
