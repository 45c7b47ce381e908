"""An algorithm: a plan, advantages and a loss, as one value.

An algorithm chooses three things that do not depend on each other:

- its plan: how the rollouts of a question are sampled (on the host);
- its advantages: pure arrays, `Signals` to one number a trajectory, step or
  token;
- its loss: of each token by itself, given named columns.

What has to see the whole batch, such as a mean over it, belongs to the
advantages. So the update is a weighted sum of token losses, and exact for any
split into micro-batches.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rapo_jax import objectives
from rapo_jax.algorithms.groups import Keep
from rapo_jax.algorithms.guidance import GuideRule
from rapo_jax.algorithms.replay import Replay
from rapo_jax.algorithms.settings import ObjectiveConfig
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.policy import RetrievalConfig
from rapo_jax.rollout import RolloutConfig
from rapo_jax.rollout.forks import ForkRule

COLUMNS = {
  "old_log_probs": "log-probability of the token as sampled",
  "advantages": "of the token",
  "retrieved_fraction": "of the token's trajectory (Eq. 8)",
  "entropies": "of the distribution that the token was sampled from, nats",
  "reference_log_probs": "under the reference policy; needs kl_coef above 0",
  "step_ids": "step of the token",
  "source": "`Source` of the token's trajectory, as a number",
  "proximal_log_probs": "under the policy before the update; scored for it",
  "segment_log_ratio": "mean log-ratio of the token's segment; needs `segment`",
}
"""What a token loss can read, by name."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
# What no method may be named: agents of the report.
_RESERVED = ("base", "warm_start", "off_policy", "other")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signals:
  """What advantages are made of: `B` trajectories, `S` steps, `L` tokens.

  Attributes:
    rewards: outcome reward of each trajectory.
    group_ids: question of each trajectory; -1 for one that does not count.
    kinds: `TokenKind` of each token; -1 for padding.
    step_ids: step of each token; -1 for prompt and padding.
    entropies: as sampled, nats; 0 where the policy wrote nothing.
    step_entropies: mean of a step's policy tokens, nats; 0 without any.
    policy_steps: steps that the policy wrote.
    retrieved: steps that were inserted.
    retrieval_rewards: Z_ret (Eq. 7).
    retrieval_effects: of retrieved steps, the reward with the step less that
      without it; NaN where none was measured (`RetrievalConfig.probe_share`).
    step_rewards: the outcome reward on the last policy step, 0 elsewhere.
    malformed: steps whose call could not be parsed.
    anchors: id of what a policy step answers: of the segment before it, which
      is the prompt for the first one. Steps of one question that answer the
      same tokens share an id, in [0, B * S); -1 for other steps and for
      trajectories that do not count.
    tree_ids: tree of each trajectory, in [0, B): those that forks join share
      one; -1 for one that does not count.
    node_ids: id of each step, in [0, B * S): trajectories share those of the
      steps before a fork; -1 for what is no step, or does not count.
    sources: `Source` of each trajectory.
    num_groups: number of questions.
  """

  rewards: Float[Array, " B"]
  group_ids: Int[Array, " B"]
  kinds: Int[Array, "B L"]
  step_ids: Int[Array, "B L"]
  entropies: Float[Array, "B L"]
  step_entropies: Float[Array, "B S"]
  policy_steps: Bool[Array, "B S"]
  retrieved: Bool[Array, "B S"]
  retrieval_rewards: Float[Array, " B"]
  retrieval_effects: Float[Array, "B S"]
  step_rewards: Float[Array, "B S"]
  malformed: Bool[Array, "B S"]
  anchors: Int[Array, "B S"]
  tree_ids: Int[Array, " B"]
  node_ids: Int[Array, "B S"]
  sources: Int[Array, " B"]
  num_groups: int = dataclasses.field(metadata={"static": True})


Advantages = Callable[[Signals, ObjectiveConfig], Array]
"""Gives `[B]`, `[B, S]` or `[B, L]`; an entry holds for all of its tokens."""

RetrievalReward = Callable[..., Array]
"""Called as `objectives.retrieval_reward` is (Eq. 5-7)."""

LossFunction = Callable[[Array, Mapping[str, Array], ObjectiveConfig], Array]
"""Log-probs `[N]`, columns `[N]` by name and settings to losses `[N]`."""


@dataclasses.dataclass(frozen=True)
class TokenLoss:
  """The loss of each token by itself.

  ```python
  def reinforce(log_probs, columns, settings):
    return -columns["advantages"] * log_probs

  loss = TokenLoss(reinforce, vanishes=True)
  ```

  Attributes:
    function: of log-probs, columns and settings, entry by entry; a function
      of a module, so that a resumed run finds it.
    columns: that it reads, of `COLUMNS`.
    segment: whose mean log-ratio the column `segment_log_ratio` gives. The
      update makes it with one more forward pass, without gradient.
    vanishes: whether the loss and its gradient are 0 where the advantage is 0.
      The update then does not compute trajectories without an advantage.

  Raises:
    InputError: the function cannot be called, or a column is not known.
  """

  function: LossFunction
  columns: tuple[str, ...] = ("old_log_probs", "advantages")
  segment: Literal["trajectory", "step"] | None = None
  vanishes: bool = False

  def __post_init__(self) -> None:
    if not callable(self.function):
      raise InputError(
        f"a loss needs a function, got {self.function!r}: hand in one that "
        "takes log-probs, columns and settings."
      )
    # A lone name without a comma is taken letter by letter, and refused too.
    unknown = [name for name in self.columns if name not in COLUMNS]
    if unknown:
      raise InputError(
        f"columns of the loss {self.name} must be a tuple of "
        f"{', '.join(COLUMNS)}, got {self.columns!r}: correct the name."
      )
    if self.segment not in (None, "trajectory", "step"):
      raise InputError(
        f"segment of the loss {self.name} must be None, trajectory or step, "
        f"got {self.segment!r}: correct it."
      )
    if ("segment_log_ratio" in self.columns) != (self.segment is not None):
      raise InputError(
        f"the loss {self.name} needs both the column segment_log_ratio and "
        f"segment or neither, got {self.columns!r} and {self.segment!r}: add "
        "the one that is missing."
      )

  @property
  def name(self) -> str:
    """Of its function, for messages."""
    return getattr(self.function, "__qualname__", repr(self.function))


def _check_fields(what: str, changes: Mapping[str, Any], config: type) -> None:
  known = {field.name for field in dataclasses.fields(config)}
  unknown = sorted(set(changes) - known)
  if unknown:
    raise InputError(
      f"{what} must be fields of {config.__name__}, got {', '.join(unknown)}: "
      "correct the name."
    )


@dataclasses.dataclass(frozen=True)
class Resample:
  """Other questions in place of groups that teach nothing.

  Attributes:
    keep: says whether a group is trained on.
    max_rounds: most rollouts before an update, at least 1. Groups of the last
      one fill up what is missing, kept or not.
  """

  keep: Keep
  max_rounds: int = 10

  def __post_init__(self) -> None:
    if not callable(self.keep) or self.max_rounds < 1:
      raise InputError(
        "Resample takes a function `keep` and at least 1 round, got "
        f"{self.keep!r} and {self.max_rounds}: correct it."
      )


@dataclasses.dataclass(frozen=True)
class Plan:
  """How the rollouts of a question are sampled.

  Attributes:
    hybrid: whether `rollout.num_hybrid` of a group's rollouts may retrieve.
    retrieval_changes: fields of `RetrievalConfig` that the method sets itself.
    rollout_changes: fields of `RolloutConfig` that it sets.
    resample: other questions for groups that teach nothing; None for none.
    forks: which rollouts of a group begin as copies of others; None for none.
    replay: groups of earlier updates in place of new rollouts; None for none.
    teacher: rows of a group that another agent wrote, where there are any;
      None for none. "all": nothing is rolled out. Only questions are asked on
      which there is a row, and rows come again until the group is full.
    guide: when hybrid rollouts may retrieve; None for always.
    prefixed: share of the questions whose rollouts begin with the first steps
      of another agent's trajectory, where there is one; in [0, 1].

  Raises:
    InputError: rollouts would both retrieve and fork, or a field is not known.
      Or there is a rule when to retrieve, and no rollout retrieves, or groups
      are resampled. Or `prefixed` is out of range, or beside rollouts that
      retrieve or fork, or a teacher. Or groups would be both replayed and
      resampled, or have an agent's rows beside rollouts that retrieve, fork or
      come again.
  """

  hybrid: bool = False
  retrieval_changes: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )
  rollout_changes: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )
  resample: Resample | None = None
  forks: ForkRule | None = None
  replay: Replay | None = None
  teacher: int | Literal["all"] | None = None
  guide: GuideRule | None = None
  prefixed: float = 0.0

  def __post_init__(self) -> None:
    if self.hybrid and self.forks is not None:
      raise InputError(
        "rollouts that fork do not retrieve, got a plan with hybrid=True and "
        f"{self.forks!r}: leave one of them out."
      )
    if self.replay is not None and self.resample is not None:
      raise InputError(
        "a plan has one way to fill an update, got both "
        f"{self.replay!r} and {self.resample!r}: leave one of them out."
      )
    if self.guide is not None and (not self.hybrid or self.resample):
      raise InputError(
        "a rule when to retrieve needs a plan with hybrid=True and without "
        f"resample, got {self!r}: correct it."
      )
    mixed = self.hybrid or self.forks is not None or self.teacher is not None
    if not 0 <= self.prefixed <= 1 or (self.prefixed and mixed):
      raise InputError(
        "prefixed must be in [0, 1], and 0 beside hybrid, forks or a teacher, "
        f"got {self!r}: correct it."
      )
    others = (self.hybrid, self.resample, self.forks, self.replay)
    known = self.teacher in (None, "all") or (
      isinstance(self.teacher, int) and self.teacher >= 1
    )
    if not known or (self.teacher is not None and any(others)):
      raise InputError(
        "a plan's teacher is at least 1 row beside plain rollouts, or all, got "
        f"{self.teacher} with {self!r}: leave one of them out."
      )
    for name, config in (
      ("retrieval_changes", RetrievalConfig),
      ("rollout_changes", RolloutConfig),
    ):
      changes = dict(getattr(self, name))
      object.__setattr__(self, name, changes)
      _check_fields(f"{name} of a plan", changes, config)

  @property
  def reads_agent(self) -> bool:
    """Whether it takes whole trajectories of another agent."""
    return self.teacher is not None or self.prefixed > 0

  @property
  def mixes(self) -> bool:
    """Whether rows may be there that the policy did not sample now."""
    return self.replay is not None or self.teacher is not None

  def rollout(self, config: RolloutConfig) -> RolloutConfig:
    """The rollout of this plan."""
    changes = dict(self.rollout_changes)
    if not self.hybrid:
      changes["num_hybrid"] = 0
    return dataclasses.replace(config, **changes)

  def retrieval(self, config: RetrievalConfig) -> RetrievalConfig:
    """The retrieval of this plan."""
    return dataclasses.replace(config, **self.retrieval_changes)


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """One method of training.

  Attributes:
    name: in configs and folders: lower case letters, digits and `_`.
    label: in the report.
    description: one sentence, with the paper.
    advantages: of each trajectory, step or token.
    loss: of each token.
    plan: how a question's rollouts are sampled.
    changes: fields of `ObjectiveConfig` that the method sets itself. All
      others stay as they are configured.
    retrieval_reward: Z_ret (Eq. 5-7), called as `objectives.retrieval_reward`.
    colour: in the report, `#rrggbb`; None for that of what has no own.
    dark_colour: the same on a dark page; None for `colour`.

  Raises:
    InputError: a field is not as it must be.
  """

  name: str
  label: str
  description: str
  advantages: Advantages
  loss: TokenLoss
  plan: Plan = Plan()
  changes: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )
  retrieval_reward: RetrievalReward = objectives.retrieval_reward
  colour: str | None = None
  dark_colour: str | None = None

  def __post_init__(self) -> None:
    object.__setattr__(self, "changes", dict(self.changes))
    if not isinstance(self.name, str):
      raise InputError(
        f"the name of an algorithm must be a text, got {self.name!r}: choose "
        "one."
      )
    if not isinstance(self.plan, Plan):
      raise InputError(
        f"plan of the algorithm {self.name} must be a Plan, got "
        f"{self.plan!r}: write Plan(...)."
      )
    if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
      raise InputError(
        "the name of an algorithm must be lower case letters, digits and _, "
        f"and none of {', '.join(_RESERVED)}, got {self.name!r}: choose "
        "another."
      )
    if not isinstance(self.loss, TokenLoss):
      raise InputError(
        f"the loss of the algorithm {self.name} must be a TokenLoss, got "
        f"{self.loss!r}: write TokenLoss(function)."
      )
    for field in ("advantages", "retrieval_reward"):
      if not callable(getattr(self, field)):
        raise InputError(
          f"{field} of the algorithm {self.name} must be a function, got "
          f"{getattr(self, field)!r}: hand one in."
        )
    for field in ("colour", "dark_colour"):
      colour = getattr(self, field)
      if colour is not None and not _COLOUR.fullmatch(colour):
        raise InputError(
          f"{field} of the algorithm {self.name} must be #rrggbb, got "
          f"{colour!r}: correct it."
        )
    what = f"changes of the algorithm {self.name}"
    _check_fields(what, self.changes, ObjectiveConfig)
    # A value out of range is refused here, not by the first run.
    self.settings(ObjectiveConfig())

  def settings(self, objective: ObjectiveConfig) -> ObjectiveConfig:
    """The settings of this method, made from those of the experiment."""
    return dataclasses.replace(objective, **self.changes)


def group_relative(
  values: Float[Array, " B"], signals: Signals, settings: ObjectiveConfig
) -> Float[Array, " B"]:
  """Values relative to the other rollouts of the question (Eq. 9)."""
  return objectives.group_advantages(
    values,
    signals.group_ids,
    num_groups=signals.num_groups,
    ddof=settings.advantage_ddof,
    eps=settings.advantage_eps,
    std=settings.advantage_std,
  )


def outcome_advantages(
  signals: Signals, settings: ObjectiveConfig
) -> Float[Array, " B"]:
  """GRPO's advantages: outcome rewards relative to the group."""
  return group_relative(signals.rewards, signals, settings)


def clipped_loss(
  log_probs: Float[Array, " N"],
  columns: Mapping[str, Float[Array, " N"]],
  settings: ObjectiveConfig,
) -> Float[Array, " N"]:
  """PPO's clipped loss on shaped ratios (Eq. 8, 11)."""
  # Seen as trajectories of one token, every token brings its own fraction.
  token_loss = objectives.rapo_token_loss(
    log_probs[:, None],
    columns["old_log_probs"][:, None],
    columns["advantages"],
    columns["retrieved_fraction"],
    where=np.ones((log_probs.size, 1), bool),
    clip_epsilon_low=settings.clip_epsilon_low,
    clip_epsilon_high=settings.clip_epsilon_high,
    dual_clip=settings.dual_clip,
    shaping_coef=settings.shaping_coef,
  )
  return token_loss[:, 0]


CLIPPED_LOSS = TokenLoss(
  clipped_loss,
  ("old_log_probs", "advantages", "retrieved_fraction"),
  vanishes=True,
)
