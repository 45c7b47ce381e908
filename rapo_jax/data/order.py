"""In which order questions are trained on: a function of the update's number.

There is no cursor to save: update `u` takes batch `u mod n` of epoch
`u div n`, with `n = num_queries div batch_size` batches an epoch. A question
comes at most once in an epoch, and so in a batch. The `num_queries mod
batch_size` questions at the end of an epoch's order are left out of that epoch;
each epoch has an order of its own, so they are others every time.
"""

from __future__ import annotations

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
