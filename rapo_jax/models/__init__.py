"""The policy: a decoder, its sampling cache, and Hugging Face exchange."""

from rapo_jax.models.attention import KV_BLOCK
from rapo_jax.models.config import DecoderConfig, RopeConfig
from rapo_jax.models.decoder import Decoder, KVCache, Remat
from rapo_jax.models.export import save_pretrained
from rapo_jax.models.huggingface import from_pretrained
from rapo_jax.models.log_probs import HEAD_CHUNK, token_log_probs

__all__ = [
  "HEAD_CHUNK",
  "KV_BLOCK",
  "Decoder",
  "DecoderConfig",
  "KVCache",
  "Remat",
  "RopeConfig",
  "from_pretrained",
  "save_pretrained",
  "token_log_probs",
]
