"""What `experiments.evaluate` asks with, unless another config is named.

    python -m experiments.evaluate --model Qwen/Qwen2.5-3B-Instruct \\
        --tasks gsm8k,math500 --output runs/evaluated

The paper's budgets (arXiv 2603.03078, section 4): 4,096 response tokens and
five tool calls. One sample a question at temperature 1, and a greedy one. Slots
and chunks are for one device with 80 GB; nothing has been measured with it.
"""

from experiments.config import (
  EvaluationConfig,
  ExperimentConfig,
  ToolsConfig,
  TrainConfig,
)
from rapo_jax.rollout import RolloutConfig


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="evaluation",
    tools=ToolsConfig(search_top_k=3),
    rollout=RolloutConfig(
      dtype="bfloat16",
      num_generations=2,
      num_hybrid=0,
      num_slots=128,
      prefill_rows=16,
      max_prompt_tokens=1536,
      max_response_tokens=4096,
      max_tool_calls=5,
      decode_chunk=64,
      insert_chunk=256,
    ),
    train=TrainConfig(methods=("grpo",)),
    evaluation=EvaluationConfig(num_samples=1),
  )
