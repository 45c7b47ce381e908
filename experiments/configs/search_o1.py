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

import dataclasses

from experiments.config import ExperimentConfig, ToolsConfig
from experiments.configs import evaluation
from rapo_jax.rewards import QA
from rapo_jax.tasks import CondensedSearchSpec, DataSetTask


def get_config() -> ExperimentConfig:
  config = evaluation.get_config()
  return dataclasses.replace(
    config,
    name="search_o1",
    tasks=tuple(
      DataSetTask(name, reward=QA, tools=(CondensedSearchSpec(),))
      for name in ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
    ),
    tools=ToolsConfig(search_top_k=10),
    rollout=dataclasses.replace(
      config.rollout,
      num_slots=64,
      max_response_tokens=8192,
      max_tool_calls=10,
    ),
  )
