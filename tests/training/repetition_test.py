"""Shares of repeated n-grams, by hand."""

import numpy as np
import pytest

from rapo_jax.training import repetition


@pytest.mark.parametrize(
  ("tokens", "share"),
  [
    (np.zeros(100, np.int32), 1 - 1 / 97),  # 97 n-grams, one of them distinct.
    (np.arange(100), 0.0),
    (np.tile(np.arange(10), 10), 1 - 10 / 97),
    (np.zeros(repetition.MIN_NGRAMS + 2, np.int32), 0.0),  # One too few.
    (np.zeros(0, np.int32), 0.0),
  ],
)
def test_share_by_hand(tokens, share):
  assert repetition.repeated_share(tokens) == pytest.approx(share)
