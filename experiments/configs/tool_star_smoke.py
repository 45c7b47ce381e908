"""Two updates on the real Tool-Star questions, with a random tiny Qwen2.

    python -m experiments.run --config experiments/configs/tool_star_smoke.py \\
        --workdir runs/tool_star_smoke \\
        --config.tasks.tool_star.path=<...>/train_10k.parquet

Two CPU cores, a few minutes. Shows that the real prompts, tools and file layout
go through every stage; a random model earns the reward of a broken format, -1.
`--config.tasks.tool_star.tools.search.corpus=<...>.jsonl` gives the search tool
documents.
"""

from experiments.config import (
  BufferConfig,
  EvaluationConfig,
  ExperimentConfig,
  GrowConfig,
  ToolsConfig,
  TrainConfig,
)
from rapo_jax.rollout import RolloutConfig
from rapo_jax.tasks import DataSetTask
from rapo_jax.training import OptimizerConfig, UpdateConfig


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="tool_star_smoke",
    tasks=(DataSetTask("tool_star", limit=16, held_out=8),),
    tools=ToolsConfig(search_top_k=3),
    # The random agent fills no buffer, and an empty one has to be able to grow.
    buffer=BufferConfig(
      num_trajectories=2, top_k_trajectories=1, grow=GrowConfig()
    ),
    rollout=RolloutConfig(
      num_generations=4,
      num_hybrid=2,
      num_slots=16,
      prefill_rows=4,
      max_prompt_tokens=1536,
      max_response_tokens=512,
      max_step_tokens=128,
      max_tool_tokens=256,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-6),
    update=UpdateConfig(
      queries_per_update=4,
      queries_per_minibatch=2,
      row_length=2048,
      rows_per_microbatch=2,
    ),
    train=TrainConfig(
      seeds=(0,), num_updates=2, eval_every=1, checkpoint_every=1
    ),
    evaluation=EvaluationConfig(num_samples=1),
  )
