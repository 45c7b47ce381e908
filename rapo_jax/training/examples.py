"""Examples of supervised learning: tokens with a loss mask, packed into rows.

An example comes from a trajectory, from a conversation or from any other text
that a caller encodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from rapo_jax import hosts
from rapo_jax.data import chat
from rapo_jax.data.order import epoch_order
from rapo_jax.errors import InputError
from rapo_jax.trajectory import Trajectory


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One sequence of `L` tokens.

  Attributes:
    tokens: token ids.
    where: tokens in the loss, a value for each of the `L`. The first token has
      nothing before it and is never in the loss.
  """

  tokens: Int[np.ndarray, " L"]
  where: Bool[np.ndarray, " _"]


@hosts.travels
class SupervisedBatch(NamedTuple):
  """Packed examples of a step, `R` rows of `T` tokens.

  Attributes:
    tokens: token ids, 0 for padding.
    segment_ids: 1, 2, … for the examples of a row; 0 for padding.
    where: tokens in the loss.
  """

  tokens: Int[Array | np.ndarray, "*N R T"]
  segment_ids: Int[Array | np.ndarray, "*N R T"]
  where: Bool[Array | np.ndarray, "*N R T"]


def from_trajectory(trajectory: Trajectory) -> Example:
  """A trajectory, with the tokens that the policy wrote in the loss."""
  return Example(
    np.asarray(trajectory.tokens, np.int32),
    np.asarray(trajectory.policy_mask, bool),
  )


def from_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> Example:
  """A conversation, with the assistant's replies in the loss.

  A reply ends with the token that ends the turn. Other turns, and what the
  template writes around a reply, are not in the loss.

  Args:
    tokenizer: a Hugging Face tokenizer with a chat template.
    messages: turns, each with `role` and `content`.

  Raises:
    InputError: no turn is the assistant's, or the template writes a turn in
      another way once later turns follow.
  """
  tokens = chat.encode_chat(tokenizer, messages, add_generation_prompt=False)
  end = chat.turn_end(tokenizer)
  where = np.zeros(len(tokens), bool)
  for number, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    before = chat.encode_chat(
      tokenizer, messages[:number], add_generation_prompt=True
    )
    through = chat.encode_chat(
      tokenizer, messages[: number + 1], add_generation_prompt=False
    )
    start, stop = len(before), len(through)
    if tokens[:start] != before or tokens[:stop] != through:
      raise InputError(
        "a chat template must write the same tokens for a turn whatever "
        f"follows, and turn {number + 1} of {len(messages)} changes: give one "
        "example for each reply, which ends with it."
      )
    reply = tokens[start:stop]
    if end in reply:
      stop -= reply[::-1].index(end)
    elif tokens[stop : stop + 1] == [end]:
      stop += 1
    where[start:stop] = True
  if not where.any():
    raise InputError(
      "an example must hold a reply of the assistant, and none of the "
      f"{len(messages)} turns is one: add a turn with the role 'assistant'."
    )
  return Example(np.asarray(tokens, np.int32), where)


def repeat_examples(
  examples: Sequence[Example], *, seed: int
) -> Iterator[Example]:
  """The examples without end, each epoch in an order of its own.

  Args:
    examples: at least one.
    seed: of the orders.

  Raises:
    InputError: there is no example.
  """
  if not examples:
    raise InputError("examples must hold at least one, got 0: add some.")
  epoch = 0
  while True:
    for index in epoch_order(seed, epoch, len(examples)):
      yield examples[index]
    epoch += 1


def pack_examples(
  examples: Iterable[Example], *, rows: int, row_length: int
) -> Iterator[SupervisedBatch]:
  """Packs examples, in order, into batches of NumPy arrays.

  Each goes into the first row of the batch with room for it. One that fits
  nowhere begins the next batch.

  Args:
    examples: each with a token in the loss.
    rows: rows of a batch.
    row_length: tokens of a row.

  Raises:
    InputError: an example is longer than a row, its arrays have other lengths,
      or no token is in its loss.
  """
  batch = _empty(rows, row_length)
  used = np.zeros(rows, np.int32)
  segments = np.zeros(rows, np.int32)
  for number, example in enumerate(examples):
    _check_example(example, number, row_length)
    length = len(example.tokens)
    if not (used + length <= row_length).any():
      yield batch
      batch = _empty(rows, row_length)
      used[:] = 0
      segments[:] = 0
    row = int(np.argmax(used + length <= row_length))
    at = (row, slice(used[row], used[row] + length))
    segments[row] += 1
    batch.tokens[at] = example.tokens
    batch.segment_ids[at] = segments[row]
    batch.where[at] = example.where
    batch.where[row, used[row]] = False
    used[row] += length
  if used.any():
    yield batch


def _empty(rows: int, row_length: int) -> SupervisedBatch:
  shape = (rows, row_length)
  return SupervisedBatch(
    np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
  )


def _check_example(example: Example, number: int, row_length: int) -> None:
  length = len(example.tokens)
  if length > row_length:
    raise InputError(
      f"an example may hold at most {row_length} tokens (row_length), example "
      f"{number} has {length}: raise row_length or shorten the example."
    )
  if len(example.where) != length:
    raise InputError(
      f"an example's mask must have a value for each of its {length} tokens, "
      f"example {number} has {len(example.where)}: correct the mask."
    )
  if not np.any(example.where[1:]):
    raise InputError(
      "an example must have a token in the loss behind its first one, example "
      f"{number} has none: correct its mask or leave it out."
    )
