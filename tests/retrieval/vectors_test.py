"""What the shared steps of every index check and compute."""

import numpy as np
import pytest

from rapo_jax.retrieval.index import base as index_lib


@pytest.mark.parametrize(
  ("vectors", "message"),
  [
    (np.zeros(4, np.float32), r"shape \[number, dimension\], got \(4,\)"),
    (np.zeros((4, 0), np.float32), r"shape \[number, dimension\]"),
    (np.zeros((4, 2), np.int32), "floating point, got int32"),
  ],
)
def test_what_is_not_vectors_is_refused(vectors, message):
  with pytest.raises(ValueError, match=message):
    index_lib.checked_vectors("vectors", vectors)


def test_rank_orders_by_score_then_id_and_pads():
  vectors = np.array([[1, 0], [0, 1], [1, 0], [0.5, 0]], np.float32)
  queries = np.array([[2, 0], [0, 1]], np.float32)
  # Scores of query 0 are 2, 0, 2, 1 and of query 1 are 0, 1, 0, 0.
  candidates = np.array([[3, 2, 0], [-1, 1, 3]])
  neighbors = index_lib.rank(vectors, queries, candidates, 4)
  np.testing.assert_array_equal(neighbors.ids, [[0, 2, 3, -1], [1, 3, -1, -1]])
  inf = np.inf
  np.testing.assert_array_equal(
    neighbors.scores, [[2, 2, 1, -inf], [1, 0, -inf, -inf]]
  )
