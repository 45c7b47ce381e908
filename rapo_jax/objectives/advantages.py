"""Advantages: relative to the group, and weighed by the retrieval's."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from rapo_jax.objectives import checks, masked

MIN_RETRIEVAL_FACTOR = 0.01
"""Least factor of Eq. 10 by default: small, so that it acts where a sign would
flip, or nearly."""


def group_advantages(
  rewards: chex.Array,
  group_ids: chex.Array,
  *,
  num_groups: int,
  ddof: int = 1,
  eps: chex.Numeric = 1e-6,
  std: bool = True,
) -> jax.Array:
  """Rewards relative to the other rollouts of the same query.

  `(r - mean) / (std + eps)` with mean and standard deviation over the group
  (Eq. 9); the same for outcome and for retrieval rewards. The paper leaves
  `ddof` and `eps` open; these are the authors' code's.

  Args:
    rewards: one reward a trajectory, `[B]`.
    group_ids: group of each trajectory, int `[B]`, in any order. A row belongs
      to no group if its id is outside of [0, `num_groups`), such as -1 for
      padding. It gets 0, whatever its reward.
    num_groups: number of groups; static.
    ddof: 1 for the unbiased variance, 0 for the biased one.
    eps: added to the standard deviation, in units of reward, >= 0.
    std: False leaves the division out: `r - mean` (Dr. GRPO: Liu et al.,
      2025).

  Returns:
    Advantages, `[B]`; exactly 0 for a group of one or of equal rewards.

  Raises:
    ValueError: on shapes that differ or a number out of its range.
  """
  rewards = checks.as_float(rewards)
  checks.check_rank("rewards", rewards, "B")
  group_ids = checks.as_ids("group_ids", group_ids, rewards.shape, "`rewards`")
  checks.check_count("num_groups", num_groups)
  checks.check_at_least("eps", eps, 0)
  if ddof not in (0, 1):
    raise ValueError(f"`ddof` must be 0 or 1, got {ddof!r}; the paper uses 1")
  where = (group_ids >= 0) & (group_ids < num_groups)
  rewards = masked.select(rewards, where)
  mean = masked.segment_mean(rewards, group_ids, where, num_groups)
  centred = rewards - masked.take_segment(mean, group_ids, where)
  equal = masked.segment_is_constant(rewards, group_ids, where, num_groups)
  squares = masked.segment_sum(
    jnp.square(centred), group_ids, where, num_groups
  )
  # Differences without a square, below 1e-23, are none where they are divided.
  equal = equal | (squares == 0) if std else equal
  live = where & (masked.take_segment(equal.astype(int), group_ids, where) == 0)
  if not std:
    return masked.select(centred, live)
  count = masked.segment_count(
    group_ids, where, num_groups, dtype=rewards.dtype
  )
  # The gradient of sqrt at 0 is inf, so groups of equal rewards are kept off.
  variance = masked.select(squares / jnp.maximum(count - ddof, 1), ~equal, 1.0)
  scale = masked.take_segment(jnp.sqrt(variance) + eps, group_ids, where)
  return masked.select(centred, live) / masked.select(scale, live, 1.0)


def reference_advantages(
  rewards: chex.Array,
  group_ids: chex.Array,
  reference: chex.Array,
  *,
  num_groups: int,
  ddof: int = 1,
  eps: chex.Numeric = 1e-6,
  std: bool = True,
) -> jax.Array:
  """Rewards relative to some of the group, such as the policy's own rollouts.

  `(r - mean) / (std + eps)` with mean and deviation over the group's rows in
  `reference` (LUFFY's variant beside a supervised loss: Yan et al., 2025). A
  deviation of 0 counts as 1. Then the success of another agent stands out
  among failures of the policy.

  Args:
    rewards: one reward a trajectory, `[B]`.
    group_ids: group of each trajectory, int `[B]`; a row whose id is outside
      of [0, `num_groups`) belongs to no group and gets 0.
    reference: rows that the others are compared with, bool `[B]`.
    num_groups: number of groups; static.
    ddof: 1 for the unbiased variance, 0 for the biased one.
    eps: added to the standard deviation, >= 0.
    std: False leaves the division out.

  Returns:
    Advantages, `[B]`; 0 in a group without any reference.

  Raises:
    ValueError: on shapes that differ or a number out of its range.
  """
  rewards = checks.as_float(rewards)
  checks.check_rank("rewards", rewards, "B")
  group_ids = checks.as_ids("group_ids", group_ids, rewards.shape, "`rewards`")
  reference = checks.as_mask("reference", reference, rewards.shape, "`rewards`")
  checks.check_count("num_groups", num_groups)
  checks.check_at_least("eps", eps, 0)
  if ddof not in (0, 1):
    raise ValueError(f"`ddof` must be 0 or 1, got {ddof!r}; verl's is 1")
  where = (group_ids >= 0) & (group_ids < num_groups)
  compared = where & reference
  rewards = masked.select(rewards, where)
  count = masked.segment_count(
    group_ids, compared, num_groups, dtype=rewards.dtype
  )
  known = where & (masked.take_segment(count, group_ids, where) > 0)
  mean = masked.segment_mean(rewards, group_ids, compared, num_groups)
  mean = masked.take_segment(mean, group_ids, where)
  equal = masked.segment_is_constant(rewards, group_ids, compared, num_groups)
  same = masked.take_segment(equal.astype(int), group_ids, where) > 0
  # Of equal rewards the mean may differ in its last bit.
  centred = masked.select(rewards - mean, known & ~(same & compared))
  if not std:
    return centred
  squares = masked.segment_sum(
    jnp.square(centred), group_ids, compared, num_groups
  )
  differ = ~equal & (squares > 0)
  variance = masked.select(squares / jnp.maximum(count - ddof, 1), differ, 1.0)
  scale = masked.take_segment(jnp.sqrt(variance) + eps, group_ids, where)
  return centred / masked.select(scale, known, 1.0)


def leave_one_out_advantages(
  rewards: chex.Array, group_ids: chex.Array, *, num_groups: int
) -> jax.Array:
  """Rewards less the mean of the group's other rollouts (RLOO).

  `r_i - mean_{j != i} r_j`, which is `(r_i - mean) n / (n - 1)` (Ahmadian et
  al., 2024).

  Args:
    rewards: one reward a trajectory, `[B]`.
    group_ids: group of each trajectory, int `[B]`; a row whose id is outside
      of [0, `num_groups`) belongs to no group and gets 0.
    num_groups: number of groups; static.

  Returns:
    Advantages, `[B]`; exactly 0 for a group of one or of equal rewards.

  Raises:
    ValueError: on shapes that differ or a number out of its range.
  """
  centred = group_advantages(
    rewards, group_ids, num_groups=num_groups, std=False
  )
  group_ids = jnp.asarray(group_ids)
  where = jnp.ones(centred.shape, bool)
  count = masked.segment_count(
    group_ids, where, num_groups, dtype=centred.dtype
  )
  count = masked.take_segment(count, group_ids, where)
  return centred * count / jnp.maximum(count - 1, 1)


def whiten(
  values: chex.Array,
  *,
  where: chex.Array,
  ddof: int = 1,
  eps: chex.Numeric = 1e-8,
) -> jax.Array:
  """Values with mean 0 and variance 1 over all positions of the mask.

  `(x - mean) / sqrt(variance + eps)` (REINFORCE++: Hu et al., 2025). Over
  tokens, a long trajectory weighs more in the mean than a short one.

  Args:
    values: of any shape.
    where: positions that count, bool, same shape.
    ddof: 1 for the unbiased variance, 0 for the biased one.
    eps: added to the variance, >= 0.

  Returns:
    Whitened values, same shape; 0 where masked, and everywhere if all values
    are equal.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  values = checks.as_float(values)
  where = checks.as_mask("where", where, values.shape, "`values`")
  checks.check_at_least("eps", eps, 0)
  if ddof not in (0, 1):
    raise ValueError(f"`ddof` must be 0 or 1, got {ddof!r}; verl's is 1")
  first = -masked.masked_max(-values, where)
  differ = jnp.any(where & (values != first))
  centred = masked.select(values - masked.masked_mean(values, where), where)
  squares = masked.masked_sum(jnp.square(centred), where)
  count = masked.masked_count(where, dtype=values.dtype)
  # The gradient of sqrt at 0 is inf, so equal values are kept off. So are those
  # whose differences have no square.
  differ &= squares > 0
  variance = masked.select(squares / jnp.maximum(count - ddof, 1), differ, 1.0)
  return masked.select(centred, differ) / jnp.sqrt(variance + eps)


def step_returns(
  step_rewards: chex.Array,
  *,
  where: chex.Array,
  discount: chex.Numeric = 1.0,
) -> jax.Array:
  """Discounted sum of the rewards from each step on.

  `R_t = r_t + discount * R_u`, with `u` the next step in `where`: a step that
  is left out takes no discount.

  Args:
    step_rewards: reward of each step in order, `[B, S]`.
    where: steps that count, bool `[B, S]`.
    discount: in [0, 1].

  Returns:
    Returns, `[B, S]`; 0 where masked.

  Raises:
    ValueError: if the shapes differ or the discount is negative.
  """
  rewards = checks.as_float(step_rewards)
  checks.check_rank("step_rewards", rewards, "BS")
  where = checks.as_mask("where", where, rewards.shape, "`step_rewards`")
  checks.check_at_least("discount", discount, 0)

  def back(
    later: jax.Array, step: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    reward, counts = step
    later = jnp.where(counts, reward + discount * later, later)
    return later, masked.select(later, counts)

  start = jnp.zeros(rewards.shape[0], rewards.dtype)
  _, returns = jax.lax.scan(
    back, start, (masked.select(rewards, where).T, where.T), reverse=True
  )
  return returns.T


def balanced_advantages(
  advantages: chex.Array,
  entropies: chex.Array,
  *,
  where: chex.Array,
  weight: chex.Numeric = 0.2,
  min_factor: chex.Numeric | None = None,
) -> jax.Array:
  """Advantages, raised where the policy was unsure (AEPO: Dong et al., 2025).

  `A (1 + w (H - mean) / std)` with mean and deviation (ddof 1) of the token
  entropies over the mask. A token that is far surer than the others has a
  negative factor: a right answer is trained against there. A bound avoids it.

  Args:
    advantages: one for each trajectory, `[B]`, or each token, `[B, T]`.
    entropies: of the distribution of each token, nats, `[B, T]`.
    where: tokens that count, bool `[B, T]`.
    weight: `w`, >= 0; 0 gives back the advantages.
    min_factor: least factor, >= 0; None for the equation as it is written.

  Returns:
    Advantages of tokens, `[B, T]`; 0 where masked. Equal entropies give back
    the advantages.

  Raises:
    ValueError: if the shapes differ or a number is negative.
  """
  entropies = checks.as_float(entropies)
  checks.check_rank("entropies", entropies, "BT")
  where = checks.as_mask("where", where, entropies.shape, "`entropies`")
  checks.check_at_least("weight", weight, 0)
  if min_factor is not None:
    checks.check_at_least("min_factor", min_factor, 0)
  advantages = checks.as_float(advantages)
  if advantages.ndim == 1:
    advantages = advantages[:, None]
    checks.check_shape(
      "advantages", advantages, (len(entropies), 1), "`entropies[:, 0]`"
    )
  else:
    checks.check_shape("advantages", advantages, entropies.shape, "`entropies`")
  factor = 1 + weight * whiten(entropies, where=where, eps=0.0)
  if min_factor is not None:
    factor = jnp.maximum(factor, min_factor)
  return masked.select(advantages, where) * factor


def shared_means(values: chex.Array, node_ids: chex.Array) -> jax.Array:
  """Mean of the trajectories that share a step, for each step.

  The hard advantages of ARPO (Dong et al., 2025): what was written before a
  fork gets the mean of all that came of it.

  Args:
    values: one for each trajectory, `[B]`.
    node_ids: id of each step, int `[B, S]`, equal for the steps that
      trajectories share; in [0, B * S), or -1 for one that does not count.

  Returns:
    Means, `[B, S]`; 0 where the id is -1.

  Raises:
    ValueError: if the number of trajectories differs.
  """
  values = checks.as_float(values)
  checks.check_rank("values", values, "B")
  node_ids = jnp.asarray(node_ids)
  checks.check_rank("node_ids", node_ids, "BS")
  node_ids = checks.as_ids(
    "node_ids", node_ids, (len(values), node_ids.shape[1]), "`values`"
  )
  by_step = jnp.broadcast_to(values[:, None], node_ids.shape).ravel()
  ids = node_ids.ravel()
  where = ids >= 0
  means = masked.segment_mean(by_step, ids, where, ids.size)
  return masked.take_segment(means, ids, where).reshape(node_ids.shape)


def overlong_penalty(
  lengths: chex.Array, *, limit: chex.Numeric, share: chex.Numeric
) -> jax.Array:
  """What a response costs for its length (DAPO: Yu et al., 2025, Eq. 13).

  0 up to `(1 - share) * limit` tokens; from there it falls on a line to -1 at
  the limit. Beyond it the line goes on below -1, as in the authors' code. The
  paper stops at -1.

  Args:
    lengths: tokens of each response, any shape.
    limit: tokens at which the penalty is -1, above 0.
    share: last share of the limit, over which it grows, in (0, 1].

  Returns:
    Penalties, <= 0, same shape, to be added to the rewards.

  Raises:
    ValueError: the limit or the share is out of its range.
  """
  lengths = checks.as_float(lengths)
  checks.check_above("limit", limit, 0)
  checks.check_above("share", share, 0)
  checks.check_at_most("share", share, 1)
  over = (lengths - (1 - share) * limit) / (share * limit)
  return -jnp.maximum(over, 0)


def rapo_advantages(
  outcome_advantages: chex.Array,
  retrieval_advantages: chex.Array,
  *,
  retrieval_coef: chex.Numeric = 0.2,
  min_factor: chex.Numeric | None = MIN_RETRIEVAL_FACTOR,
) -> jax.Array:
  """Outcome advantages, scaled by how well the trajectory retrieved.

  `A = (1 + a * A_ret) * A_acc` (Eq. 10). The paper does not say what happens
  where `a * A_ret <= -1`: there the factor flips the sign, and a right answer
  is trained against. `A_ret` of a group of n is at least `-(n - 1) / sqrt(n)`
  (ddof 1). So at the paper's coefficient 0.2 the factor is at least 0.25 with
  16 rollouts. It can be negative from 27 rollouts on. We bound the factor from
  below. Where the bound does not act, the result is Eq. 10 bit for bit.
  Retrieval advantages of 0 give back the outcome advantages bit for bit.

  Args:
    outcome_advantages: `group_advantages` of the outcome rewards, `[B]`.
    retrieval_advantages: `group_advantages` of the retrieval rewards, `[B]`.
    retrieval_coef: `a`, >= 0; 0 leaves the retrieval out.
    min_factor: least value of `1 + a * A_ret`, >= 0; None for Eq. 10 as it is
      written, whatever becomes of the sign.

  Returns:
    Advantages, `[B]`.

  Raises:
    ValueError: if the shapes differ or a number is out of its range.
  """
  outcome = checks.as_float(outcome_advantages)
  retrieval = checks.as_float(retrieval_advantages)
  checks.check_rank("outcome_advantages", outcome, "B")
  checks.check_shape(
    "retrieval_advantages", retrieval, outcome.shape, "`outcome_advantages`"
  )
  factor = 1 + retrieval_coef * retrieval
  if min_factor is not None:
    checks.check_at_least("min_factor", min_factor, 0)
    factor = jnp.maximum(factor, jnp.asarray(min_factor, factor.dtype))
  return factor * outcome
