"""RAPO's loss and advantages in google-tunix.

tunix finds both by name:

    from rapo_jax.integrations import tunix as rapo

    rapo.register()
    GRPOConfig(advantage_estimator="rapo", policy_loss_fn="rapo", beta=0.0, …)

`examples/tunix_rapo.py` is a whole program. tunix itself retrieves nothing,
and then this is GRPO. A rollout worker that inserts steps hands them over as
`retrieved_mask`, bool `[B, L]`, of its `TrainExample`. These tokens are left
out of the loss, and their share shapes the ratio (Eq. 8).

Trainers on top of tunix that choose no names, as MaxText does, take what is
registered as "grpo". Import tunix's learner first: it registers its own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.rl import common, function_registry

from rapo_jax import objectives


def register(
  name: str = "rapo",
  *,
  clip_epsilon_low: float = 0.2,
  clip_epsilon_high: float = 0.28,
  **settings: Any,
) -> None:
  """Registers advantages and a loss under one name.

  tunix's own `epsilon`, `beta` and `loss_agg_mode` are not read.

  Args:
    name: for `advantage_estimator` and `policy_loss_fn` of tunix's config.
    clip_epsilon_low: how far the ratio may fall below 1.
    clip_epsilon_high: how far it may rise above 1.
    **settings: further ones of `objectives.rapo_loss`, such as `shaping_coef`.
  """
  clip = (clip_epsilon_low, clip_epsilon_high)

  def loss(model, example, algo_config, pad_id, eos_id):
    return _loss(model, example, algo_config, pad_id, eos_id, clip, settings)

  function_registry.register_advantage_estimator(name)(_advantages)
  function_registry.register_policy_loss_fn(name)(loss)


def _advantages(rewards: np.ndarray, num_generations: int) -> jax.Array:
  """Rewards `[B]`, group by group, to advantages `[B]` (Eq. 9)."""
  groups = np.arange(len(rewards)) // num_generations
  return objectives.group_advantages(
    jnp.asarray(rewards), groups, num_groups=len(rewards) // num_generations
  )


def _loss(model, example, algo_config, pad_id, eos_id, clip, settings):
  """Eq. 11, and the metrics that tunix logs of a loss."""
  log_probs = common.compute_per_token_logps(
    *nnx.split(model),
    prompt_tokens=example.prompt_ids,
    completion_tokens=example.completion_ids,
    pad_id=pad_id,
    eos_id=eos_id,
    stop_gradient=False,
    temperature=algo_config.temperature,
  )
  old = example.old_per_token_logps
  if old is None:  # tunix has none where a rollout is trained on once.
    old = jax.lax.stop_gradient(log_probs)
  response = example.completion_mask.astype(bool)
  retrieved = getattr(example, "retrieved_mask", jnp.zeros_like(response))
  fraction = objectives.retrieved_fraction(retrieved, where=response)
  where = response & ~retrieved
  low, high = clip
  total = objectives.rapo_loss(
    log_probs,
    old,
    example.advantages,
    fraction,
    where=where,
    clip_epsilon_low=low,
    clip_epsilon_high=high,
    **settings,
  )
  gap = jnp.where(where, log_probs - old, 0.0)
  outside = (jnp.exp(gap) < 1 - low) | (jnp.exp(gap) > 1 + high)
  count = jnp.maximum(jnp.sum(where), 1)
  return total, {
    "kl": -jnp.sum(gap) / count,
    "pg_clipfrac": jnp.sum(outside) / count,
  }
