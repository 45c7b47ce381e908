"""The comparison that other tests rest on."""

import numpy as np
import pytest

from tests.closeness import assert_close, relative_gap


def test_the_gap_is_a_share_of_the_largest_number():
  # 3 apart beside a largest of 60, in whatever leaf.
  assert relative_gap([np.array([1.0, 4.0])], [np.array([1.0, 1.0])]) == 3
  got = {"a": np.array([4.0]), "b": np.array([-60.0])}
  expected = {"a": np.array([1.0]), "b": np.array([-60.0])}
  assert relative_gap(got, expected) == 3 / 60
  assert relative_gap(np.zeros(3), np.zeros(3)) == 0
  assert relative_gap(np.ones(1), np.zeros(1)) == np.inf


@pytest.mark.parametrize(
  ("got", "expected"),
  [
    (np.array([1.0, 1.001]), np.array([1.0, 1.0])),
    (np.array([np.nan, 1.0]), np.array([1.0, 1.0])),
    (np.array([1.0]), np.array([np.nan])),
    ([np.ones(1), np.array([np.nan])], [np.ones(1), np.ones(1)]),
    (np.array([1e-9]), np.array([0.0])),
    (np.ones(3), np.ones((1, 3))),
    ([np.ones(3)], (np.ones(3),)),
  ],
)
def test_what_is_not_close_fails(got, expected):
  with np.errstate(divide="ignore"), pytest.raises(AssertionError):
    assert_close(got, expected)


def test_rounding_passes_at_any_scale():
  for scale in (1e-6, 1.0, 1e6):
    expected = scale * np.arange(5.0)
    assert_close(expected + 1e-6 * scale, expected)
