"""Trajectories packed into rows of fixed length.

Rows hold several trajectories side by side, each with its own segment id. So
little of a batch is padding. The number of rows varies from batch to batch
while the shape of the arrays does not. They have room for the worst case, and
say how many micro-batches are in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rapo_jax import hosts
from rapo_jax.algorithms import Algorithm
from rapo_jax.errors import InputError
from rapo_jax.trajectory import Trajectory

BASE_COLUMNS = ("old_log_probs", "advantages", "retrieved_fraction")
"""Columns of every batch: metrics read them."""
# Columns that a trajectory holds and only some losses need.
_HELD_COLUMNS = ("entropies", "step_ids", "source")


@hosts.travels
class PackedBatch(NamedTuple):
  """`M` micro-batches of `R` rows of `T` tokens.

  Attributes:
    tokens: token ids, 0 where nothing is.
    segment_ids: 1, 2, … for the trajectories of a row; 0 for padding.
    where: policy tokens with a weight, the only ones in the loss.
    weights: with which the token's loss enters the sum.
    columns: what the loss reads of a token, by name, see
      `algorithms.COLUMNS`; at least `BASE_COLUMNS`.
    num_microbatches: how many of the `M` hold any tokens.
  """

  tokens: Int[Array, "M R T"]
  segment_ids: Int[Array, "M R T"]
  where: Bool[Array, "M R T"]
  weights: Float[Array, "M R T"]
  columns: dict[str, Float[Array, "M R T"]]
  num_microbatches: Int[Array, ""]

  @property
  def padding_fraction(self) -> float:
    """Share of the positions in use that hold no token."""
    # Cut on the host: on the device each length would be a program.
    used = np.asarray(self.segment_ids)[: int(self.num_microbatches)]
    return float(np.mean(used == 0))


def packed_columns(algorithm: Algorithm) -> tuple[str, ...]:
  """Columns that a batch of this method is packed with, in every update.

  The update makes the other columns that the loss reads. Where rows are mixed
  metrics need their source, to leave out what was not sampled for the update.
  """
  needed = {*algorithm.loss.columns}
  if algorithm.loss.segment == "step":
    needed.add("step_ids")
  if algorithm.plan.mixes:
    needed.add("source")
  return (*BASE_COLUMNS, *(n for n in _HELD_COLUMNS if n in needed))


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


def empty_batch(
  num_microbatches: int,
  *,
  row_length: int,
  rows_per_microbatch: int,
  columns: Sequence[str] = BASE_COLUMNS,
) -> PackedBatch:
  """A batch of NumPy arrays that holds no token: `pack` fills one.

  Args:
    num_microbatches: that there is room for.
    row_length: tokens of a row.
    rows_per_microbatch: rows of a micro-batch.
    columns: by name.
  """
  shape = (num_microbatches, rows_per_microbatch, row_length)

  def zeros(dtype: type) -> Any:
    return np.zeros(shape, dtype)

  return PackedBatch(
    tokens=zeros(np.int32),
    segment_ids=zeros(np.int32),
    where=zeros(bool),
    weights=zeros(np.float32),
    columns={name: zeros(np.float32) for name in columns},
    num_microbatches=jnp.zeros((), jnp.int32),
  )


def pack(
  trajectories: Sequence[Trajectory],
  *,
  advantages: Float[np.ndarray, "B *L"],
  retrieved_fraction: Float[np.ndarray, " B"],
  weights: Float[np.ndarray, "B L"],
  row_length: int,
  rows_per_microbatch: int,
  columns: Sequence[str] = BASE_COLUMNS,
) -> PackedBatch:
  """Packs the trajectories of one minibatch.

  Args:
    trajectories: `B` of them.
    advantages: of each trajectory, `[B]`, or each of its tokens, `[B, L]`.
    retrieved_fraction: of each trajectory.
    weights: loss weight of each token of each trajectory; 0 for one that is
      left out.
    row_length: tokens of a row.
    rows_per_microbatch: rows of a micro-batch.
    columns: of the batch, see `packed_columns`.
  """
  rows = assign_rows([len(t.tokens) for t in trajectories], row_length)
  # One trajectory a row is the worst case.
  capacity = -(-len(trajectories) // rows_per_microbatch)
  held = [n for n in columns if n not in BASE_COLUMNS]
  batch = empty_batch(
    capacity,
    row_length=row_length,
    rows_per_microbatch=rows_per_microbatch,
    columns=columns,
  )
  for row, members in enumerate(rows):
    start = 0
    for segment, member in enumerate(members):
      trajectory = trajectories[member]
      length = len(trajectory.tokens)
      at = (
        *divmod(row, rows_per_microbatch),
        slice(start, start + length),
      )
      batch.tokens[at] = trajectory.tokens
      batch.segment_ids[at] = segment + 1
      batch.where[at] = trajectory.policy_mask & (weights[member, :length] > 0)
      batch.weights[at] = weights[member, :length]
      batch.columns["old_log_probs"][at] = trajectory.log_probs
      batch.columns["advantages"][at] = (
        advantages[member]
        if advantages.ndim == 1
        else advantages[member, :length]
      )
      batch.columns["retrieved_fraction"][at] = retrieved_fraction[member]
      for name in held:
        batch.columns[name][at] = getattr(trajectory, name)
      start += length
  used = -(-len(rows) // rows_per_microbatch)
  packed: PackedBatch = jax.tree.map(
    jnp.asarray, batch._replace(num_microbatches=jnp.asarray(used, jnp.int32))
  )
  return packed
