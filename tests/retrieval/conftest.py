import pytest

from rapo_jax import retrieval


@pytest.fixture(scope="session")
def encoder():
  """The real encoder, loaded once; its programs compile as they are needed."""
  return retrieval.SentenceEncoder.from_pretrained()
