"""Runs in an environment that has google-tunix: the objective inside it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.rl import common, function_registry
from tunix.rl.grpo import grpo_learner

from examples import tunix_rapo
from rapo_jax import objectives
from rapo_jax.integrations import tunix as rapo

ROWS, PROMPT, LENGTH = 4, 3, 6


def check_the_loss() -> None:
  """Beside `rapo_loss` on log-probs by hand; inserted tokens are no loss."""
  rng = np.random.default_rng(0)
  shape = qwen2.ModelConfig(
    num_layers=1,
    vocab_size=13,
    embed_dim=16,
    hidden_dim=32,
    num_heads=2,
    head_dim=8,
    num_kv_heads=1,
    rope_theta=10_000,
    norm_eps=1e-6,
  )
  model = qwen2.Qwen2(shape, rngs=nnx.Rngs(0))
  tokens = rng.integers(0, 10, (ROWS, PROMPT + LENGTH))
  response = np.ones((ROWS, LENGTH), bool)
  response[1, 4:] = False
  retrieved = np.zeros_like(response)
  retrieved[2, 1:3] = True
  example = types.SimpleNamespace(
    prompt_ids=jnp.asarray(tokens[:, :PROMPT]),
    completion_ids=jnp.asarray(tokens[:, PROMPT:]),
    completion_mask=jnp.asarray(response, jnp.int32),
    retrieved_mask=jnp.asarray(retrieved),
    advantages=jnp.asarray([1.0, -1.0, 0.5, -0.5]),
    old_per_token_logps=jnp.asarray(
      rng.uniform(-3, -2, response.shape), jnp.float32
    ),
  )
  rapo.register("ours", shaping_coef=0.5)
  loss = function_registry.get_policy_loss_fn("ours")
  settings = types.SimpleNamespace(temperature=1.0)
  total, metrics = loss(model, example, settings, pad_id=10, eos_id=12)

  log_probs = common.compute_per_token_logps(
    *nnx.split(model),
    prompt_tokens=example.prompt_ids,
    completion_tokens=example.completion_ids,
    pad_id=10,
    eos_id=12,
  )
  expected = objectives.rapo_loss(
    log_probs,
    example.old_per_token_logps,
    example.advantages,
    jnp.asarray([0, 0, 2 / 6, 0]),
    where=jnp.asarray(response & ~retrieved),
    shaping_coef=0.5,
  )
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  ratio = np.exp(log_probs - example.old_per_token_logps)
  outside = (ratio < 0.8) | (ratio > 1.28)
  np.testing.assert_allclose(
    metrics["pg_clipfrac"], outside[response & ~retrieved].mean(), rtol=1e-5
  )
  assert jax.tree.all(jax.tree.map(jnp.isfinite, metrics))


def check_the_advantages() -> None:
  rapo.register("ours")
  advantages = function_registry.get_advantage_estimator("ours")
  np.testing.assert_allclose(
    advantages(rewards=np.asarray([0, 1, 1, 1.0]), num_generations=2),
    [-(0.5**0.5), 0.5**0.5, 0, 0],
    rtol=1e-4,
  )


def check_taking_the_place_of_grpo() -> None:
  """As a trainer on tunix that names neither function needs it."""
  own = function_registry.get_policy_loss_fn("grpo")
  rapo.register("grpo")
  config = grpo_learner.GRPOConfig(num_generations=2)
  loss = function_registry.get_policy_loss_fn(config.policy_loss_fn)
  assert loss is not own
  assert "rapo_jax" in loss.__module__
  estimator = function_registry.get_advantage_estimator(
    config.advantage_estimator
  )
  assert "rapo_jax" in estimator.__module__


def check_the_learner() -> None:
  history = tunix_rapo.main()
  assert len(history) == 30
  assert np.mean(history[20:]) > np.mean(history[:10]) + 0.2, history


if __name__ == "__main__":
  check_the_loss()
  check_the_advantages()
  check_the_learner()
  check_taking_the_place_of_grpo()
