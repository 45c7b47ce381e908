"""Step-Trace Buffer, its vector index and the sentence encoder."""

from rapo_jax.retrieval.encoder import SentenceEncoder

__all__ = ["SentenceEncoder"]
