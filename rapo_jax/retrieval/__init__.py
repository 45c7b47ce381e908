"""Step-Trace Buffer, its vector index and the sentence encoder."""

from rapo_jax.retrieval.buffer.agent_trajectory import normalized
from rapo_jax.retrieval.buffer.growing import GrowingBuffer
from rapo_jax.retrieval.buffer.policy import (
  Buffer,
  Failed,
  Hit,
  Miss,
  RetrievalConfig,
  choose_hit,
  step_hit,
)
from rapo_jax.retrieval.buffer.step_trace import (
  StepTrace,
  key_text,
  key_texts,
  select_top_k,
  step_traces,
)
from rapo_jax.retrieval.buffer.step_trace_buffer import StepTraceBuffer
from rapo_jax.retrieval.buffer.store import BufferWriter
from rapo_jax.retrieval.encoder.sentence import SentenceEncoder
from rapo_jax.retrieval.encoder.sentence_folder import Pooling
from rapo_jax.retrieval.index.base import Index, IndexClass, Neighbors
from rapo_jax.retrieval.index.exact import ExactIndex
from rapo_jax.retrieval.index.kinds import (
  INDEXES,
  IndexConfig,
  index_class,
  load_index,
)
from rapo_jax.retrieval.index.scann_index import ScannIndex
from rapo_jax.retrieval.serving.breaker import GuardedBuffer

__all__ = [
  "INDEXES",
  "Buffer",
  "BufferWriter",
  "ExactIndex",
  "Failed",
  "GrowingBuffer",
  "GuardedBuffer",
  "Hit",
  "Index",
  "IndexClass",
  "IndexConfig",
  "Miss",
  "Neighbors",
  "Pooling",
  "RetrievalConfig",
  "ScannIndex",
  "SentenceEncoder",
  "StepTrace",
  "StepTraceBuffer",
  "choose_hit",
  "index_class",
  "key_text",
  "key_texts",
  "load_index",
  "normalized",
  "select_top_k",
  "step_hit",
  "step_traces",
]
