import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import objectives

rapo_metrics = jax.jit(objectives.rapo_metrics, static_argnames="num_groups")
NAMES = {
  "clip_fraction_low",
  "clip_fraction_high",
  "approx_kl",
  "ratio_mean",
  "ratio_max",
  "retrieved_fraction",
  "advantage_std",
  "equal_reward_group_fraction",
}


def example():
  ratios = jnp.array([[0.5, 2.0, 1.0], [0.5, 2.0, 1.0], [7.0, 7.0, 7.0]])
  arrays = {
    "log_probs": jnp.log(ratios) - 1,
    "old_log_probs": -jnp.ones((3, 3)),
    "advantages": jnp.array([1.0, -2.0, 9.0]),
    "retrieved_fraction": jnp.array([0.0, 0.5, 0.9]),
    "rewards": jnp.array([1.0, 0.0, 0.3]),
    "group_ids": jnp.array([0, 0, 2]),
  }
  # The last token of row 0 and the whole of row 2 are not the policy's.
  where = jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
  return arrays, where


def test_by_hand():
  arrays, where = example()
  metrics = rapo_metrics(**arrays, where=where, num_groups=3)
  assert set(metrics) == NAMES
  expected = {
    # Five tokens. Row 0 (A > 0) stops at 2.0, row 1 (A < 0) at 0.5.
    "clip_fraction_low": 1 / 5,
    "clip_fraction_high": 1 / 5,
    # k3 of KL(old || new) is r - 1 - log r: 0.5, 2 and 1 give log 2 - 0.5,
    # 1 - log 2 and 0. Each of the first two comes twice: 2 * 0.5 / 5.
    "approx_kl": 1 / 5,
    "ratio_mean": (0.5 + 2 + 0.5 + 2 + 1) / 5,
    "ratio_max": 2,
    "retrieved_fraction": 0.25,  # Rows 0 and 1.
    "advantage_std": 1.5,  # Of 1 and -2.
    "equal_reward_group_fraction": 0.5,  # 0 differs, 1 is empty, 2 is one row.
  }
  for name, value in metrics.items():
    assert value.shape == (), name
    np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


def test_clipping_counts_the_shaped_ratio():
  def metrics(fraction):
    return rapo_metrics(
      jnp.full((1, 1), math.log(1.2)),
      jnp.zeros((1, 1)),
      jnp.ones(1),
      jnp.array([fraction]),
      jnp.ones(1),
      jnp.zeros(1, int),
      where=jnp.ones((1, 1), bool),
      num_groups=1,
      shaping_coef=0.2,
    )

  # 1.2 is inside of 1.28; (1 + 0.2 * 0.5) * 1.2 = 1.32 is not.
  assert metrics(0.0)["clip_fraction_high"] == 0
  assert metrics(0.5)["clip_fraction_high"] == 1
  assert metrics(0.5)["ratio_max"] == pytest.approx(1.2)


def test_advantages_by_token_are_measured_by_token():
  arrays, where = example()
  arrays["advantages"] = jnp.array([[1, 1, 99], [-1, -1, 0], [99, 99, 99]])
  metrics = rapo_metrics(**arrays, where=where, num_groups=3)
  # 1, 1, -1, -1, 0: mean 0, mean square 4 / 5.
  assert metrics["advantage_std"] == pytest.approx(math.sqrt(0.8))


def test_masked_slots_change_nothing():
  arrays, where = example()
  dirty = dict(arrays)
  for name in ("log_probs", "old_log_probs"):
    dirty[name] = jnp.where(where, arrays[name], jnp.nan)
  for name in ("advantages", "retrieved_fraction"):
    dirty[name] = arrays[name].at[2].set(jnp.nan)
  clean, dirty = (
    rapo_metrics(**a, where=where, num_groups=3) for a in (arrays, dirty)
  )
  for name in NAMES:
    np.testing.assert_array_equal(clean[name], dirty[name], err_msg=name)


def test_nothing_to_measure_is_zero():
  arrays, where = example()
  arrays["group_ids"] = jnp.full(3, -1)
  metrics = rapo_metrics(**arrays, where=where & False, num_groups=1)
  assert all(value == 0 for value in metrics.values())


def test_carries_no_gradient_and_compiles():
  arrays, where = example()

  @jax.jit
  @jax.grad
  def gradient(log_probs):
    metrics = rapo_metrics(
      **(arrays | {"log_probs": log_probs}), where=where, num_groups=3
    )
    return sum(metrics.values())

  np.testing.assert_array_equal(gradient(arrays["log_probs"]), np.zeros((3, 3)))


def test_wrong_inputs_are_named():
  arrays, where = example()
  with pytest.raises(ValueError, match=r"`group_ids` must have shape \(3,\)"):
    rapo_metrics(
      **(arrays | {"group_ids": jnp.zeros(2, int)}), where=where, num_groups=3
    )
  with pytest.raises(ValueError, match="`advantages` must have shape"):
    rapo_metrics(
      **(arrays | {"advantages": jnp.zeros(2)}), where=where, num_groups=3
    )
