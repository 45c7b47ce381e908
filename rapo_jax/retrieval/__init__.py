"""Step-Trace Buffer, its vector index and the sentence encoder."""

from rapo_jax.retrieval.breaker import GuardedBuffer
from rapo_jax.retrieval.encoder import SentenceEncoder
from rapo_jax.retrieval.exact_index import ExactIndex
from rapo_jax.retrieval.index import Index, IndexClass, Neighbors
from rapo_jax.retrieval.scann_index import (
  ScannIndex,
  default_index_class,
  load_index,
)
from rapo_jax.retrieval.sentence_folder import Pooling
from rapo_jax.retrieval.step_trace_buffer import (
  Failed,
  Hit,
  Miss,
  RetrievalConfig,
  StepTrace,
  StepTraceBuffer,
  key_text,
  select_top_k,
  step_traces,
)

__all__ = [
  "ExactIndex",
  "Failed",
  "GuardedBuffer",
  "Hit",
  "Index",
  "IndexClass",
  "Miss",
  "Neighbors",
  "Pooling",
  "RetrievalConfig",
  "ScannIndex",
  "SentenceEncoder",
  "StepTrace",
  "StepTraceBuffer",
  "default_index_class",
  "key_text",
  "load_index",
  "select_top_k",
  "step_traces",
]
