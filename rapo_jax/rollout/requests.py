"""Requests to a rollout, one for each trajectory."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rapo_jax.data import Query


@dataclasses.dataclass(frozen=True)
class RolloutRequest:
  """One trajectory that is wanted.

  Attributes:
    query: the question.
    prompt_tokens: its prompt.
    group_id: index of the question in its batch.
    index: index of the trajectory in its group.
    hybrid: whether it may retrieve.
    guidance: factor on the probability that it retrieves, in [0, 1].
    prefix: steps that it begins with, as token ids, each with its result. They
      are inserted as retrieved ones are, and count in the response budget.
  """

  query: Query
  prompt_tokens: Int[np.ndarray, " P"]
  group_id: int
  index: int
  hybrid: bool = False
  guidance: float = 1.0
  prefix: tuple[Int[np.ndarray, " _"], ...] = ()


def group_requests(
  queries: Sequence[Query],
  prompts: Sequence[Int[np.ndarray, " _"]],
  *,
  num_generations: int,
  num_hybrid: int,
) -> list[RolloutRequest]:
  """`num_generations` requests a query, the last `num_hybrid` hybrid."""
  return [
    RolloutRequest(
      query, prompt, group, index, index >= num_generations - num_hybrid
    )
    for group, (query, prompt) in enumerate(zip(queries, prompts, strict=True))
    for index in range(num_generations)
  ]


def query_number(query: Query) -> int:
  """A 32-bit number of a query that is the same in every process."""
  return zlib.crc32(query.query_id.encode())
