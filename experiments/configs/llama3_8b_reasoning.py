"""The paper's reasoning tasks with Llama-3-8B-Instruct, on 32 TPU v5p chips.

    python -m experiments.plan \\
        --config experiments/configs/llama3_8b_reasoning.py \\
        --topology v5p:4x4x2
    python -m experiments.run \\
        --config experiments/configs/llama3_8b_reasoning.py \\
        --workdir runs/llama3_8b \\
        --config.tasks.tool_star.path=<folder>/train_10k.parquet \\
        --config.tasks.tool_star.tools.search.corpus=<folder>/corpus.jsonl

Batch, budgets, coefficients and learning rate are the paper's (arXiv
2603.03078, section 4); the off-policy agent is Qwen3-14B. The paper reports an
average of 40.6 with GRPO and 47.6 with RAPO over ten data sets after three
epochs of some 10,000 questions. Planned (docs/scale.md), not run: no TPU was
available.
"""

from experiments.config import ExperimentConfig, paper_reasoning


def get_config() -> ExperimentConfig:
  return paper_reasoning(
    "llama3_8b_reasoning", "meta-llama/Meta-Llama-3-8B-Instruct", tensor=4
  )
