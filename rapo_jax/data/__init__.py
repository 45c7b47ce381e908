"""Questions, prompts and the order in which questions are taken."""

from rapo_jax.data.corpus import load_corpus
from rapo_jax.data.order import batch, epoch_order, updates_per_epoch
from rapo_jax.data.prompts import (
  chat_messages,
  check_prefix_preservation,
  encode_prompt,
  prompt_hash,
  system_prompt,
)
from rapo_jax.data.queries import Query, check_query_ids
from rapo_jax.data.tool_star import load_tool_star

__all__ = [
  "Query",
  "batch",
  "chat_messages",
  "check_prefix_preservation",
  "check_query_ids",
  "encode_prompt",
  "epoch_order",
  "load_corpus",
  "load_tool_star",
  "prompt_hash",
  "system_prompt",
  "updates_per_epoch",
]
