"""Hybrid-policy agentic rollout (paper §Phase one, Algorithm 1)."""

from rapo_jax.rollout.between import (
  BetweenSession,
  BetweenSteps,
  Boundary,
  Insertion,
)
from rapo_jax.rollout.config import RolloutConfig, check_sampling
from rapo_jax.rollout.engine import (
  RolloutEngine,
  check_forks,
  read_tokenizer,
  turn_end_ids,
)
from rapo_jax.rollout.finite import NonFiniteRollout
from rapo_jax.rollout.requests import RolloutRequest, group_requests
from rapo_jax.rollout.retriever import retrieved_text
from rapo_jax.rollout.stats import RolloutStats
from rapo_jax.rollout.tool_runner import ToolStats

__all__ = [
  "BetweenSession",
  "BetweenSteps",
  "Boundary",
  "Insertion",
  "NonFiniteRollout",
  "RolloutConfig",
  "RolloutEngine",
  "RolloutRequest",
  "RolloutStats",
  "ToolStats",
  "check_forks",
  "check_sampling",
  "group_requests",
  "read_tokenizer",
  "retrieved_text",
  "turn_end_ids",
]
