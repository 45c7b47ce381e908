"""Tests that the search tool and the buffer find the right text."""

import pytest
from absl.testing import absltest, parameterized

from rapo_jax.retrieval import SentenceEncoder
from rapo_jax.tasks.miniature import findability
from rapo_jax.tasks.miniature import world as world_lib

WORLD = world_lib.make_world(world_lib.WorldConfig())


class FindabilityTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.encoder = SentenceEncoder.from_pretrained()

  @parameterized.parameters("multihop", "web")
  def test_search(self, family):
    # All pairs of four relations; ten take three times as long.
    world = world_lib.make_world(world_lib.WorldConfig(num_relations=4))
    accuracy = findability.search_accuracy(world, family, self.encoder)
    self.assertGreaterEqual(accuracy, 0.98)

  @parameterized.parameters(*world_lib.FAMILIES)
  def test_nearest_key(self, family):
    accuracy = findability.key_accuracy(WORLD.train[family][:16], self.encoder)
    self.assertGreaterEqual(accuracy, 0.98)

  def test_a_family_without_documents(self):
    with pytest.raises(ValueError, match="use multihop or web"):
      findability.search_accuracy(WORLD, "compute", self.encoder)


if __name__ == "__main__":
  absltest.main()
