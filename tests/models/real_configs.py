"""Published configurations under test, whole and shrunk."""

from typing import Any

from rapo_jax.models.published import (
  LLAMA_3_1_8B,
  LLAMA_3_2_1B,
  LLAMA_3_8B,
  QWEN2_5_3B,
  QWEN2_5_7B,
  QWEN2_5_7B_LONG,
  QWEN3_14B,
)

ALL = {
  "Qwen2.5-3B-Instruct": QWEN2_5_3B,
  "Qwen2.5-7B-Instruct": QWEN2_5_7B,
  "Qwen2.5-7B-Instruct, long": QWEN2_5_7B_LONG,
  "Qwen3-14B": QWEN3_14B,
  "Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
  "Llama-3.1-8B-Instruct": LLAMA_3_1_8B,
  "Llama-3.2-1B-Instruct": LLAMA_3_2_1B,
}

PARAMETERS = {
  "Qwen2.5-3B-Instruct": 3_085_938_688,
  "Qwen2.5-7B-Instruct": 7_615_616_512,
  "Qwen2.5-7B-Instruct, long": 7_615_616_512,
  "Qwen3-14B": 14_768_307_200,
  "Meta-Llama-3-8B-Instruct": 8_030_261_248,
  "Llama-3.1-8B-Instruct": 8_030_261_248,
  "Llama-3.2-1B-Instruct": 1_235_814_400,
}
"""As published, without what is tied."""


def shrunk(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
  """The same model in everything but its sizes, small enough for numerics.

  Grouped heads stay grouped, and where the model is stretched for longer
  sequences, the original length is 16, so that a few dozen tokens show it.
  """
  small = config | {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # Large weights, so that a wrong mask or position shows.
    "initializer_range": 0.2,
    "torch_dtype": "float32",
    # Every token is one of a sequence's, here.
    "bos_token_id": None,
    "eos_token_id": None,
  }
  if "head_dim" in config:
    small["head_dim"] = 16
  if config.get("rope_scaling"):
    small["rope_scaling"] = config["rope_scaling"] | {
      "original_max_position_embeddings": 16
    }
  return small | changes
