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

import dataclasses

from experiments.config import (
  EvaluationConfig,
  ExperimentConfig,
  paper_reasoning,
)
from rapo_jax.training import ObjectiveConfig


def get_config() -> ExperimentConfig:
  # Agents, task, tools and budgets are those of RAPO's reasoning tasks.
  config = paper_reasoning("tool_star", "Qwen/Qwen2.5-3B-Instruct", tensor=1)
  return dataclasses.replace(
    config,
    rollout=dataclasses.replace(
      config.rollout, num_generations=8, num_hybrid=0
    ),
    objective=ObjectiveConfig(
      clip_epsilon_low=0.2,
      clip_epsilon_high=0.2,
      dual_clip=3.0,
      aggregation="token",
    ),
    update=dataclasses.replace(config.update, queries_per_update=128),
    train=dataclasses.replace(
      config.train,
      methods=("grpo",),
      # Three epochs of some 10,000 questions.
      num_updates=234,
    ),
    evaluation=EvaluationConfig(num_samples=1),
  )
