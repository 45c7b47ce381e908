"""Compares the product's functions with numbers of the authors' own.

    python -m tests.algorithms.golden <folder>

The folder holds `cases.json` and a file a case. Each case goes through the
functions that training calls: an algorithm's advantages, its token loss with
its columns, `loss_weights`, its rule of resampling. A line says how each
compares; the exit status is 1 if one differs in a way that is not meant.

Four differences are meant: a group of one has advantage 0 here; trajectories
without tokens count in "sequence"; log-ratios are capped at another place;
equal entropies change no advantage, whatever rounding makes of them.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax import objectives
from rapo_jax.algorithms import (
  ALGORITHMS,
  Algorithm,
  ObjectiveConfig,
  Signals,
  TokenLoss,
)
from rapo_jax.algorithms.aepo import LOSS as AEPO_LOSS
from rapo_jax.algorithms.luffy import MixedLoss, on_policy_advantages
from rapo_jax.algorithms.tree_grpo import TreeAdvantages
from rapo_jax.trajectory import Source, TokenKind
from tests.algorithms import golden_forks

# Log-ratios beyond it have no gradient in the authors' code.
_THEIR_CAP = 20.0
_GROUP_OF_ONE = "a group of one"
_EMPTY_ROWS = "trajectories without tokens"
_CAP = "the cap of the log-ratio"
_EQUAL = "equal entropies"

Check = Callable[["Case"], str | None]


@dataclasses.dataclass(frozen=True)
class Case:
  """One case: what its file holds, and how closely it is compared."""

  about: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]

  @property
  def arguments(self) -> Mapping[str, Any]:
    return self.about["arguments"]

  def __getitem__(self, name: str) -> np.ndarray:
    return self.arrays[name]

  def replace(self, name: str, array: np.ndarray) -> Case:
    """The case with another array."""
    return dataclasses.replace(self, arrays={**self.arrays, name: array})

  def close(self, actual: Any, name: str, where: Any = None) -> bool:
    """Whether an output is the authors', where it is compared."""
    expected = self.arrays[name]
    actual = np.broadcast_to(np.asarray(actual), expected.shape)
    if where is not None:
      where = np.broadcast_to(where, expected.shape)
      actual, expected = actual[where], expected[where]
    single = self.about["computed_in"] == "float32"
    rtol, atol = (1e-6, 1e-7) if single else (1e-9, 1e-10)
    return bool(np.allclose(actual, expected, rtol=rtol, atol=atol))


class _Differs(Exception):
  """A difference that is not meant."""


class _NotHere(Exception):
  """A variant that is not built."""


def _settings(algorithm: Algorithm, **changes: Any) -> ObjectiveConfig:
  return dataclasses.replace(algorithm.settings(ObjectiveConfig()), **changes)


def _first(arguments: Mapping[str, Any], *names: str) -> Any:
  return next((arguments[n] for n in names if n in arguments), None)


def _signals(
  rewards: np.ndarray,
  group_ids: np.ndarray,
  step_rewards: np.ndarray | None = None,
  anchors: np.ndarray | None = None,
  *,
  where: np.ndarray | None = None,
  entropies: np.ndarray | None = None,
  trees: np.ndarray | None = None,
  sources: np.ndarray | None = None,
) -> Signals:
  """Signals in which the policy wrote every step that has an anchor.

  Args:
    rewards: of each trajectory.
    group_ids: of each trajectory.
    step_rewards: of each step; 0 by default.
    anchors: of each step; one step a trajectory by default.
    where: policy tokens; one a trajectory by default.
    entropies: of the tokens; 0 by default.
    trees: of each trajectory; one of its own by default.
    sources: of each trajectory; the policy by default.
  """
  rows = len(rewards)
  if sources is None:
    sources = np.full(rows, Source.POLICY)
  if trees is None:
    trees = np.arange(rows)
  if anchors is None:
    anchors = np.zeros((rows, 1), np.int32)
  if step_rewards is None:
    step_rewards = np.zeros(anchors.shape)
  if where is None:
    where = np.ones((rows, 1), bool)
  if entropies is None:
    entropies = np.zeros(where.shape)
  steps = anchors.shape[1]
  policy = anchors >= 0
  none = np.zeros((rows, steps), bool)
  kinds = np.where(where, TokenKind.POLICY, TokenKind.OBSERVATION)
  return Signals(
    rewards=jnp.asarray(rewards, jnp.float64),
    group_ids=jnp.asarray(group_ids),
    kinds=jnp.asarray(kinds, jnp.int32),
    step_ids=jnp.zeros(where.shape, jnp.int32),
    entropies=jnp.asarray(entropies, jnp.float64),
    step_entropies=jnp.zeros((rows, steps)),
    policy_steps=jnp.asarray(policy),
    retrieved=jnp.asarray(none),
    retrieval_rewards=jnp.zeros(rows),
    retrieval_effects=jnp.full((rows, steps), jnp.nan),
    step_rewards=jnp.asarray(step_rewards, jnp.float64),
    malformed=jnp.asarray(none),
    anchors=jnp.asarray(anchors),
    tree_ids=jnp.asarray(trees, jnp.int32),
    node_ids=jnp.arange(rows * steps).reshape(rows, steps),
    sources=jnp.asarray(sources, jnp.int32),
    num_groups=int(np.max(group_ids)) + 1,
  )


def _dense(ids: np.ndarray) -> np.ndarray:
  return np.unique(ids, return_inverse=True)[1].astype(np.int32)


def _lone(ids: np.ndarray) -> np.ndarray:
  """Marks rows that are alone in their group."""
  _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
  return counts[inverse] == 1


def _spread(values: Any, case: Case) -> np.ndarray:
  return np.asarray(values)[:, None] * case["in_mask"]


def _compare_rows(
  case: Case, values: Any, name: str, lone: np.ndarray
) -> str | None:
  """Compares a number a row; rows alone in their group may differ."""
  actual = _spread(values, case)
  # A row without tokens may hold anything.
  there = (case["in_mask"].sum(1) > 0)[:, None]
  if case.close(actual, name, there):
    return None
  if case.close(actual, name, there & ~lone[:, None]):
    return _GROUP_OF_ONE
  raise _Differs(name)


def _group_advantages(case: Case) -> str | None:
  arguments = case.arguments
  std = _first(arguments, "norm_adv_by_std_in_grpo", "use_std")
  remove = _first(arguments, "remove_std")
  use_std = (std is None or bool(std)) and not remove
  group = _dense(case["in_group"])
  rewards = (
    case["in_rewards"]
    if "in_rewards" in case.arrays
    else case["in_episode_reward"]
  )
  name = (
    "out_advantages"
    if "out_advantages" in case.arrays
    else "out_episode_advantages"
  )
  rows, trajectory = np.arange(len(group)), None
  if arguments.get("compute_mean_std_cross_steps", True) is False:
    # One row a trajectory has a say, and all of its rows get its advantage.
    _, rows, trajectory = np.unique(
      case["in_trajectory"], return_index=True, return_inverse=True
    )
  algorithm = ALGORITHMS["grpo"]
  settings = _settings(
    algorithm,
    advantage_std=use_std,
    advantage_eps=arguments.get("epsilon", 1e-6),
  )
  values = algorithm.advantages(_signals(rewards[rows], group[rows]), settings)
  lone = _lone(group[rows])
  if trajectory is not None:
    values, lone = np.asarray(values)[trajectory], lone[trajectory]
  return _compare_rows(case, values, name, lone)


def _rloo(case: Case) -> str | None:
  algorithm = ALGORITHMS["rloo"]
  group = _dense(case["in_group"])
  values = algorithm.advantages(
    _signals(case["in_rewards"], group), _settings(algorithm)
  )
  return _compare_rows(case, values, "out_advantages", _lone(group))


def _whitened(name: str) -> Check:
  """Compares advantages that are normalised over the batch."""

  def check(case: Case) -> str | None:
    algorithm = ALGORITHMS[name]
    discount = case.arguments.get("gamma", 1.0)
    advantages = dataclasses.replace(algorithm.advantages, discount=discount)
    group, where = _dense(case["in_group"]), case["in_mask"] > 0
    lone = _lone(group)
    rewards = case["in_rewards"]
    values = advantages(
      _signals(rewards, group, where=where), _settings(algorithm)
    )
    if case.close(values, "out_advantages", where):
      return None
    if advantages.baseline and lone.any():
      # Every other row moves with the mean of the batch.
      centred = objectives.group_advantages(
        jnp.asarray(rewards),
        group,
        num_groups=int(group.max()) + 1,
        std=False,
      )
      raw = np.where(lone, rewards, centred)[:, None] * np.ones(where.shape)
      values = objectives.whiten(jnp.asarray(raw), where=where)
      if case.close(values, "out_advantages", where):
        return _GROUP_OF_ONE
    raise _Differs("out_advantages")

  return check


def _tree(case: Case) -> str | None:
  estimator = case.arguments["adv_estimator"]
  kinds = {"tree": (True, True), "tree_inner": (False, True)}
  if estimator not in kinds:
    raise _NotHere
  inter, intra = kinds[estimator]
  group, tree = _dense(case["in_group"]), _dense(case["in_tree"])
  values = TreeAdvantages(inter=inter, intra=intra)(
    _signals(case["in_rewards"], group, trees=tree),
    ObjectiveConfig(advantage_eps=case.arguments.get("epsilon", 1e-6)),
  )
  # The authors' trees may be numbered within their question.
  lone = _lone(tree) | _lone(group)
  return _compare_rows(case, values, "out_advantages", lone)


def _step_returns(case: Case) -> str | None:
  rows = case["in_trajectory"]
  width = int(np.bincount(_dense(rows)).max())
  rewards = np.zeros((int(_dense(rows).max()) + 1, width))
  where = np.zeros(rewards.shape, bool)
  places = []
  for row, reward in zip(_dense(rows), case["in_step_rewards"], strict=True):
    place = (row, int(where[row].sum()))
    rewards[place], where[place] = reward, True
    places.append(place)
  returns = objectives.step_returns(
    rewards, where=where, discount=case.arguments["gamma"]
  )
  actual = [float(returns[place]) for place in places]
  if not case.close(actual, "out_step_returns"):
    raise _Differs("out_step_returns")
  return None


def _gigpo(case: Case) -> str | None:
  # Rows are steps: each is a trajectory of one step, whose reward is the
  # step's return.
  algorithm = ALGORITHMS["gigpo"]
  arguments = case.arguments
  advantages = dataclasses.replace(
    algorithm.advantages, weight=arguments.get("step_advantage_w", 1.0)
  )
  settings = _settings(
    algorithm,
    advantage_std=arguments.get("mode", "mean_std_norm") == "mean_std_norm",
    advantage_eps=arguments.get("epsilon", 1e-6),
  )
  group = _dense(case["in_group"])
  anchors = _dense(group * 100_000 + case["in_anchor"])
  values = advantages(
    _signals(
      case["in_episode_reward"],
      group,
      case["in_step_returns"][:, None],
      anchors[:, None],
    ),
    settings,
  )
  # The authors' group of one is a question with one trajectory, or one row.
  pairs = np.unique(np.stack([group, case["in_trajectory"]]), axis=1)
  alone = np.flatnonzero(np.bincount(pairs[0]) == 1)
  lone = _lone(group) | np.isin(group, alone)
  return _compare_rows(case, np.asarray(values)[:, 0], "out_advantages", lone)


def _weights(
  case: Case, settings: ObjectiveConfig, mask: np.ndarray
) -> np.ndarray:
  return np.asarray(
    objectives.loss_weights(
      mask,
      aggregation=settings.aggregation,
      constant=settings.aggregation_length,
    )
  )


def _loss(algorithm: Algorithm, settings: ObjectiveConfig) -> Check:
  """Compares gradient, token losses and loss."""

  def check(case: Case) -> str | None:
    mask = case["in_mask"] > 0
    found = _compare_loss(case, algorithm, settings, mask)
    if found is None:
      return None
    rows = mask.any(axis=1)
    if settings.aggregation != "token" and not rows.all():
      found = _compare_loss(case, algorithm, settings, mask, rows)
      if found is None:
        return _EMPTY_ROWS
    gap = np.abs(case["in_log_probs"] - _old_log_probs(case))
    if (gap[mask] > _THEIR_CAP).any():
      seen = gap <= _THEIR_CAP
      found = _compare_loss(case, algorithm, settings, mask, seen=seen)
      if found is None:
        return _CAP
      if not rows.all():
        found = _compare_loss(case, algorithm, settings, mask, rows, seen)
        if found is None:
          return f"{_EMPTY_ROWS}, and {_CAP}"
    raise _Differs(found)

  return check


# Columns that some cases hold.
_HELD = {"proximal_log_probs": "in_proximal_log_probs", "source": "in_source"}


def _old_log_probs(case: Case) -> np.ndarray:
  for name in ("in_old_log_probs", "in_behaviour_log_probs"):
    if name in case.arrays:
      return case[name]
  # Advantages alone are read.
  return case["in_log_probs"]


def _compare_loss(
  case: Case,
  algorithm: Algorithm,
  settings: ObjectiveConfig,
  mask: np.ndarray,
  rows: np.ndarray | None = None,
  seen: np.ndarray | None = None,
) -> str | None:
  """What differs, or None.

  Args:
    case: inputs and outputs.
    algorithm: whose loss it is.
    settings: of the loss.
    mask: loss tokens.
    rows: that enter the weights; None for all.
    seen: positions that are compared; None for all, and the sum.
  """
  weights = np.zeros(mask.shape)
  rows = np.ones(len(mask), bool) if rows is None else rows
  weights[rows] = _weights(case, settings, mask[rows])
  loss = algorithm.loss
  old = jnp.asarray(_old_log_probs(case))
  columns = {
    "old_log_probs": old,
    "advantages": jnp.asarray(case["in_advantages"]),
    "retrieved_fraction": jnp.zeros(mask.shape),
    **{
      name: jnp.asarray(case[held])
      for name, held in _HELD.items()
      if held in case.arrays
    },
  }
  if loss.segment is not None:
    columns["segment_log_ratio"] = objectives.segment_log_ratio(
      jnp.asarray(case["in_log_probs"]),
      old,
      np.zeros(mask.shape, np.int32),
      where=mask,
    )
  flat = {name: columns[name][mask] for name in loss.columns}

  def total(log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    losses = loss.function(log_probs[mask], flat, settings)
    return jnp.sum(weights[mask] * losses), losses

  (value, losses), gradient = jax.value_and_grad(total, has_aux=True)(
    jnp.asarray(case["in_log_probs"])
  )
  gradient = np.asarray(gradient)
  if gradient[~mask].any() or case["out_grad_log_probs"][~mask].any():
    return "the gradient at masked positions"
  if not case.close(gradient, "out_grad_log_probs", seen):
    return "out_grad_log_probs"
  if "out_token_loss" in case.arrays:
    tokens = np.zeros(mask.shape)
    tokens[mask] = losses
    where = mask if seen is None else mask & seen
    # Some add 1e-8 to the count of tokens, which is 1 here.
    if not any(
      case.close(tokens / count, "out_token_loss", where)
      for count in (1, 1 + 1e-8)
    ):
      return "out_token_loss"
  if seen is None and not case.close(value, "out_loss"):
    return "out_loss"
  return None


_AGGREGATIONS = {
  "token-mean": "token",
  "seq-mean-token-mean": "sequence",
  "seq-mean-token-sum": "constant",
  "seq-mean-token-sum-norm": "constant",
}


def _ppo(case: Case) -> str | None:
  algorithm = ALGORITHMS["grpo"]
  settings = _settings(algorithm, **_clips(case), **_aggregation(case))
  return _loss(algorithm, settings)(case)


def _length(case: Case, width: int) -> int:
  """The constant that token losses are summed over."""
  for name, value in case.arguments.items():
    if name in _LENGTHS and value is not None:
      return int(value)
  return width


_LENGTHS = (
  "loss_scale_factor",
  "generate_max_length",
  "constant",
  "constant_normalizer",
  "max_length",
  "max_tokens",
  "normalizer",
)


def _dr_grpo(case: Case) -> str | None:
  algorithm = ALGORITHMS["dr_grpo"]
  settings = _settings(
    algorithm,
    **_clips(case),
    aggregation="constant",
    aggregation_length=_length(case, case["in_mask"].shape[1]),
  )
  return _loss(algorithm, settings)(case)


def _aggregation(case: Case) -> dict[str, Any]:
  """Settings of how token losses are averaged."""
  mode = case.arguments.get("loss_agg_mode", "token-mean")
  aggregation = _AGGREGATIONS[mode]
  length = None
  if aggregation == "constant":
    width = case["in_mask"].shape[1]
    length = 1 if mode == "seq-mean-token-sum" else _length(case, width)
  return {"aggregation": aggregation, "aggregation_length": length}


def _clips(case: Case) -> dict[str, Any]:
  """Settings of the clip range, by whatever names."""
  arguments = case.arguments
  both = _first(arguments, "cliprange", "clip_ratio", "clip_range")
  both = 0.2 if both is None else both
  low = _first(arguments, "clip_ratio_low", "cliprange_low")
  high = _first(arguments, "clip_ratio_high", "cliprange_high")
  return {
    # A ratio is never below 0, so that a width above 1 is 1.
    "clip_epsilon_low": min(both if low is None else low, 1.0),
    "clip_epsilon_high": both if high is None else high,
    "dual_clip": _first(arguments, "clip_ratio_c"),
  }


def _cispo(case: Case) -> str | None:
  algorithm = ALGORITHMS["cispo"]
  settings = _settings(algorithm, **_clips(case), **_aggregation(case))
  return _loss(algorithm, settings)(case)


def _gppo(case: Case) -> str | None:
  algorithm = ALGORITHMS["gppo"]
  arguments = case.arguments
  scales = {
    "low_scale": arguments.get("gppo_loss_beta1", 1.0),
    "high_scale": arguments.get("gppo_loss_beta2", 1.0),
  }
  if _first(arguments, "only_high", "only_higher"):
    scales["low_scale"] = None
  function = dataclasses.replace(algorithm.loss.function, **scales)
  algorithm = dataclasses.replace(algorithm, loss=TokenLoss(function))
  settings = _settings(algorithm, **_clips(case), **_aggregation(case))
  return _loss(algorithm, settings)(case)


def _aepo(case: Case) -> str | None:
  """Advantages by entropy and the loss on them; either may be off."""
  arguments = case.arguments
  loss = AEPO_LOSS
  if not arguments.get("enable_entropy_balanced_clipping", True):
    loss = ALGORITHMS["grpo"].loss
  algorithm = dataclasses.replace(ALGORITHMS["gppo"], loss=loss)
  settings = _settings(algorithm, **_clips(case), **_aggregation(case))
  check = _loss(algorithm, settings)
  balanced = arguments.get("enable_entropy_balanced_advantage", True)
  # The published scripts hand in no entropies, which switches it off.
  if not balanced or "in_entropies" not in case.arrays:
    return check(case)
  where = case["in_mask"] > 0
  weight = arguments.get("entropy_weight", 0.2)
  plain, entropies = case["in_advantages"], case["in_entropies"]
  advantages = objectives.balanced_advantages(
    jnp.asarray(plain), jnp.asarray(entropies), where=where, weight=weight
  )
  try:
    return check(case.replace("in_advantages", np.asarray(advantages)))
  except _Differs:
    if np.ptp(entropies[where]) > 0:
      raise
  # All are equal; the authors divide their rounding errors by each other.
  scale = 1 + weight * _rounded(entropies[where])
  check(case.replace("in_advantages", np.where(where, plain * scale, 0)))
  return _EQUAL


def _rounded(equal: np.ndarray) -> float:
  """(x - mean) / std of equal numbers, which rounding moves off 0."""
  deviation = float(np.std(equal, ddof=1))
  return float(equal[0] - np.mean(equal)) / deviation if deviation else 0.0


def _luffy(case: Case) -> str | None:
  arguments = case.arguments
  shaping = arguments.get("off_policy_reshape", "no_reshape")
  if shaping == "no_reshape":
    gamma = None
  elif shaping.startswith("p_div_p_"):
    gamma = float(shaping.removeprefix("p_div_p_"))
  else:
    raise _NotHere
  loss = MixedLoss(gamma=gamma, clip=not arguments.get("loss_remove_clip"))
  columns = ("old_log_probs", "advantages", "source")
  algorithm = dataclasses.replace(
    ALGORITHMS["grpo"], loss=TokenLoss(loss, columns)
  )
  source = np.where(case["in_prefix_mask"], Source.AGENT, Source.POLICY)
  rows, width = source.shape
  clips = _clips(case)
  bound = arguments.get("clip_upper_bound") or 0.0
  clips["clip_epsilon_high"] = max(clips["clip_epsilon_high"], bound - 1)
  # They divide the sum by the padded length, and not by rows.
  sums = bool(arguments.get("loss_remove_token_mean"))
  settings = _settings(
    algorithm,
    **clips,
    aggregation="constant" if sums else "token",
    aggregation_length=width / rows if sums else None,
  )
  return _loss(algorithm, settings)(case.replace("in_source", source))


def _replay(case: Case) -> str | None:
  algorithm = dataclasses.replace(
    ALGORITHMS["grpo"], loss=ALGORITHMS["rollout_replay"].loss
  )
  settings = _settings(algorithm, **_clips(case), **_aggregation(case))
  return _loss(algorithm, settings)(case)


def _split(case: Case) -> str | None:
  arguments = case.arguments
  group, agent = _dense(case["in_group"]), case["in_off_policy"] > 0
  values = on_policy_advantages(
    _signals(
      case["in_rewards"],
      group,
      sources=np.where(agent, Source.AGENT, Source.POLICY),
    ),
    ObjectiveConfig(
      advantage_std=arguments.get("use_std", True),
      advantage_eps=arguments.get("epsilon", 1e-6),
    ),
  )
  # One rollout of the policy is a group of one.
  own = np.bincount(group[~agent], minlength=int(group.max()) + 1)
  return _compare_rows(case, values, "out_advantages", own[group] == 1)


def _gspo(case: Case) -> str | None:
  algorithm = ALGORITHMS["gspo"]
  # Always without a dual clip, and a mean of means.
  clips = {**_clips(case), "dual_clip": None}
  return _loss(algorithm, _settings(algorithm, **clips))(case)


def _kl(case: Case) -> str | None:
  estimator = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}.get(
    case.arguments["kl_penalty"], case.arguments["kl_penalty"]
  )
  mask = case["in_mask"] > 0
  reference = jnp.asarray(case["in_reference_log_probs"])[mask]

  def estimates(log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    # verl bounds the estimate of k3.
    values = objectives.kl_estimate(
      log_probs[mask], reference, estimator=estimator, limit=10.0
    )
    return jnp.sum(values), values

  gradient, values = jax.grad(estimates, has_aux=True)(
    jnp.asarray(case["in_log_probs"])
  )
  tokens = np.zeros(mask.shape)
  tokens[mask] = values
  for actual, name in (
    (tokens, "out_token_kl"),
    (gradient, "out_grad_log_probs"),
  ):
    if not case.close(actual, name, mask):
      raise _Differs(name)
  return None


def _sft(case: Case) -> str | None:
  algorithm = ALGORITHMS["sft"]
  settings = _settings(algorithm)
  ones = np.ones(case["in_mask"].shape)
  return _loss(algorithm, settings)(case.replace("in_advantages", ones))


def _overlong(case: Case) -> str | None:
  arguments = case.arguments
  limit = arguments["max_resp_len"]
  penalty = objectives.overlong_penalty(
    jnp.asarray(case["in_response_length"], jnp.float64),
    limit=limit,
    share=arguments["overlong_buffer_len"] / limit,
  )
  reward = arguments["reward_before"] + arguments["penalty_factor"] * penalty
  if not case.close(reward, "out_reward"):
    raise _Differs("out_reward")
  return None


def _filter(case: Case) -> str | None:
  resample = ALGORITHMS["dapo"].plan.resample
  assert resample is not None
  group, metric = case["in_group"], case["in_metric"]
  kept = np.zeros(len(group), bool)
  for number in np.unique(group):
    rewards = metric[group == number]
    kept[group == number] = resample.keep(rewards, rewards == 1)
  if not np.array_equal(kept, case["out_kept"]):
    raise _Differs("out_kept")
  return None


def _forks(case: Case) -> str | None:
  if not golden_forks.same_forks(
    case.about["algorithm"], case.arguments, case.arrays
  ):
    raise _Differs("the rollouts that are forked")
  return None


def _entropies(case: Case) -> str | None:
  if not golden_forks.same_entropies(case.arguments, case.arrays):
    raise _Differs("out_entropy")
  return None


CHECKS: Mapping[tuple[str, str], Check] = {
  ("advantage", "compute_grpo_outcome_advantage"): _group_advantages,
  ("advantage", "compute_grpo_vectorized_outcome_advantage"): _group_advantages,
  ("advantage", "episode_norm_reward"): _group_advantages,
  ("advantage", "compute_rloo_outcome_advantage"): _rloo,
  ("advantage", "compute_rloo_vectorized_outcome_advantage"): _rloo,
  (
    "advantage",
    "compute_reinforce_plus_plus_outcome_advantage",
  ): _whitened("reinforce_pp"),
  (
    "advantage",
    "compute_reinforce_plus_plus_baseline_outcome_advantage",
  ): _whitened("reinforce_pp_baseline"),
  ("advantage", "compute_step_discounted_returns"): _step_returns,
  ("advantage", "compute_gigpo_outcome_advantage"): _gigpo,
  ("loss", "compute_policy_loss_vanilla"): _ppo,
  ("loss", "compute_policy_loss"): _ppo,
  ("loss", "compute_policy_loss_dual_clip"): _ppo,
  ("loss", "compute_policy_loss_gspo"): _gspo,
  ("loss", "compute_policy_loss_cispo"): _cispo,
  ("loss", "compute_gppo_loss"): _gppo,
  ("loss", "compute_gppo_loss_general_beta"): _gppo,
  ("advantage", "compute_advantage"): _tree,
  ("loss", "compute_policy_loss_entropy_balanced_clipping"): _aepo,
  ("advantage", "compute_grpo_outcome_advantage_split"): _split,
  ("loss", "compute_token_on_off_policy_loss"): _luffy,
  ("loss", "compute_policy_loss_temp"): _replay,
  ("loss", "kl_penalty"): _kl,
  ("loss", "compute_sft_pure_loss"): _sft,
}


def _check_of(case: Case) -> Check | None:
  """What compares a case, by what it is; None if that is not here yet."""
  about = case.about
  kind, function = about["kind"], about["function"].split(" ")[0]
  if kind == "reward":
    return _overlong if "max_resp_len" in case.arguments else None
  if kind == "rollout":
    if "in_top_log_probs" in case.arrays:
      return _entropies
    return _forks if "in_draws" in case.arrays else None
  if kind == "filter":
    return _filter if "in_metric" in case.arrays else None
  if kind == "loss" and about["algorithm"].startswith("Dr. GRPO"):
    return _dr_grpo
  if kind == "advantage" and about["algorithm"].startswith("Dr. GRPO"):
    return lambda case: _group_advantages(
      dataclasses.replace(
        case,
        about={
          **about,
          "arguments": {
            **case.arguments,
            "norm_adv_by_std_in_grpo": _first(
              case.arguments, "norm_adv_by_std_in_grpo", "use_std"
            )
            or False,
          },
        },
      )
    )
  mode = case.arguments.get("loss_agg_mode", "token-mean")
  if kind == "loss" and mode not in _AGGREGATIONS:
    return None
  # Further losses of these authors, under names of functions that are here.
  if about["algorithm"].startswith("ExGRPO"):
    return None
  if about["algorithm"].startswith("Tree-GRPO") and function.endswith("gspo"):
    return None
  return CHECKS.get((kind, function))


def compare(folder: pathlib.Path) -> list[str]:
  """A line for each case of a folder."""
  content = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
  lines = []
  for about in content["cases"]:
    with np.load(folder / about["file"]) as file:
      case = Case(about, dict(file))
    check = _check_of(case)
    try:
      if check is None:
        said = "not here yet"
      else:
        meant = check(case)
        said = "agrees" if meant is None else f"agrees, but for {meant}"
    except _NotHere:
      said = "not here yet"
    except _Differs as error:
      said = f"DIFFERS in {error}"
    lines.append(f"{about['name']}: {said}")
  return lines


def main(arguments: list[str]) -> int:
  if len(arguments) != 1:
    sys.stderr.write("usage: python -m tests.algorithms.golden <folder>\n")
    return 2
  jax.config.update("jax_enable_x64", True)
  lines = compare(pathlib.Path(arguments[0]))
  sys.stdout.write("\n".join(lines) + "\n")
  return int(any("DIFFERS" in line for line in lines))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
