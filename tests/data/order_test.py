from __future__ import annotations

import numpy as np
import pytest

from rapo_jax.data import order
from rapo_jax.errors import InputError


def test_an_epoch_holds_each_question_once():
  batches = [order.batch(0, update, 4, 12) for update in range(3)]
  assert sorted(np.concatenate(batches)) == list(range(12))


def test_what_does_not_fill_a_batch_is_left_out_and_differs_by_epoch():
  left_out = []
  for epoch in range(4):
    seen = np.concatenate(
      [order.batch(3, 3 * epoch + i, 4, 14) for i in (0, 1, 2)]
    )
    assert len(set(seen.tolist())) == 12
    left_out.append(frozenset(range(14)) - set(seen.tolist()))
  assert len(set(left_out)) > 1


def test_it_depends_on_seed_and_epoch_and_on_nothing_else():
  np.random.seed(1)
  first = order.batch(5, 7, 8, 64)
  np.random.seed(2)
  np.testing.assert_array_equal(first, order.batch(5, 7, 8, 64))
  assert not np.array_equal(first, order.batch(6, 7, 8, 64))
  assert not np.array_equal(
    order.epoch_order(5, 0, 64), order.epoch_order(5, 1, 64)
  )


def test_batches_that_are_taken_are_those_of_the_updates():
  at = order.place(0, 4, 14)
  for update in range(7):
    assert at[1] in (order.place(update, 4, 14).position, 12)
    chosen, at = order.take(5, at, 4, 14)
    np.testing.assert_array_equal(chosen, order.batch(5, update, 4, 14))


def test_smaller_batches_leave_nothing_out():
  taken = []
  at = order.place(0, 4, 12)
  for count in (4, 2, 2, 3, 1):
    chosen, at = order.take(5, at, count, 12)
    taken += chosen.tolist()
  assert taken == order.epoch_order(5, 0, 12).tolist()
  assert order.take(5, at, 12, 12)[0].tolist() == (
    order.epoch_order(5, 1, 12).tolist()
  )
  with pytest.raises(InputError, match="batch_size must be from 1"):
    order.take(5, at, 13, 12)


def test_the_order_is_pinned():
  # A change would make a resumed run go on with other questions.
  assert order.epoch_order(0, 0, 8).tolist() == PINNED


PINNED = [6, 3, 5, 0, 7, 2, 1, 4]


@pytest.mark.parametrize("batch_size", [0, 9])
def test_a_batch_must_fit(batch_size: int):
  with pytest.raises(ValueError, match=f"got {batch_size}"):
    order.batch(0, 0, batch_size, 8)


@pytest.mark.parametrize(("seed", "update"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(seed: int, update: int):
  with pytest.raises(ValueError, match=">= 0"):
    order.batch(seed, update, 2, 8)
