from __future__ import annotations

import numpy as np
import pytest

from rapo_jax.corpora import check_mode, retrievers


def test_reciprocal_ranks_are_added():
  # 7: 1/62 + 1/61; 3: 1/61; 5: 1/62; 9: 1/63 twice.
  rankings = [np.array([3, 7, 9, -1]), np.array([7, 5, 9, -1])]
  assert retrievers.fused(rankings, 3).tolist() == [7, 9, 3]
  assert retrievers.fused(rankings, 6).tolist() == [7, 9, 3, 5, -1, -1]


def test_ties_go_to_the_lower_row():
  rankings = [np.array([8, 2]), np.array([2, 8]), np.array([5])]
  assert retrievers.fused(rankings, 3).tolist() == [2, 8, 5]


class Fixed:
  def __init__(self, ids):
    self.ids, self.asked = ids, []

  def search(self, queries, num_passages, /):
    self.asked.append(num_passages)
    return np.array([self.ids[:num_passages]] * len(queries), np.int64)


def test_each_way_gives_more_than_is_asked_for():
  first, second = Fixed([1, 2] + [-1] * 22), Fixed([2, 3] + [-1] * 22)
  ids = retrievers.Hybrid([first, second]).search(["a", "b"], 1)
  assert ids.tolist() == [[2], [2]]
  assert first.asked == second.asked == [24]


def test_an_unknown_mode():
  with pytest.raises(ValueError, match="one of dense, bm25, hybrid, got 'x'"):
    check_mode("x")
