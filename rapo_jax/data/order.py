"""In which order questions are trained on: a function of the update's number.

There is no cursor to save: update `u` takes batch `u mod n` of epoch
`u div n`, with `n = num_queries div batch_size` batches an epoch. A question
comes at most once in an epoch, and so in a batch. The `num_queries mod
batch_size` questions at the end of an epoch's order are left out of that epoch;
each epoch has an order of its own, so they are others every time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rapo_jax.errors import InputError


def updates_per_epoch(batch_size: int, num_queries: int) -> int:
  """Number of whole batches in an epoch.

  Raises:
    InputError: unless 1 <= batch_size <= num_queries.
  """
  if not 1 <= batch_size <= num_queries:
    raise InputError(
      f"batch_size must be from 1 to num_queries={num_queries}, got "
      f"{batch_size}; take a smaller batch or more questions"
    )
  return num_queries // batch_size


def epoch_order(
  seed: int, epoch: int, num_queries: int
) -> Int[np.ndarray, " N"]:
  """Indices of all questions in the order of one epoch, shuffled."""
  # RandomState's algorithms are frozen; Generator's may change with NumPy, and
  # with them what a resumed run trains on.
  bits = np.random.MT19937(np.random.SeedSequence([seed, epoch]))
  return np.random.RandomState(bits).permutation(num_queries).astype(np.int64)


class Place(NamedTuple):
  """Where the questions of a run go on.

  Attributes:
    epoch: number of the epoch.
    position: in its order, of the question that is next.
  """

  epoch: int
  position: int


def place(update: int, batch_size: int, num_queries: int) -> Place:
  """Where the batch of an update begins, see `batch`."""
  epoch, index = divmod(update, updates_per_epoch(batch_size, num_queries))
  return Place(epoch, index * batch_size)


def take(
  seed: int, at: Place, count: int, num_queries: int
) -> tuple[Int[np.ndarray, " C"], Place]:
  """The next questions, however many, and where those after them begin.

  Batches of one size that are taken one after the other are those of `batch`.
  Where an epoch has fewer left, they are left out of it.

  Args:
    seed: seed of the run, >= 0.
    at: where to go on.
    count: questions to take.
    num_queries: questions in all.

  Raises:
    InputError: unless 1 <= count <= num_queries.
  """
  updates_per_epoch(count, num_queries)
  if at.position + count > num_queries:
    at = Place(at.epoch + 1, 0)
  order = epoch_order(seed, at.epoch, num_queries)
  chosen = order[at.position : at.position + count]
  return chosen, Place(at.epoch, at.position + count)


def batch(
  seed: int, update: int, batch_size: int, num_queries: int
) -> Int[np.ndarray, " B"]:
  """Indices of the questions of one update.

  Args:
    seed: seed of the run, >= 0.
    update: number of updates before this one, >= 0.
    batch_size: questions in a batch.
    num_queries: questions in all.

  Returns:
    int64 indices, all different.

  Raises:
    InputError: for a value out of range.
  """
  if seed < 0 or update < 0:
    raise InputError(f"seed and update must be >= 0, got {seed} and {update}")
  epoch, index = divmod(update, updates_per_epoch(batch_size, num_queries))
  order = epoch_order(seed, epoch, num_queries)
  return order[index * batch_size : (index + 1) * batch_size]
