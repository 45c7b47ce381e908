"""Tool-Star (Dong et al., 2025, arXiv 2505.16410): a cold start, then GRPO.

Two runs. The first learns from trajectories of the off-policy agent:

    python -m experiments.run --config experiments/configs/tool_star.py \\
        --workdir runs/cold --config.train.methods=sft \\
        --config.optimizer.learning_rate=7e-6 \\
        --config.tasks.tool_star.path=<folder>/train_10k.parquet \\
        --config.tasks.tool_star.tools.search.corpus=<folder>/corpus.jsonl

The second goes on from its policy with reinforcement learning:

    python -m experiments.run --config experiments/configs/tool_star.py \\
        --workdir runs/tool_star \\
        --config.policy.base=runs/cold/train/tool_star/sft-seed0/policy \\
        --config.tasks.tool_star.path=<folder>/train_10k.parquet \\
        --config.tasks.tool_star.tools.search.corpus=<folder>/corpus.jsonl

The authors' settings: search and python, eight rollouts a question, batches of
128 and minibatches of 16, no KL, and the recipe's reward, which pays for both
tools. Their cold start has 54,000 traces of its own: hand them in with
`python -m experiments.buffer import` and buffer.path. Their self-critic stage
(DPO) is left out. Not run: no accelerator was available.
"""

from experiments.config import (
  BufferConfig,
  EvaluationConfig,
  ExperimentConfig,
  PolicyConfig,
  ToolsConfig,
  TrainConfig,
)
from rapo_jax.rollout import RolloutConfig
from rapo_jax.tasks import DataSetTask
from rapo_jax.training import ObjectiveConfig, OptimizerConfig, UpdateConfig


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="tool_star",
    tasks=(DataSetTask("tool_star", held_out=64),),
    policy=PolicyConfig(
      base="Qwen/Qwen2.5-3B-Instruct", off_policy="Qwen/Qwen3-14B"
    ),
    tools=ToolsConfig(search_top_k=3),
    buffer=BufferConfig(num_trajectories=16, top_k_trajectories=5),
    rollout=RolloutConfig(
      dtype="bfloat16",
      num_generations=8,
      num_hybrid=0,
      num_slots=512,
      prefill_rows=32,
      max_prompt_tokens=1536,
      max_response_tokens=4096,
      max_tool_calls=5,
      decode_chunk=64,
      insert_chunk=256,
    ),
    objective=ObjectiveConfig(
      clip_epsilon_low=0.2,
      clip_epsilon_high=0.2,
      dual_clip=3.0,
      aggregation="token",
    ),
    optimizer=OptimizerConfig(learning_rate=1e-6),
    update=UpdateConfig(
      queries_per_update=128,
      queries_per_minibatch=16,
      row_length=1536 + 4096,
      rows_per_microbatch=8,
      remat="layer",
    ),
    train=TrainConfig(
      methods=("grpo",),
      seeds=(0,),
      # Three epochs of some 10,000 questions.
      num_updates=234,
      eval_every=50,
      checkpoint_every=50,
      log_trajectories_every=10,
    ),
    evaluation=EvaluationConfig(num_samples=1),
  )
