"""Compares exact search over eight devices with one; writes "same"."""

import sys

import jax
import numpy as np

from rapo_jax.models import sharding
from rapo_jax.retrieval import ExactIndex


def main() -> None:
  assert len(jax.devices()) == 8
  meshes = (
    (sharding.make_mesh(data=8), "data", 8),
    (sharding.make_mesh(data=2, fsdp=4), "fsdp", 4),
  )
  rng = np.random.default_rng(0)
  for n in (0, 1, 5, 100, 2_000):
    vectors = rng.normal(size=(n, 16)).astype(np.float32)
    # Ties within a shard and across shards.
    vectors[: n // 2] = vectors[n // 2 : n // 2 + n // 2]
    queries = rng.normal(size=(40, 16)).astype(np.float32)
    alone = ExactIndex.build(vectors)
    for mesh, axis, shards in meshes:
      index = ExactIndex(vectors, mesh=mesh, axis=axis)
      assert index.parameters["shards"] == shards
      spec = index._on_device.sharding.spec
      assert spec[0] == axis, spec
      for k in (1, 3, n + 2):
        expected, found = (i.search(queries, k) for i in (alone, index))
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores)
  sys.stdout.write("same")


if __name__ == "__main__":
  main()
