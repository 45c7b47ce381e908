"""RolloutReplay (Sun et al., 2025, arXiv 2506.05316): groups are used again.

Half of an update's groups come from earlier updates, see `replay.Replay`.
Advantages are GRPO's. The clip range lies around the ratio of the policy before
the update to the one that sampled the token: `proximal_log_probs`. RAPO's paper
names a baseline of this name and does not define it; this is our reading.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Array, Float

from rapo_jax import objectives
from rapo_jax.algorithms.base import (
  Algorithm,
  Plan,
  TokenLoss,
  outcome_advantages,
)
from rapo_jax.algorithms.replay import Replay
from rapo_jax.algorithms.settings import PLAIN_PPO, ObjectiveConfig


def token_loss(
  log_probs: Float[Array, " N"],
  columns: Mapping[str, Float[Array, " N"]],
  settings: ObjectiveConfig,
) -> Float[Array, " N"]:
  """See `objectives.replay_loss`."""
  return objectives.replay_loss(
    log_probs,
    columns["old_log_probs"],
    columns["proximal_log_probs"],
    columns["advantages"],
    clip_epsilon_low=settings.clip_epsilon_low,
    clip_epsilon_high=settings.clip_epsilon_high,
  )


ALGORITHM = Algorithm(
  name="rollout_replay",
  label="RolloutReplay",
  description="Groups of earlier updates are used again (arXiv 2506.05316).",
  plan=Plan(replay=Replay(share=0.5, capacity=512)),
  advantages=outcome_advantages,
  loss=TokenLoss(
    token_loss,
    ("old_log_probs", "proximal_log_probs", "advantages"),
    vanishes=True,
  ),
  changes=PLAIN_PPO,
  colour="#4d4d4d",
  dark_colour="#bdbdbd",
)
