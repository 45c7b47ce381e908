r"""RAPO that retrieves only where the policy does not get on by itself.

RAPO's hybrid rollouts (arXiv 2603.03078, Algorithm 1) retrieve with the
probability p at a step boundary, whatever the policy can do already. Here the
plain half of a group decides, N_on rollouts with the rewards R. It needs
guidance, n = 1, if

    dead:      R_1 = ... = R_N        nothing to learn without guidance
    unsolved:  none of them is correct

and n = 0 otherwise. The probability p' of a retrieval is then

    by group:  p' = n p               of the question itself
    by share:  p' = p mean(n)         over the questions of the update before

All else is RAPO's. By group the halves are sampled one after the other, and
the rule is exact. By share they are sampled together, and the rule lags by an
update. This is ours, not the paper's.
"""

from __future__ import annotations

import dataclasses

from rapo_jax.algorithms.base import Algorithm, Plan
from rapo_jax.algorithms.guidance import GuideRule, dead, unsolved
from rapo_jax.algorithms.rapo import ALGORITHM as RAPO


def _guided(
  name: str, rule: GuideRule, what: str, colour: str, dark_colour: str
) -> Algorithm:
  return dataclasses.replace(
    RAPO,
    name=f"rapo_{name}",
    label=f"RAPO, {name.replace('_', ' ')}",
    description=f"RAPO that retrieves {what}.",
    plan=Plan(hybrid=True, guide=rule),
    colour=colour,
    dark_colour=dark_colour,
  )


ALGORITHMS = (
  _guided(
    "dead",
    GuideRule(dead),
    "where no reward of the plain rollouts differs",
    "#6a3fb5",
    "#b79af2",
  ),
  _guided(
    "unsolved",
    GuideRule(unsolved),
    "where no plain rollout is correct",
    "#a3278f",
    "#ee8fdd",
  ),
  _guided(
    "dead_share",
    GuideRule(dead, by="share"),
    "as often as plain rewards did not differ in the update before",
    "#4a5fc1",
    "#a5b3f7",
  ),
  _guided(
    "unsolved_share",
    GuideRule(unsolved, by="share"),
    "as often as no plain rollout was correct in the update before",
    "#8c5a86",
    "#d3a9ce",
  ),
)
