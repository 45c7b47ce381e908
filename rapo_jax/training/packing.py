"""Trajectories packed into rows of fixed length.

Rows hold several trajectories side by side, told apart by segment ids, so
little of a batch is padding. The number of rows varies from batch to batch
while the shape of the arrays does not: they have room for the worst case and
say how many micro-batches are in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rapo_jax.errors import InputError
from rapo_jax.trajectory import Trajectory


class PackedBatch(NamedTuple):
  """`M` micro-batches of `R` rows of `T` tokens.

  Attributes:
    tokens: token ids, 0 where nothing is.
    segment_ids: 1, 2, … for the trajectories of a row; 0 for padding.
    where: policy tokens with a weight, the only ones in the loss.
    old_log_probs: as sampled.
    advantages: of the token's trajectory.
    retrieved_fraction: of the token's trajectory (Eq. 8).
    weights: with which the token's loss enters the sum.
    num_microbatches: how many of the `M` hold any tokens.
  """

  tokens: Int[Array, "M R T"]
  segment_ids: Int[Array, "M R T"]
  where: Bool[Array, "M R T"]
  old_log_probs: Float[Array, "M R T"]
  advantages: Float[Array, "M R T"]
  retrieved_fraction: Float[Array, "M R T"]
  weights: Float[Array, "M R T"]
  num_microbatches: Int[Array, ""]

  @property
  def padding_fraction(self) -> float:
    """Share of the positions in use that hold no token."""
    used = self.segment_ids[: int(self.num_microbatches)]
    return float(np.mean(np.asarray(used) == 0))


def assign_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
  """First-fit decreasing: which items share a row of `row_length` tokens.

  Raises:
    InputError: an item is longer than a row.
  """
  rows: list[list[int]] = []
  room: list[int] = []
  for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    if lengths[item] > row_length:
      raise InputError(
        f"a trajectory may hold at most {row_length} tokens (row_length), one "
        f"has {lengths[item]}: raise row_length to at least the sum of "
        "max_prompt_tokens and max_response_tokens."
      )
    row = next(
      (r for r, left in enumerate(room) if left >= lengths[item]), None
    )
    if row is None:
      row = len(rows)
      rows.append([])
      room.append(row_length)
    rows[row].append(item)
    room[row] -= lengths[item]
  return rows


def pack(
  trajectories: Sequence[Trajectory],
  *,
  advantages: Float[np.ndarray, " B"],
  retrieved_fraction: Float[np.ndarray, " B"],
  weights: Float[np.ndarray, "B L"],
  row_length: int,
  rows_per_microbatch: int,
) -> PackedBatch:
  """Packs the trajectories of one minibatch.

  Args:
    trajectories: `B` of them.
    advantages: of each trajectory.
    retrieved_fraction: of each trajectory.
    weights: loss weight of each token of each trajectory; 0 for one that is
      left out.
    row_length: tokens of a row.
    rows_per_microbatch: rows of a micro-batch.
  """
  rows = assign_rows([len(t.tokens) for t in trajectories], row_length)
  # One trajectory a row is the worst case.
  capacity = -(-len(trajectories) // rows_per_microbatch)
  shape = (capacity * rows_per_microbatch, row_length)
  tokens = np.zeros(shape, np.int32)
  segment_ids = np.zeros(shape, np.int32)
  where = np.zeros(shape, bool)
  floats = np.zeros((4, *shape), np.float32)
  old_log_probs, advantage, fraction, weight = floats
  for row, members in enumerate(rows):
    start = 0
    for segment, member in enumerate(members):
      trajectory = trajectories[member]
      length = len(trajectory.tokens)
      at = (row, slice(start, start + length))
      tokens[at] = trajectory.tokens
      segment_ids[at] = segment + 1
      where[at] = trajectory.policy_mask & (weights[member, :length] > 0)
      old_log_probs[at] = trajectory.log_probs
      advantage[at] = advantages[member]
      fraction[at] = retrieved_fraction[member]
      weight[at] = weights[member, :length]
      start += length

  def split(x: np.ndarray) -> Array:
    return jnp.asarray(x.reshape(capacity, rows_per_microbatch, row_length))

  used = -(-len(rows) // rows_per_microbatch)
  return PackedBatch(
    tokens=split(tokens),
    segment_ids=split(segment_ids),
    where=split(where),
    old_log_probs=split(old_log_probs),
    advantages=split(advantage),
    retrieved_fraction=split(fraction),
    weights=split(weight),
    num_microbatches=jnp.asarray(used, jnp.int32),
  )
