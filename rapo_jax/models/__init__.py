"""The policy: a decoder, its sampling cache, and Hugging Face exchange."""

from rapo_jax.models.adapter_files import load_adapters, save_adapters
from rapo_jax.models.attention import KV_BLOCK, reads_prefixes
from rapo_jax.models.config import DecoderConfig, LoraConfig, RopeConfig
from rapo_jax.models.decoder import Decoder, KVCache, Remat, nested_group
from rapo_jax.models.export import (
  copy_tokenizer,
  gather,
  save_pretrained,
  tokenizer_digest,
)
from rapo_jax.models.huggingface import (
  check_pretrained,
  end_token_ids,
  fingerprint,
  from_pretrained,
)
from rapo_jax.models.log_probs import (
  HEAD_CHUNK,
  token_log_probs,
  token_loss_sum,
)
from rapo_jax.models.lora import (
  add_adapters,
  merge_adapters,
  trainable,
  with_adapters_of,
  with_trainable,
)

__all__ = [
  "HEAD_CHUNK",
  "KV_BLOCK",
  "Decoder",
  "DecoderConfig",
  "KVCache",
  "LoraConfig",
  "Remat",
  "RopeConfig",
  "add_adapters",
  "check_pretrained",
  "copy_tokenizer",
  "end_token_ids",
  "fingerprint",
  "from_pretrained",
  "gather",
  "load_adapters",
  "merge_adapters",
  "nested_group",
  "reads_prefixes",
  "save_adapters",
  "save_pretrained",
  "token_log_probs",
  "token_loss_sum",
  "tokenizer_digest",
  "trainable",
  "with_adapters_of",
  "with_trainable",
]
