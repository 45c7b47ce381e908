"""Search-o1 (Li et al., 2025, arXiv 2501.05366): no training, one search tool.

The policy searches, and the same model reads what was found and hands on only
what helps. Serve the model under the name "policy" on port 8000, by any server
that speaks OpenAI's protocol. Then:

    python -m experiments.evaluate --config experiments/configs/search_o1.py \\
        --model Qwen/Qwen2.5-7B-Instruct --tasks bamboogle \\
        --output runs/search_o1 \\
        --config.tasks.bamboogle.tools.search.corpus=<folder>/wiki

The authors' limits: ten documents of 3,000 characters a search, and ten
searches on multi-hop questions. Theirs end with a sentence that tells the model
to answer, ours end the trajectory; a repeated query is searched again. The
reader sees the query and not the reasoning before it. The system prompt is the
one that comes along, with the one tool and an example. Not run with such a
model: no accelerator was available.
"""

from experiments.config import (
  EvaluationConfig,
  ExperimentConfig,
  ToolsConfig,
  TrainConfig,
)
from rapo_jax.rewards import QA
from rapo_jax.rollout import RolloutConfig
from rapo_jax.tasks import CondensedSearchSpec, DataSetTask


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="search_o1",
    tasks=tuple(
      DataSetTask(name, reward=QA, tools=(CondensedSearchSpec(),))
      for name in ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
    ),
    tools=ToolsConfig(search_top_k=10),
    rollout=RolloutConfig(
      dtype="bfloat16",
      num_generations=2,
      num_hybrid=0,
      num_slots=64,
      prefill_rows=16,
      max_prompt_tokens=1536,
      max_response_tokens=8192,
      max_tool_calls=10,
      decode_chunk=64,
      insert_chunk=256,
    ),
    train=TrainConfig(methods=("grpo",)),
    evaluation=EvaluationConfig(num_samples=1),
  )
