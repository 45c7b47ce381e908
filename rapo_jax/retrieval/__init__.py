"""Step-Trace Buffer, its vector index and the sentence encoder."""

from rapo_jax.retrieval.agent_trajectory import normalized
from rapo_jax.retrieval.breaker import GuardedBuffer
from rapo_jax.retrieval.encoder import SentenceEncoder
from rapo_jax.retrieval.exact_index import ExactIndex
from rapo_jax.retrieval.growing import GrowingBuffer
from rapo_jax.retrieval.index import Index, IndexClass, Neighbors
from rapo_jax.retrieval.policy import (
  Buffer,
  Failed,
  Hit,
  Miss,
  RetrievalConfig,
  choose_hit,
  step_hit,
)
from rapo_jax.retrieval.scann_index import (
  ScannIndex,
  default_index_class,
  load_index,
)
from rapo_jax.retrieval.sentence_folder import Pooling
from rapo_jax.retrieval.step_trace import (
  StepTrace,
  key_text,
  key_texts,
  select_top_k,
  step_traces,
)
from rapo_jax.retrieval.step_trace_buffer import StepTraceBuffer
from rapo_jax.retrieval.store import BufferWriter

__all__ = [
  "Buffer",
  "BufferWriter",
  "ExactIndex",
  "Failed",
  "GrowingBuffer",
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
  "choose_hit",
  "default_index_class",
  "key_text",
  "key_texts",
  "load_index",
  "normalized",
  "select_top_k",
  "step_hit",
  "step_traces",
]
