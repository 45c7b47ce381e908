"""RAPO's objective, free of the rest of the library.

Pure functions from arrays to arrays: entropies, the retrieval reward, group
advantages, step returns, the clipped losses and their metrics. The package
needs `jax` and `chex` and nothing else, so any JAX training loop can import it:

```python
from rapo_jax import objectives

def loss_fn(params, batch):
  log_probs = policy_log_probs(params, batch.tokens)  # yours
  return objectives.rapo_loss(
    log_probs, batch.old_log_probs, batch.advantages,
    batch.retrieved_fraction, where=batch.policy_mask)

grads = jax.grad(loss_fn)(params, batch)
updates, opt_state = optimizer.update(grads, opt_state, params)
```

What holds for every function:

- It can be used under `jax.jit`, `jax.vmap` and `jax.grad`; shapes are static.
- Half-precision inputs are converted to float32 first; float64 stays float64.
- Masks (`where`) are boolean. A masked position contributes exactly 0 to the
  value and to the gradient. This holds even where its inputs are inf or NaN.
- A wrong shape, rank or dtype raises `ValueError` while tracing.

Shapes: `B` trajectories, `T` tokens, `S` steps, `V` vocabulary. Equation
numbers are those of "RAPO: Expanding Exploration for LLM Agents via
Retrieval-Augmented Policy Optimization" (arXiv 2603.03078).
"""

from rapo_jax.objectives.advantages import (
  balanced_advantages,
  group_advantages,
  leave_one_out_advantages,
  overlong_penalty,
  rapo_advantages,
  reference_advantages,
  shared_means,
  step_returns,
  whiten,
)
from rapo_jax.objectives.entropy import step_entropy, token_entropy
from rapo_jax.objectives.losses import (
  clipped_loss,
  importance_ratio,
  importance_shaping,
  kl_estimate,
  loss_weights,
  rapo_loss,
  rapo_token_loss,
  segment_log_ratio,
  segment_ratio,
)
from rapo_jax.objectives.metrics import rapo_metrics
from rapo_jax.objectives.retrieval import (
  retrieval_quality,
  retrieval_reward,
  retrieved_fraction,
)
from rapo_jax.objectives.token_losses import (
  clipped_weight_loss,
  gradient_preserving_loss,
  mixed_policy_loss,
  replay_loss,
)

__all__ = [
  "balanced_advantages",
  "clipped_loss",
  "clipped_weight_loss",
  "gradient_preserving_loss",
  "group_advantages",
  "importance_ratio",
  "importance_shaping",
  "kl_estimate",
  "leave_one_out_advantages",
  "loss_weights",
  "mixed_policy_loss",
  "overlong_penalty",
  "rapo_advantages",
  "rapo_loss",
  "rapo_metrics",
  "rapo_token_loss",
  "reference_advantages",
  "replay_loss",
  "retrieval_quality",
  "retrieval_reward",
  "retrieved_fraction",
  "segment_log_ratio",
  "segment_ratio",
  "shared_means",
  "step_entropy",
  "step_returns",
  "token_entropy",
  "whiten",
]
