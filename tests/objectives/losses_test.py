import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rapo_jax import objectives

OPTIONS = ("dual_clip", "kl_coef", "aggregation")
token_loss = jax.jit(
  objectives.rapo_token_loss, static_argnames=("dual_clip", "kl_coef")
)
rapo_loss = jax.jit(objectives.rapo_loss, static_argnames=OPTIONS)


def minibatch(num_rows=6, num_tokens=40, seed=0):
  """Rows of different lengths, one of them without a single policy token."""
  rng = np.random.default_rng(seed)
  shape = (num_rows, num_tokens)
  old = -rng.exponential(1.0, shape).astype(np.float32)
  lengths = rng.integers(1, num_tokens, num_rows)
  lengths[1] = 0
  where = (np.arange(num_tokens) < lengths[:, None]) & (rng.random(shape) < 0.8)
  arrays = {
    "log_probs": old + rng.normal(0, 0.4, shape).astype(np.float32),
    "old_log_probs": old,
    "advantages": rng.normal(0, 1.5, num_rows).astype(np.float32),
    "retrieved_fraction": rng.random(num_rows).astype(np.float32),
  }
  reference = old + rng.normal(0, 0.3, shape).astype(np.float32)
  return arrays, where, reference


def oracle(
  arrays,
  where,
  reference=None,
  *,
  low=0.2,
  high=0.28,
  dual_clip=None,
  shaping_coef=0.05,
  kl_coef=0.0,
):
  """Eq. 8 and 11, one token at a time."""
  loss = np.zeros(where.shape)
  for i, t in np.argwhere(where):
    advantage = float(arrays["advantages"][i])
    log_prob = float(arrays["log_probs"][i, t])
    ratio = math.exp(log_prob - float(arrays["old_log_probs"][i, t]))
    ratio *= 1 + shaping_coef * float(arrays["retrieved_fraction"][i])
    clipped = min(max(ratio, 1 - low), 1 + high)
    loss[i, t] = -min(ratio * advantage, clipped * advantage)
    if dual_clip is not None and advantage < 0:
      loss[i, t] = min(loss[i, t], -dual_clip * advantage)
    if reference is not None:
      d = float(reference[i, t]) - log_prob
      loss[i, t] += kl_coef * (math.exp(d) - 1 - d)
  return loss


def one_token(ratio, advantage, **kwargs):
  """Loss of one token and its gradient with respect to the log-probability."""

  def loss(log_probs):
    return token_loss(
      log_probs,
      jnp.zeros((1, 1)),
      jnp.array([advantage]),
      jnp.array([kwargs.pop("fraction", 0.0)]),
      where=jnp.ones((1, 1), bool),
      **kwargs,
    )[0, 0]

  value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1), math.log(ratio)))
  return float(value), float(gradient[0, 0])


def test_ratio_by_hand():
  new, old = (
    jnp.log(jnp.array([[0.5, 0.2, 0.3]])),
    jnp.log(0.25) * jnp.ones((1, 3)),
  )
  where = jnp.array([[True, True, False]])
  np.testing.assert_allclose(
    objectives.importance_ratio(new, old), [[2, 0.8, 1.2]], rtol=1e-6
  )
  np.testing.assert_allclose(
    objectives.importance_ratio(new, old, where=where), [[2, 0.8, 0]], rtol=1e-6
  )


def test_shaping_by_hand():
  # Row 0: 1 + 0.05 * 0.5 = 1.025; row 1 retrieved nothing.
  np.testing.assert_allclose(
    objectives.importance_shaping(
      jnp.array([[1.0, 2.0], [1.0, 3.0]]), jnp.array([0.5, 0.0])
    ),
    [[1.025, 2.05], [1, 3]],
    rtol=1e-6,
  )


@pytest.mark.parametrize("shaping_coef", [0.05, 1e6])
def test_shaping_without_retrieval_keeps_every_bit(shaping_coef):
  ratio = np.random.default_rng(0).lognormal(size=(8, 50)).astype(np.float32)
  for shape in (
    objectives.importance_shaping,
    jax.jit(objectives.importance_shaping),
  ):
    np.testing.assert_array_equal(
      shape(ratio, np.zeros(8), shaping_coef=shaping_coef), ratio
    )
    np.testing.assert_array_equal(
      shape(ratio, np.ones(8), shaping_coef=0.0), ratio
    )


@pytest.mark.parametrize(
  ("estimator", "expected"),
  [
    # The policy gives 0.5 and 0.25, the reference 0.25 and 0.25: d = -log 2, 0.
    ("k1", [math.log(2), 0]),
    ("k2", [math.log(2) ** 2 / 2, 0]),
    ("k3", [0.5 - 1 + math.log(2), 0]),
  ],
)
def test_kl_by_hand(estimator, expected):
  np.testing.assert_allclose(
    objectives.kl_estimate(
      jnp.log(jnp.array([0.5, 0.25])),
      jnp.log(jnp.array([0.25, 0.25])),
      estimator=estimator,
    ),
    expected,
    rtol=1e-6,
  )


def test_a_kl_above_its_limit_counts_as_it():
  def estimate(d):
    return objectives.kl_estimate(jnp.float32(0), d, limit=1.0)

  # exp(1) - 2 = 0.718 is below the limit, exp(2) - 3 = 4.39 above it.
  values, slopes = jax.vmap(jax.value_and_grad(estimate))(jnp.array([1.0, 2]))
  np.testing.assert_allclose(values, [math.e - 2, 1.0], rtol=1e-6)
  np.testing.assert_allclose(slopes, [math.e - 1, 0.0], rtol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimates_are_unbiased(estimator):
  p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
  estimates = objectives.kl_estimate(np.log(p), np.log(q), estimator=estimator)
  np.testing.assert_allclose(
    np.sum(p * estimates), np.sum(p * np.log(p / q)), rtol=1e-5
  )


def test_k3_keeps_small_differences():
  # d^2 / 2 to first order. exp(d) - 1 - d in float32 gives 1.3e-8 and worse.
  np.testing.assert_allclose(
    objectives.kl_estimate(jnp.float32(0), jnp.float32(1e-3)), 5e-7, rtol=1e-3
  )


# The four cases: which clip holds, and where the gradient stops.
@pytest.mark.parametrize(
  ("ratio", "advantage", "loss", "gradient"),
  [
    # Raised beyond 1.28 and wanted: held at -1.28 * 2; no further push.
    (1.5, 2.0, -2.56, 0.0),
    # Raised and unwanted: the full -1.5 * -2, and it is pushed back.
    (1.5, -2.0, 3.0, 3.0),
    # Lowered below 0.8 and wanted: the full -0.5 * 2, and it is pulled up.
    (0.5, 2.0, -1.0, -1.0),
    # Lowered below 0.8 and unwanted: held at -0.8 * -2; no further push.
    (0.5, -2.0, 1.6, 0.0),
    # Inside of the clip, d(-r A) = -r A.
    (1.0, 2.0, -2.0, -2.0),
    (1.2, -1.0, 1.2, 1.2),
  ],
)
def test_clipping_by_hand(ratio, advantage, loss, gradient):
  np.testing.assert_allclose(
    one_token(ratio, advantage), (loss, gradient), rtol=1e-5, atol=1e-7
  )


@pytest.mark.parametrize(
  ("ratio", "advantage", "loss", "gradient"),
  [
    (2.0, -1.0, 2.0, 2.0),  # Below the bound of 3.
    (5.0, -1.0, 3.0, 0.0),  # Would be 5; held at 3 * 1.
    (0.5, -1.0, 0.8, 0.0),  # The lower clip, not the bound.
    (5.0, 1.0, -1.28, 0.0),  # Positive advantages know no dual clip.
  ],
)
def test_dual_clip_by_hand(ratio, advantage, loss, gradient):
  np.testing.assert_allclose(
    one_token(ratio, advantage, dual_clip=3.0), (loss, gradient), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("low", "high", "ratio", "advantage"),
  [(0, 0, 1.0, 1.0), (0, 0.28, 1.0, -1.0), (0.5, 0.5, 1.5, 1.0)],
)
def test_a_ratio_at_a_bound_has_its_whole_gradient(low, high, ratio, advantage):
  gradient = jax.grad(
    lambda r: objectives.clipped_loss(
      r, advantage, clip_epsilon_low=low, clip_epsilon_high=high
    )
  )(ratio)
  assert gradient == -advantage


def test_the_shaped_ratio_is_what_is_clipped():
  # 1.25 * 1.05 = 1.3125 is beyond 1.28. Clipping first would give 1.3125.
  np.testing.assert_allclose(
    one_token(1.25, 1.0, fraction=1.0), (-1.28, 0), rtol=1e-5
  )
  # Inside, the gradient is scaled too: 1.1 * 1.05.
  np.testing.assert_allclose(
    one_token(1.1, 1.0, fraction=1.0), (-1.155, -1.155), rtol=1e-5
  )


def test_kl_by_hand_in_the_loss():
  # Ratio 1, A = 1: -1. KL to a reference of half the probability: k3 of
  # d = -log 2 is log 2 - 0.5; its derivative 1 - exp(d) = 0.5.
  value, gradient = one_token(
    1.0, 1.0, kl_coef=0.1, reference_log_probs=jnp.full((1, 1), math.log(0.5))
  )
  assert value == pytest.approx(-1 + 0.1 * (math.log(2) - 0.5), rel=1e-5)
  assert gradient == pytest.approx(-1 + 0.1 * 0.5, rel=1e-5)


@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_token_loss_agrees_with_the_oracle(dual_clip):
  arrays, where, reference = minibatch()
  loss = token_loss(
    **arrays,
    where=where,
    dual_clip=dual_clip,
    shaping_coef=0.3,
    kl_coef=0.1,
    reference_log_probs=reference,
  )
  expected = oracle(
    arrays,
    where,
    reference,
    dual_clip=dual_clip,
    shaping_coef=0.3,
    kl_coef=0.1,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


def test_aggregations_by_hand():
  # Ratio 1: each token's loss is -A. Rows of 1, 3 and 0 tokens, A = 1, 2, 9.
  where = jnp.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
  zeros = jnp.zeros((3, 3))
  arguments = (zeros, zeros, jnp.array([1.0, 2.0, 9.0]), jnp.zeros(3))
  sequence = rapo_loss(*arguments, where=where)
  token = rapo_loss(*arguments, where=where, aggregation="token")
  # (1 + 2 + 0) / 3, the empty row in the denominator; (1 + 2 * 3) / 4.
  np.testing.assert_allclose([sequence, token], [-1, -7 / 4], rtol=1e-6)
  np.testing.assert_allclose(
    objectives.loss_weights(where),
    [[1 / 3, 0, 0], [1 / 9, 1 / 9, 1 / 9], [0, 0, 0]],
  )
  np.testing.assert_allclose(
    objectives.loss_weights(where, aggregation="token"), where / 4
  )


def test_a_constant_divides_every_row_alike():
  # Rows of 1, 3 and 0 tokens over a constant of 10 tokens, mean of the rows.
  where = jnp.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
  weights = objectives.loss_weights(where, aggregation="constant", constant=10)
  np.testing.assert_allclose(weights, where / 30, rtol=1e-6)


def test_a_ratio_of_ones_own_is_clipped():
  ratios, advantages = jnp.array([1.5, 0.5, 5.0]), jnp.array([2.0, -2.0, -1.0])
  # Held at 1.28; held at 0.8; nothing holds it but the dual clip.
  np.testing.assert_allclose(
    objectives.clipped_loss(ratios, advantages), [-2.56, 1.6, 5.0], rtol=1e-6
  )
  np.testing.assert_allclose(
    objectives.clipped_loss(ratios, advantages, dual_clip=3.0),
    [-2.56, 1.6, 3.0],
    rtol=1e-6,
  )
  with pytest.raises(ValueError, match="dual_clip"):
    objectives.clipped_loss(ratios, advantages, dual_clip=0.5)


def test_advantages_by_token_equal_those_by_trajectory():
  arrays, where, _ = minibatch()
  by_token = arrays | {
    "advantages": np.repeat(arrays["advantages"][:, None], 40, axis=1)
  }
  np.testing.assert_array_equal(
    rapo_loss(**arrays, where=where), rapo_loss(**by_token, where=where)
  )


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("cuts", [(1, 5), (2, 2, 2)])
def test_loss_weights_make_any_split_exact(aggregation, cuts):
  arrays, where, _ = minibatch()

  def whole(log_probs):
    return rapo_loss(
      **(arrays | {"log_probs": log_probs}),
      where=where,
      aggregation=aggregation,
    )

  weights = np.asarray(objectives.loss_weights(where, aggregation=aggregation))

  @jax.jit
  @jax.value_and_grad
  def part(log_probs, rest, where, weights):
    losses = token_loss(log_probs, **rest, where=where)
    return jnp.sum(weights * losses)

  expected, expected_gradient = jax.jit(jax.value_and_grad(whole))(
    arrays["log_probs"]
  )
  total, gradients, start = 0.0, [], 0
  for size in cuts:
    rows = slice(start, start + size)
    rest = {name: array[rows] for name, array in arrays.items()}
    loss, gradient = part(
      rest.pop("log_probs"), rest, where[rows], weights[rows]
    )
    total, start = total + loss, start + size
    gradients.append(gradient)
  # A mean of micro-batch means would be off by a tenth and more here.
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  np.testing.assert_allclose(
    np.concatenate(gradients), expected_gradient, rtol=1e-5, atol=1e-9
  )


def grpo_loss(log_probs, old_log_probs, rewards, where):
  """GRPO with asymmetric clipping, written without the library.

  Rows of `rewards` are the groups: (r - mean) / (std + 1e-6), ddof 1.
  """
  mean = jnp.sum(rewards, axis=1, keepdims=True) / rewards.shape[1]
  squares = jnp.sum(jnp.square(rewards - mean), axis=1, keepdims=True)
  std = jnp.sqrt(squares / (rewards.shape[1] - 1))
  advantages = ((rewards - mean) / (std + 1e-6)).reshape(-1, 1)
  ratio = jnp.exp(log_probs - old_log_probs)
  surrogate = jnp.minimum(
    ratio * advantages, jnp.clip(ratio, 0.8, 1.28) * advantages
  )
  tokens = jnp.sum(jnp.where(where, surrogate, 0.0), axis=1)
  return -jnp.mean(tokens / jnp.maximum(jnp.sum(where, axis=1), 1))


@pytest.mark.parametrize(
  ("shaping_coef", "retrieval_coef", "fraction"),
  [
    (0.0, 0.2, 0.3),  # No shaping: the fraction is not read.
    (0.05, 0.2, 0.0),  # Nothing retrieved: the knobs do not matter.
    (7.0, 100.0, 0.0),
  ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_without_retrieval_it_is_grpo_bit_for_bit(
  shaping_coef, retrieval_coef, fraction, compiled
):
  arrays, where, _ = minibatch(num_rows=8, seed=3)
  old, log_probs = arrays["old_log_probs"], arrays["log_probs"]
  rewards = np.random.default_rng(1).normal(size=8).astype(np.float32)
  group_ids = np.repeat(np.arange(2), 4)

  def rapo(log_probs):
    outcome, retrieval = (
      objectives.group_advantages(values, group_ids, num_groups=2)
      for values in (rewards, np.zeros(8, np.float32))
    )
    advantages = objectives.rapo_advantages(
      outcome, retrieval, retrieval_coef=retrieval_coef
    )
    return objectives.rapo_loss(
      log_probs,
      old,
      advantages,
      np.full(8, fraction, np.float32),
      where=where,
      shaping_coef=shaping_coef,
    )

  def grpo(log_probs):
    return grpo_loss(log_probs, old, rewards.reshape(2, 4), where)

  wrap = jax.jit if compiled else lambda function: function
  value, gradient = wrap(jax.value_and_grad(rapo))(log_probs)
  expected, expected_gradient = wrap(jax.value_and_grad(grpo))(log_probs)
  assert value != 0
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masked_slots_change_neither_value_nor_gradient(bad):
  arrays, where, reference = minibatch()
  by_token = np.repeat(arrays["advantages"][:, None], 40, axis=1)
  arrays["advantages"] = by_token
  assert not where[1].any()

  def loss(arrays, reference):
    return rapo_loss(
      **arrays,
      where=where,
      dual_clip=3.0,
      kl_coef=0.1,
      reference_log_probs=reference,
    )

  dirty = {
    name: np.where(where, array, bad).astype(np.float32)
    for name, array in arrays.items()
    if array.ndim == 2
  }
  dirty["retrieved_fraction"] = arrays["retrieved_fraction"].copy()
  dirty["retrieved_fraction"][1] = bad
  dirty_reference = np.where(where, reference, bad).astype(np.float32)
  update = jax.jit(jax.value_and_grad(loss))
  value, gradients = update(arrays, reference)
  result, dirty_gradients = update(dirty, dirty_reference)
  np.testing.assert_array_equal(result, value)
  for name, gradient in gradients.items():
    np.testing.assert_array_equal(dirty_gradients[name], gradient)
  np.testing.assert_array_equal(gradients["log_probs"][~where], 0)


def test_a_masked_row_s_advantage_is_not_read():
  arrays, where, _ = minibatch()
  expected = rapo_loss(**arrays, where=where)
  arrays["advantages"][1] = np.nan
  np.testing.assert_array_equal(rapo_loss(**arrays, where=where), expected)


def test_only_the_log_probs_carry_gradient():
  arrays, where, reference = minibatch()

  def loss(arrays, reference):
    return rapo_loss(
      **arrays, where=where, kl_coef=0.1, reference_log_probs=reference
    )

  gradients, of_reference = jax.jit(jax.grad(loss, argnums=(0, 1)))(
    arrays, reference
  )
  assert np.any(gradients.pop("log_probs") != 0)
  for gradient in (*gradients.values(), of_reference):
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("log_prob", [0.0, -1.0, -1e3, -3e38])
@pytest.mark.parametrize("old_log_prob", [0.0, -1e3, -3e38])
@pytest.mark.parametrize("advantage", [0.0, 1.0, -1.0])
def test_finite_inputs_never_give_nan(log_prob, old_log_prob, advantage):
  def loss(log_probs):
    return rapo_loss(
      log_probs,
      jnp.full((1, 1), old_log_prob),
      jnp.array([advantage]),
      jnp.ones(1),
      where=jnp.ones((1, 1), bool),
      kl_coef=0.1,
      reference_log_probs=jnp.zeros((1, 1)),
    )

  value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1), log_prob))
  assert np.isfinite(value)
  assert np.isfinite(gradient[0, 0])


def test_an_empty_mask_gives_zero():
  arrays, where, _ = minibatch()
  for aggregation in ("sequence", "token"):
    value, gradient = jax.value_and_grad(
      lambda x, aggregation=aggregation: rapo_loss(
        **(arrays | {"log_probs": x}),
        where=where & False,
        aggregation=aggregation,
      )
    )(arrays["log_probs"])
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_no_rows_give_zero(aggregation):
  none, where = np.zeros((0, 3)), np.zeros((0, 3), bool)
  constant = 3.0 if aggregation == "constant" else None
  loss = objectives.rapo_loss(
    none,
    none,
    np.zeros(0),
    np.zeros(0),
    where=where,
    aggregation=aggregation,
    constant=constant,
  )
  assert loss == 0


def test_half_precision_is_summed_in_float32():
  shape = (1, 4096)
  zeros = jnp.zeros(shape, jnp.bfloat16)
  loss = rapo_loss(
    zeros,
    zeros,
    jnp.ones(1, jnp.bfloat16),
    jnp.zeros(1, jnp.bfloat16),
    where=jnp.ones(shape, bool),
    aggregation="token",
  )
  assert loss.dtype == jnp.float32
  assert loss == -1  # A bfloat16 sum of ones stops at 256: -1 / 16.


def test_double_precision_stays():
  with jax.enable_x64(True):
    arrays, where, _ = minibatch()
    arrays = {name: a.astype(np.float64) for name, a in arrays.items()}
    value = rapo_loss(**arrays, where=where)
    weights = objectives.loss_weights(where)
    tokens = oracle(arrays, where)
    assert value.dtype == weights.dtype == np.float64
    np.testing.assert_allclose(value, np.sum(weights * tokens), rtol=1e-13)


def test_maps_over_further_axes():
  batches = [minibatch(seed=seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *a: np.stack(a), *[b[0] for b in batches])
  where = np.stack([b[1] for b in batches])
  losses = jax.vmap(lambda a, w: rapo_loss(**a, where=w))(stacked, where)
  np.testing.assert_allclose(
    losses, [rapo_loss(**a, where=w) for a, w, _ in batches], rtol=1e-5
  )


def test_coefficients_can_be_traced():
  arrays, where, _ = minibatch()
  traced = jax.jit(
    lambda coef: objectives.rapo_loss(
      **arrays, where=where, shaping_coef=coef, clip_epsilon_high=coef
    )
  )
  np.testing.assert_allclose(
    traced(0.3),
    rapo_loss(**arrays, where=where, shaping_coef=0.3, clip_epsilon_high=0.3),
    rtol=1e-6,
  )


def test_drops_into_optax():
  """The example of the package's docstring, on a policy of three words."""
  tokens = jnp.array([[0, 1, 2, 1], [2, 2, 1, 0]])
  params = jnp.zeros((4, 3))

  def policy_log_probs(params, tokens):
    log_probs = jax.nn.log_softmax(params)
    return jnp.take_along_axis(log_probs, tokens.T, axis=1).T

  batch = {
    "tokens": tokens,
    "old_log_probs": policy_log_probs(params, tokens),
    "advantages": jnp.array([1.0, -1.0]),
    "retrieved_fraction": jnp.array([0.25, 0.0]),
    "policy_mask": jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool),
  }

  def loss_fn(params, batch):
    log_probs = policy_log_probs(params, batch["tokens"])
    return objectives.rapo_loss(
      log_probs,
      batch["old_log_probs"],
      batch["advantages"],
      batch["retrieved_fraction"],
      where=batch["policy_mask"],
    )

  optimizer = optax.adam(0.02)

  @jax.jit
  def update(params, opt_state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  opt_state, losses = optimizer.init(params), []
  for _ in range(5):
    params, opt_state, loss = update(params, opt_state, batch)
    losses.append(float(loss))
  assert all(b < a for a, b in itertools.pairwise(losses)), losses
  # The good trajectory became more likely and the bad one less.
  good, bad = np.sum(policy_log_probs(params, tokens), axis=1)
  assert good > 4 * math.log(1 / 3) > bad


def test_wrong_inputs_are_named():
  arrays, where, _ = minibatch()

  def fails(match, **changes):
    with pytest.raises(ValueError, match=match):
      jax.eval_shape(
        lambda: objectives.rapo_loss(**({**arrays, "where": where} | changes))
      )

  fails(r"`log_probs` must have shape \[B, T\]", log_probs=np.zeros(6))
  fails("`old_log_probs` must have shape", old_log_probs=np.zeros((6, 39)))
  fails("`advantages` must have shape", advantages=np.zeros((6, 1)))
  fails("`advantages` must have shape", advantages=np.zeros(40))
  fails("`retrieved_fraction` must have shape", retrieved_fraction=np.ones(1))
  fails("`where` must be boolean, got float32", where=where.astype("float32"))
  fails("`where` must have shape", where=where[:, 1:])
  fails("`kl_coef` = 0.1 needs `reference_log_probs`", kl_coef=0.1)
  fails(
    "`reference_log_probs` must have shape", reference_log_probs=where[0] * 1.0
  )
  fails("`dual_clip` must be at least 1, got 0.5", dual_clip=0.5)
  fails("`clip_epsilon_low` must be at most 1, got 1.5", clip_epsilon_low=1.5)
  fails("`clip_epsilon_high` must be at least 0", clip_epsilon_high=-0.1)
  fails("`aggregation` must be 'sequence'", aggregation="mean")
  with pytest.raises(ValueError, match="`estimator` must be"):
    objectives.kl_estimate(1.0, 1.0, estimator="k4")
  with pytest.raises(ValueError, match=r"must have shape \[B, T\]"):
    objectives.loss_weights(where[0])
