"""Questions, prompts and the order in which questions are taken."""

from rapo_jax.data.chat import (
  PROMPT_DATE,
  TextEncoder,
  check_vocabulary,
  end_ids,
  template_of,
)
from rapo_jax.data.order import batch, epoch_order, updates_per_epoch
from rapo_jax.data.prompts import (
  chat_messages,
  check_prefix_preservation,
  encode_prompt,
  fill_system_prompt,
  prompt_hash,
  system_prompt,
)
from rapo_jax.data.queries import Query, check_query_ids
from rapo_jax.data.tool_star import load_tool_star

__all__ = [
  "PROMPT_DATE",
  "Query",
  "TextEncoder",
  "batch",
  "chat_messages",
  "check_prefix_preservation",
  "check_query_ids",
  "check_vocabulary",
  "encode_prompt",
  "end_ids",
  "epoch_order",
  "fill_system_prompt",
  "load_tool_star",
  "prompt_hash",
  "system_prompt",
  "template_of",
  "updates_per_epoch",
]
