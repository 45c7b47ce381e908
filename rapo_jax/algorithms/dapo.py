"""DAPO (Yu et al., 2025): dynamic sampling, clip-higher, a price on length.

A group is sampled again if its rewards are equal, the authors' if their shares
of right answers are. So of two wrong answers with other rewards ours learns.
"""

from __future__ import annotations

from rapo_jax.algorithms.base import (
  CLIPPED_LOSS,
  Algorithm,
  Plan,
  Resample,
  outcome_advantages,
)
from rapo_jax.algorithms.groups import rewards_differ
from rapo_jax.algorithms.settings import PLAIN_PPO

ALGORITHM = Algorithm(
  name="dapo",
  label="DAPO",
  description="Decoupled clip and dynamic sampling (arXiv 2503.14476).",
  plan=Plan(resample=Resample(rewards_differ, max_rounds=10)),
  advantages=outcome_advantages,
  loss=CLIPPED_LOSS,
  changes={
    **PLAIN_PPO,
    "clip_epsilon_high": 0.28,
    "dual_clip": 3.0,
    "length_limit": "soft",
  },
  colour="#b3264a",
  dark_colour="#f2849c",
)
