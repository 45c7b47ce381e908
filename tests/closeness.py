"""Whether numbers are the same up to rounding, on any processor.

Other instruction sets round the terms of a sum in another order. The error
grows with the terms, which may be larger than the sum. So a difference is
divided by the largest number of all that is compared.
"""

import math

import jax
import numpy as np


def relative_gap(got, expected):
  """Largest difference of two trees, as a share of the largest number.

  Args:
    got: tree of arrays.
    expected: tree of the same structure and shapes.

  Returns:
    max |got - expected| / max |expected|, each over all leaves; NaN if a leaf
    holds one. 0 if both trees are 0 everywhere.
  """
  pairs = [
    (np.asarray(ours, np.float64), np.asarray(theirs, np.float64))
    for ours, theirs in zip(
      jax.tree.leaves(got), jax.tree.leaves(expected), strict=True
    )
  ]
  for ours, theirs in pairs:
    assert ours.shape == theirs.shape, f"{ours.shape} is not {theirs.shape}"
  gap = _largest([ours - theirs for ours, theirs in pairs])
  largest = _largest([theirs for _, theirs in pairs])
  return gap and (gap / largest if largest else math.inf)


def assert_close(got, expected, *, tolerance=3e-5):
  """Checks that two trees of arrays are equal up to rounding.

  Args:
    got: tree of arrays.
    expected: tree of the same structure and shapes.
    tolerance: largest `relative_gap`. float32 keeps 6e-8, and a few
      layers lose two digits of it.
  """
  structure = jax.tree.structure(expected)
  assert jax.tree.structure(got) == structure, "the structures differ"
  gap = relative_gap(got, expected)
  # Not `gap > tolerance`: NaN is not close.
  assert gap <= tolerance, f"they differ by {gap:.2g} of the largest number"


def _largest(arrays):
  # NumPy's maximum, unlike Python's, keeps a NaN.
  return float(np.max([0.0, *(np.max(np.abs(a)) for a in arrays if a.size)]))
