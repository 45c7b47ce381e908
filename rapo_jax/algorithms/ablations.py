"""The ablations of RAPO (arXiv 2603.03078): each leaves out one part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import chex
import jax

from rapo_jax import objectives
from rapo_jax.algorithms.base import Plan
from rapo_jax.algorithms.rapo import ALGORITHM as RAPO

_EPS = 1e-6


def _timing(quality: jax.Array, entropy_before: jax.Array) -> jax.Array:
  del quality
  return entropy_before


def _quality(quality: jax.Array, entropy_before: jax.Array) -> jax.Array:
  del entropy_before
  return quality


def _inverted(quality: jax.Array, entropy_before: jax.Array) -> jax.Array:
  return -quality * entropy_before


def _low_entropy(quality: jax.Array, entropy_before: jax.Array) -> jax.Array:
  return quality / (entropy_before + _EPS)


@dataclasses.dataclass(frozen=True)
class WorthReward:
  """The retrieval reward (Eq. 5-7) with another product of its two terms.

  Attributes:
    worth: of one retrieval, given its quality and the entropy before it.
  """

  worth: Callable[[jax.Array, jax.Array], jax.Array]

  def __call__(
    self,
    step_entropies: chex.Array,
    retrieved: chex.Array,
    **settings: object,
  ) -> jax.Array:
    """Z_ret; see `objectives.retrieval_reward`."""
    return objectives.retrieval_reward(
      step_entropies, retrieved, worth=self.worth, **settings
    )


ALGORITHMS = (
  dataclasses.replace(
    RAPO,
    name="rapo_no_quality",
    label="RAPO, no quality",
    description="RAPO without the quality term of the retrieval reward.",
    retrieval_reward=WorthReward(_timing),
    colour="#3b7f9e",
    dark_colour="#8cc6e0",
  ),
  dataclasses.replace(
    RAPO,
    name="rapo_no_timing",
    label="RAPO, no timing",
    description="RAPO without the timing term of the retrieval reward.",
    retrieval_reward=WorthReward(_quality),
    colour="#4a6fa5",
    dark_colour="#9db9e6",
  ),
  dataclasses.replace(
    RAPO,
    name="rapo_inverted",
    label="RAPO, inverted",
    description="RAPO that rewards an increase of entropy.",
    retrieval_reward=WorthReward(_inverted),
    colour="#7a4f9e",
    dark_colour="#c3a1e0",
  ),
  dataclasses.replace(
    RAPO,
    name="rapo_low_entropy_timing",
    label="RAPO, low-entropy timing",
    description="RAPO that rewards retrievals where the policy was sure.",
    retrieval_reward=WorthReward(_low_entropy),
    colour="#2f7f6f",
    dark_colour="#86cfc0",
  ),
  dataclasses.replace(
    RAPO,
    name="rapo_no_retrieval_reward",
    label="RAPO, no retrieval reward",
    description="RAPO without the retrieval reward: a = 0.",
    changes={"retrieval_coef": 0.0},
    colour="#5f6b1f",
    dark_colour="#c0cc7a",
  ),
  dataclasses.replace(
    RAPO,
    name="rapo_no_shaping",
    label="RAPO, no shaping",
    description="RAPO without importance shaping: m = 0.",
    changes={"shaping_coef": 0.0},
    colour="#9e6a3b",
    dark_colour="#e0b58c",
  ),
  dataclasses.replace(
    RAPO,
    name="rapo_trajectory",
    label="RAPO, whole trajectories",
    description="RAPO that inserts whole trajectories in place of steps.",
    plan=Plan(hybrid=True, retrieval_changes={"granularity": "trajectory"}),
    colour="#a03b6a",
    dark_colour="#e69abd",
  ),
)
