"""Search-R1 (Jin et al., 2025, arXiv 2503.09516): GRPO with a search tool.

    python -m experiments.run --config experiments/configs/search_r1.py \\
        --workdir runs/search_r1 \\
        --config.tasks.search_r1.path=<folder of nq_search> \\
        --config.tasks.search_r1.tools.search.corpus=<folder>/wiki

The authors' settings: five rollouts a question, batches of 512 and minibatches
of 256, learning rate 1e-6, KL (k3) 0.001, no dual clip, three passages a
search, at most two searches; the reward is 1 for an exact match. Ours: the
system prompt and its tags, a malformed call that is answered by the agent
protocol, no forced answer after the last search, and the number of updates.
Not run: no accelerator was available.
"""

from experiments.config import (
  EvaluationConfig,
  ExperimentConfig,
  PolicyConfig,
  ToolsConfig,
  TrainConfig,
)
from rapo_jax.rewards import EXACT_MATCH
from rapo_jax.rollout import RolloutConfig
from rapo_jax.tasks import DataSetTask, SearchSpec
from rapo_jax.training import ObjectiveConfig, OptimizerConfig, UpdateConfig


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="search_r1",
    tasks=(
      DataSetTask(
        "search_r1", reward=EXACT_MATCH, held_out=64, tools=(SearchSpec(),)
      ),
    ),
    policy=PolicyConfig(base="Qwen/Qwen2.5-3B-Instruct"),
    tools=ToolsConfig(search_top_k=3),
    rollout=RolloutConfig(
      dtype="bfloat16",
      num_generations=5,
      num_hybrid=0,
      num_slots=320,
      prefill_rows=32,
      max_prompt_tokens=1024,
      max_response_tokens=4608,
      max_step_tokens=512,
      # Three passages of 500 tokens.
      max_tool_tokens=1536,
      max_tool_calls=2,
      decode_chunk=64,
      insert_chunk=256,
    ),
    objective=ObjectiveConfig(
      clip_epsilon_low=0.2,
      clip_epsilon_high=0.2,
      aggregation="token",
      kl_coef=0.001,
      kl_estimator="k3",
      kl_limit=10.0,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-6),
    update=UpdateConfig(
      queries_per_update=512,
      queries_per_minibatch=256,
      row_length=1024 + 4608,
      rows_per_microbatch=8,
      remat="layer",
    ),
    train=TrainConfig(
      methods=("grpo",),
      seeds=(0,),
      num_updates=500,
      eval_every=50,
      checkpoint_every=50,
      log_trajectories_every=10,
    ),
    evaluation=EvaluationConfig(num_samples=1),
  )
