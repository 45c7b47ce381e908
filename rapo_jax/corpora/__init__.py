"""Corpora of passages: read, built, opened and searched."""

from rapo_jax.corpora.builder import CorpusBuilder, Shard
from rapo_jax.corpora.corpus import (
  Corpus,
  open_corpus,
  open_documents,
  retriever_over,
)
from rapo_jax.corpora.passages import (
  Chunking,
  Passage,
  load_corpus,
  read_passages,
)
from rapo_jax.corpora.retrievers import (
  MODES,
  Dense,
  Mode,
  Retriever,
  check_mode,
)

__all__ = [
  "MODES",
  "Chunking",
  "Corpus",
  "CorpusBuilder",
  "Dense",
  "Mode",
  "Passage",
  "Retriever",
  "Shard",
  "check_mode",
  "load_corpus",
  "open_corpus",
  "open_documents",
  "read_passages",
  "retriever_over",
]
