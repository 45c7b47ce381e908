"""Trajectories packed into rows of fixed length.

Rows hold several trajectories side by side, each with its own segment id. So
little of a batch is padding. Trajectories with the same prompt share it: it
stands once in a row, as a segment that they all read. The number of rows varies
from batch to batch while the shape of the arrays does not. They have room for
the worst case, and say how many micro-batches are in use.
"""

from __future__ import annotations

import collections
from collections.abc import Hashable, Sequence
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
    segment_ids: 1, 2, … for the trajectories of a row and for the prompts
      that they share; 0 for padding.
    where: policy tokens with a weight, the only ones in the loss.
    weights: with which the token's loss enters the sum.
    columns: what the loss reads of a token, by name, see
      `algorithms.COLUMNS`; at least `BASE_COLUMNS`.
    num_microbatches: how many of the `M` hold any tokens; -1 for a batch that
      an update leaves the state by as it was, see `unlearned`.
    prefix_ids: segment of the row that holds the beginning of the token's
      trajectory; 0 for a whole trajectory. None if prompts are not shared.
  """

  tokens: Int[Array, "M R T"]
  segment_ids: Int[Array, "M R T"]
  where: Bool[Array, "M R T"]
  weights: Float[Array, "M R T"]
  columns: dict[str, Float[Array, "M R T"]]
  num_microbatches: Int[Array, ""]
  prefix_ids: Int[Array, "M R T"] | None = None

  @property
  def padding_fraction(self) -> float:
    """Share of the positions in use that hold no token; 0 if none is used."""
    # Cut on the host: on the device each length would be a program.
    used = np.asarray(self.segment_ids)[: int(self.num_microbatches)]
    return float(np.mean(used == 0)) if len(used) else 0.0


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


class Prefix(NamedTuple):
  """A beginning that several trajectories share.

  Attributes:
    key: the same for those that share it.
    length: tokens of it; 0 for nothing.
  """

  key: Hashable
  length: int


def shared_prefix(trajectory: Trajectory) -> Prefix:
  """What comes before the last token that the policy read at its start.

  That token itself is not in it: what follows it differs between trajectories,
  and each is scored from a hidden state of its own.
  """
  length = max(int(np.argmax(trajectory.policy_mask)) - 1, 0)
  return Prefix(trajectory.tokens[:length].tobytes(), length)


def assign_rows(
  lengths: Sequence[int],
  row_length: int,
  prefixes: Sequence[Prefix] | None = None,
) -> list[list[int]]:
  """First-fit decreasing: which items share a row of `row_length` tokens.

  Items with the same prefix come one after the other, and a row holds their
  prefix once. An item goes to a row with its prefix before any other row.

  Args:
    lengths: tokens of each item, prefix included.
    row_length: tokens of a row.
    prefixes: of each item; None if they share nothing.

  Raises:
    InputError: an item is longer than a row.
  """
  if prefixes is None:
    prefixes = [Prefix(i, 0) for i in range(len(lengths))]
  longest: dict[Hashable, int] = {}
  for length, (key, _) in zip(lengths, prefixes, strict=True):
    longest[key] = max(length, longest.get(key, 0))
  ranks = {key: rank for rank, key in enumerate(longest)}

  def order(item: int) -> tuple[int, int, int, int]:
    key = prefixes[item].key
    return -longest[key], ranks[key], -lengths[item], item

  rows: list[list[int]] = []
  room: list[int] = []
  held: list[set[Hashable]] = []
  for item in sorted(range(len(lengths)), key=order):
    length, (key, shared) = lengths[item], prefixes[item]
    if length > row_length:
      raise InputError(
        f"a trajectory may hold at most {row_length} tokens (row_length), one "
        f"has {length}: raise row_length to at least the sum of "
        "max_prompt_tokens and max_response_tokens."
      )
    fitting = (
      r
      for r in range(len(rows))
      if room[r] >= length - shared * (key in held[r])
    )
    row = min(fitting, key=lambda r: key not in held[r], default=len(rows))
    if row == len(rows):
      rows.append([])
      room.append(row_length)
      held.append(set())
    rows[row].append(item)
    room[row] -= length - shared * (key in held[row])
    held[row].add(key)
  return rows


def empty_batch(
  num_microbatches: int,
  *,
  row_length: int,
  rows_per_microbatch: int,
  columns: Sequence[str] = BASE_COLUMNS,
  share_prompts: bool = True,
) -> PackedBatch:
  """A batch of NumPy arrays that holds no token: `pack` fills one.

  Args:
    num_microbatches: that there is room for.
    row_length: tokens of a row.
    rows_per_microbatch: rows of a micro-batch.
    columns: by name.
    share_prompts: whether trajectories may share their prompts.
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
    prefix_ids=zeros(np.int32) if share_prompts else None,
  )


def unlearned(batch: PackedBatch) -> PackedBatch:
  """The batch as one from which nothing is learned, bit for bit.

  An update on no micro-batch would still move the weights: by the optimizer's
  momentum, and by its weight decay.
  """
  # Computed of the number that is there: it has to lie where that does.
  return batch._replace(num_microbatches=batch.num_microbatches * 0 - 1)


class Placement(NamedTuple):
  """Where the tokens of a trajectory lie in a batch.

  Attributes:
    member: index of the trajectory.
    own: tokens of it that lie at `at`: all, or those behind a shared prompt.
    at: micro-batch, row, and the positions in the row.
    segment: of the row.
    prefix: segment that holds the shared prompt; 0 where the trajectory is
      whole.
    prefix_at: where that prompt lies, for the first of those that share it.
  """

  member: int
  own: slice
  at: tuple[int, int, slice]
  segment: int
  prefix: int = 0
  prefix_at: tuple[int, int, slice] | None = None


class Packed(NamedTuple):
  """The trajectories of one minibatch, and where each of them lies.

  Attributes:
    batch: what the update reads.
    placements: of those that are packed.
  """

  batch: PackedBatch
  placements: list[Placement]


def _place(
  trajectories: Sequence[Trajectory],
  weights: Float[np.ndarray, "B L"],
  *,
  row_length: int,
  rows_per_microbatch: int,
  share_prompts: bool,
) -> list[Placement]:
  """Lays the trajectories of one minibatch into rows; see `pack`."""
  kept = [
    i
    for i, t in enumerate(trajectories)
    if np.any(weights[i, : len(t.tokens)][t.policy_mask] > 0)
  ]
  prefixes = {
    i: shared_prefix(trajectories[i]) if share_prompts else Prefix(i, 0)
    for i in kept
  }
  rows = assign_rows(
    [len(trajectories[i].tokens) for i in kept],
    row_length,
    [*prefixes.values()],
  )
  placements = []
  for row, places in enumerate(rows):
    members = [kept[number] for number in places]
    at_row = divmod(row, rows_per_microbatch)
    sharing = collections.Counter(prefixes[m].key for m in members)
    start = segment = 0
    # Segments of the prefixes in the row.
    segments: dict[Hashable, int] = {}
    for member in members:
      key, shared = prefixes[member]
      # Alone in its row a trajectory stays whole.
      shared *= sharing[key] > 1
      prefix_at = None
      if shared and key not in segments:
        segment += 1
        segments[key] = segment
        prefix_at = (*at_row, slice(start, start + shared))
        start += shared
      segment += 1
      own = slice(shared, len(trajectories[member].tokens))
      end = start + own.stop - own.start
      placements.append(
        Placement(
          member,
          own,
          (*at_row, slice(start, end)),
          segment,
          segments.get(key, 0),
          prefix_at,
        )
      )
      start = end
  return placements


def pack(
  trajectories: Sequence[Trajectory],
  *,
  advantages: Float[np.ndarray, "B *L"],
  retrieved_fraction: Float[np.ndarray, " B"],
  weights: Float[np.ndarray, "B L"],
  row_length: int,
  rows_per_microbatch: int,
  columns: Sequence[str] = BASE_COLUMNS,
  share_prompts: bool = True,
) -> Packed:
  """Packs the trajectories of one minibatch.

  One without a token in the loss is left out. The shapes of the arrays stay
  those of a batch that holds all.

  Args:
    trajectories: `B` of them.
    advantages: of each trajectory, `[B]`, or each of its tokens, `[B, L]`.
    retrieved_fraction: of each trajectory.
    weights: loss weight of each token of each trajectory.
    row_length: tokens of a row.
    rows_per_microbatch: rows of a micro-batch.
    columns: of the batch, see `packed_columns`.
    share_prompts: whether a row holds the prompt of its trajectories once. The
      model computes the same: see `Decoder.hidden_states`.

  Raises:
    InputError: a trajectory is longer than a row.
  """
  placements = _place(
    trajectories,
    weights,
    row_length=row_length,
    rows_per_microbatch=rows_per_microbatch,
    share_prompts=share_prompts,
  )
  # One trajectory a row is the worst case.
  capacity = -(-len(trajectories) // rows_per_microbatch)
  batch = empty_batch(
    capacity,
    row_length=row_length,
    rows_per_microbatch=rows_per_microbatch,
    columns=columns,
    share_prompts=share_prompts,
  )
  held = [n for n in columns if n not in BASE_COLUMNS]
  for member, own, at, segment, prefix, prefix_at in placements:
    trajectory = trajectories[member]
    if prefix_at is not None:
      batch.tokens[prefix_at] = trajectory.tokens[: own.start]
      batch.segment_ids[prefix_at] = prefix
    batch.tokens[at] = trajectory.tokens[own]
    batch.segment_ids[at] = segment
    if batch.prefix_ids is not None:
      batch.prefix_ids[at] = prefix
    batch.where[at] = trajectory.policy_mask[own] & (weights[member, own] > 0)
    batch.weights[at] = weights[member, own]
    batch.columns["old_log_probs"][at] = trajectory.log_probs[own]
    batch.columns["advantages"][at] = (
      advantages[member] if advantages.ndim == 1 else advantages[member, own]
    )
    batch.columns["retrieved_fraction"][at] = retrieved_fraction[member]
    for name in held:
      values = getattr(trajectory, name)
      batch.columns[name][at] = values[own] if np.ndim(values) else values
  used = max((at[0] + 1 for _, _, at, *_ in placements), default=0)
  batch = batch._replace(num_microbatches=jnp.asarray(used, jnp.int32))
  return Packed(jax.tree.map(jnp.asarray, batch), placements)
