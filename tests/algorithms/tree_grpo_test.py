"""Tree-GRPO's advantages by hand."""

import numpy as np
import pytest

from rapo_jax.algorithms import ObjectiveConfig
from rapo_jax.algorithms.tree_grpo import TreeAdvantages
from tests.algorithms import signals

SETTINGS = ObjectiveConfig(advantage_std=False)
# Two trees of one question; one leaf of another; one that does not count.
MADE = signals.make(
  [4.0, 2.0, 0.0, 2.0, 5.0, 9.0],
  [0, 0, 0, 0, 1, -1],
  trees=[0, 0, 2, 2, 4, -1],
)
INTER = [2.0, 0.0, -2.0, 0.0, 0.0, 0.0]
INTRA = [1.0, -1.0, -1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
  ("parts", "expected"),
  [
    ({"intra": False}, INTER),
    ({"inter": False}, INTRA),
    ({}, np.add(INTER, INTRA)),
  ],
)
def test_leaves_are_compared_in_question_and_tree(parts, expected):
  actual = TreeAdvantages(**parts)(MADE, SETTINGS)
  np.testing.assert_allclose(actual, expected)


def test_both_parts_are_normalised():
  made = signals.make([1.0, 0.0], [0, 0], trees=[0, 0])
  # (1 - 1/2) / sqrt(1/2), twice.
  actual = TreeAdvantages()(made, ObjectiveConfig(advantage_eps=0.0))
  np.testing.assert_allclose(actual, [2**0.5, -(2**0.5)], rtol=1e-6)
