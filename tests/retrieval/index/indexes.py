"""Indexes for tests."""

from rapo_jax import retrieval


class CountedIndex(retrieval.ExactIndex):
  """Tells how often one was built."""

  built = 0

  @classmethod
  def build(cls, vectors, **kwargs):
    CountedIndex.built += 1
    return super().build(vectors, **kwargs)
