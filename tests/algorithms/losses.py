"""Token losses of algorithms by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from rapo_jax.algorithms import Algorithm, ObjectiveConfig


def tokens(
  algorithm: Algorithm,
  ratios,
  advantages,
  *,
  objective: ObjectiveConfig | None = None,
  **columns,
):
  """Losses of tokens, and the derivative of each by its log-probability.

  Args:
    algorithm: whose loss it is.
    ratios: of each token, against the policy that sampled it.
    advantages: of each token.
    objective: settings of the experiment; the defaults by default.
    **columns: further ones that the loss reads, by name.
  """
  settings = algorithm.settings(objective or ObjectiveConfig())
  log_probs = jnp.log(jnp.asarray(ratios, jnp.float32)) - 1.5
  held = {
    "old_log_probs": jnp.full(log_probs.shape, -1.5),
    "advantages": jnp.asarray(advantages, jnp.float32),
    "retrieved_fraction": jnp.zeros(log_probs.shape),
    **{name: jnp.asarray(column) for name, column in columns.items()},
  }
  named = {name: held[name] for name in algorithm.loss.columns}

  def total(log_probs):
    losses = algorithm.loss.function(log_probs, named, settings)
    return jnp.sum(losses), losses

  slopes, losses = jax.grad(total, has_aux=True)(log_probs)
  return np.asarray(losses), np.asarray(slopes)
