"""Whether parameters are numbers that one can go on with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def parameter_norm(tree: Any) -> float:
  """Euclidean norm over all floating-point leaves; does not overflow early.

  Args:
    tree: of arrays.

  Returns:
    The norm; NaN or infinite where a leaf is, or where the norm itself is
    beyond float32.
  """
  return float(_norm(_floating(tree)))


def non_finite(tree: Any) -> list[str]:
  """Paths of the leaves that hold NaN or infinity, in the tree's order."""
  finite = jax.device_get(_finite(_floating(tree)))
  return [name for name, ok in finite.items() if not ok]


def _floating(tree: Any) -> dict[str, Array]:
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in paths
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }


@jax.jit
def _norm(leaves: dict[str, Array]) -> Float[Array, ""]:
  wide = [leaf.astype(jnp.float32) for leaf in leaves.values()]
  if not wide:
    return jnp.zeros(())
  largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in wide]))
  # Squares of numbers above 1e19 overflow: they are scaled first.
  scale = jnp.where(largest > 0, largest, 1.0)
  return scale * jnp.sqrt(sum(jnp.sum((leaf / scale) ** 2) for leaf in wide))


@jax.jit
def _finite(leaves: dict[str, Array]) -> dict[str, Array]:
  return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}
