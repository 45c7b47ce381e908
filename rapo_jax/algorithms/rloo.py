"""RLOO (Ahmadian et al., 2024): each rollout against the mean of the others.

`A_i = R_i - mean_{j != i} R_j`, and the gradient of REINFORCE,
`A_i grad sum_t log p(y_t)`. The paper updates once a batch; here as elsewhere
(verl, TRL) an update may have several minibatches, so the ratio is clipped.
Where it is 1 the gradient is the paper's, up to a constant.
"""

from __future__ import annotations

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import CLIPPED_LOSS, Algorithm, Signals
from rapo_jax.algorithms.settings import PLAIN_PPO, ObjectiveConfig


def advantages(
  signals: Signals, settings: ObjectiveConfig
) -> Float[Array, " B"]:
  """Outcome rewards less the mean of the question's other rollouts."""
  del settings
  return objectives.leave_one_out_advantages(
    signals.rewards, signals.group_ids, num_groups=signals.num_groups
  )


ALGORITHM = Algorithm(
  name="rloo",
  label="RLOO",
  description="REINFORCE with a leave-one-out baseline (arXiv 2402.14740).",
  advantages=advantages,
  loss=CLIPPED_LOSS,
  changes={**PLAIN_PPO, "aggregation": "constant"},
  colour="#6b7a00",
  dark_colour="#bccb52",
)
