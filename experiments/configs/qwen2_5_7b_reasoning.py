"""The paper's reasoning tasks with Qwen2.5-7B-Instruct, on 32 TPU v5p chips.

    python -m experiments.plan \\
        --config experiments/configs/qwen2_5_7b_reasoning.py \\
        --topology v5p:4x4x2
    python -m experiments.run \\
        --config experiments/configs/qwen2_5_7b_reasoning.py \\
        --workdir runs/qwen2_5_7b \\
        --config.data.path=<folder>/train_10k.parquet \\
        --config.data.corpus=<folder>/corpus.jsonl

Batch, budgets, coefficients and learning rate are the paper's (arXiv
2603.03078, section 4); the off-policy agent is Qwen3-14B. The paper reports an
average of 46.7 with GRPO and 51.3 with RAPO over ten data sets after three
epochs of some 10,000 questions. Planned, not run: no TPU has been at hand.
"""

from experiments.config import (
  BufferConfig,
  DataConfig,
  ExperimentConfig,
  MeshConfig,
  PolicyConfig,
  ToolsConfig,
  TrainConfig,
)
from rapo_jax.rollout import RolloutConfig
from rapo_jax.training import OptimizerConfig, UpdateConfig

_QUESTIONS, _EPOCHS, _BATCH = 10_000, 3, 32


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="qwen2_5_7b_reasoning",
    data=DataConfig(source="tool_star", held_out=64),
    policy=PolicyConfig(
      base="Qwen/Qwen2.5-7B-Instruct", off_policy="Qwen/Qwen3-14B"
    ),
    mesh=MeshConfig(tensor=4),
    tools=ToolsConfig(search_top_k=3),
    buffer=BufferConfig(num_trajectories=16, top_k_trajectories=5),
    rollout=RolloutConfig(
      dtype="bfloat16",
      num_generations=16,
      num_hybrid=8,
      num_slots=512,
      prefill_rows=32,
      decode_chunk=64,
      insert_chunk=256,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-6),
    update=UpdateConfig(
      queries_per_update=_BATCH,
      queries_per_minibatch=16,
      row_length=5632,
      rows_per_microbatch=8,
    ),
    train=TrainConfig(
      seeds=(0,),
      num_updates=_EPOCHS * _QUESTIONS // _BATCH,
      eval_every=50,
      checkpoint_every=50,
      log_trajectories_every=10,
    ),
  )
