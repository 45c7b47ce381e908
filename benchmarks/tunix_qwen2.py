"""google-tunix's Qwen2 in a problem's shape; runs in its environment."""

from __future__ import annotations

from collections.abc import Mapping

from tunix.models.qwen2 import model as qwen2


def model_config(shape: Mapping[str, int]) -> qwen2.ModelConfig:
  """Its configuration, from the names and sizes of ours."""
  return qwen2.ModelConfig(
    num_layers=shape["num_layers"],
    vocab_size=shape["vocab_size"],
    embed_dim=shape["hidden_size"],
    hidden_dim=shape["intermediate_size"],
    num_heads=shape["num_heads"],
    head_dim=shape["head_dim"],
    num_kv_heads=shape["num_kv_heads"],
    rope_theta=10_000,
    norm_eps=1e-6,
    use_tied_embedding=True,
  )
