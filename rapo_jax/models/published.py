"""`config.json` of published models, as their authors wrote them."""

from typing import Any

QWEN2_5_3B: dict[str, Any] = {
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "initializer_range": 0.02,
  "intermediate_size": 11008,
  "max_position_embeddings": 32768,
  "max_window_layers": 70,
  "model_type": "qwen2",
  "num_attention_heads": 16,
  "num_hidden_layers": 36,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 32768,
  "tie_word_embeddings": True,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.43.1",
  "use_cache": True,
  "use_sliding_window": False,
  "vocab_size": 151936,
}
"""Qwen2.5-3B-Instruct."""

QWEN2_5_0_5B: dict[str, Any] = QWEN2_5_3B | {
  "hidden_size": 896,
  "intermediate_size": 4864,
  "max_window_layers": 21,
  "num_attention_heads": 14,
  "num_hidden_layers": 24,
}
"""Qwen2.5-0.5B-Instruct."""

QWEN2_5_7B: dict[str, Any] = {
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "hidden_act": "silu",
  "hidden_size": 3584,
  "initializer_range": 0.02,
  "intermediate_size": 18944,
  "max_position_embeddings": 32768,
  "max_window_layers": 28,
  "model_type": "qwen2",
  "num_attention_heads": 28,
  "num_hidden_layers": 28,
  "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 131072,
  "tie_word_embeddings": False,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.43.1",
  "use_cache": True,
  "use_sliding_window": False,
  "vocab_size": 152064,
}
"""Qwen2.5-7B-Instruct."""

QWEN2_5_7B_LONG: dict[str, Any] = QWEN2_5_7B | {
  "rope_scaling": {
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "type": "yarn",
  },
}
"""The same with what its model card adds for inputs past 32,768 tokens."""

QWEN3_14B: dict[str, Any] = {
  "architectures": ["Qwen3ForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 5120,
  "initializer_range": 0.02,
  "intermediate_size": 17408,
  "max_position_embeddings": 40960,
  "max_window_layers": 40,
  "model_type": "qwen3",
  "num_attention_heads": 40,
  "num_hidden_layers": 40,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": None,
  "tie_word_embeddings": False,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.51.0",
  "use_cache": True,
  "use_sliding_window": False,
  "vocab_size": 151936,
}
"""Qwen3-14B."""

LLAMA_3_8B: dict[str, Any] = {
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "eos_token_id": 128009,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 8192,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": None,
  "rope_theta": 500000.0,
  "tie_word_embeddings": False,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.40.0.dev0",
  "use_cache": True,
  "vocab_size": 128256,
}
"""Meta-Llama-3-8B-Instruct."""

LLAMA_3_1_8B: dict[str, Any] = LLAMA_3_8B | {
  "eos_token_id": [128001, 128008, 128009],
  "max_position_embeddings": 131072,
  "mlp_bias": False,
  "rope_scaling": {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
  "transformers_version": "4.42.3",
}
"""Llama-3.1-8B-Instruct."""

LLAMA_3_2_1B: dict[str, Any] = LLAMA_3_1_8B | {
  "head_dim": 64,
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "num_hidden_layers": 16,
  "rope_scaling": {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  },
  "tie_word_embeddings": True,
  "transformers_version": "4.45.0.dev0",
}
"""Llama-3.2-1B-Instruct."""

CONFIGS = {
  "Qwen/Qwen2.5-0.5B-Instruct": QWEN2_5_0_5B,
  "Qwen/Qwen2.5-3B-Instruct": QWEN2_5_3B,
  "Qwen/Qwen2.5-7B-Instruct": QWEN2_5_7B,
  "Qwen/Qwen3-14B": QWEN3_14B,
  "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
  "meta-llama/Llama-3.1-8B-Instruct": LLAMA_3_1_8B,
  "meta-llama/Llama-3.2-1B-Instruct": LLAMA_3_2_1B,
}
"""By the name on the hub. Shapes are needed where no hub can be reached."""
