r"""PrefixRL (Setlur et al., 2026): rollouts that begin with another's steps.

Of a question x with an off-policy trajectory y that is correct, a prefixed
question is made: x and the first steps y_1..y_h. The policy goes on from there.
All rollouts of the group share the prefix, so that rewards are compared within
one state:

    J = E_{x' in {x, (x, y_1..y_h)}} E_{z ~ pi(. | x')} R(z)

The prefix is context: it has no loss. Plain questions are trained on beside
prefixed ones. The loss is GRPO's.

The paper (arXiv 2601.18795) cuts traces at tokens, at lengths where the base
policy is right often enough. Our reading for agents: the cut is behind a step
with its result, h is drawn uniformly from 1 to the steps before the last. Half
of the questions have a prefix, where there is a trajectory. These two numbers
are ours; no code of the authors was found.
"""

from __future__ import annotations

import dataclasses

from rapo_jax.algorithms.base import Plan
from rapo_jax.algorithms.grpo import ALGORITHM as GRPO

ALGORITHM = dataclasses.replace(
  GRPO,
  name="prefix_rl",
  label="PrefixRL",
  description="Rollouts behind an agent's first steps (arXiv 2601.18795).",
  plan=Plan(prefixed=0.5),
  colour="#7a7000",
  dark_colour="#cfc45a",
)
