"""The headline table: RAPO, hybrid rollouts alone and GRPO, three families.

    python -m experiments.run --config experiments/configs/testbed.py \\
        --workdir runs/testbed

Two CPU cores, about an hour. Multi-hop and compute questions of 3 and 4 steps,
web questions of 2 to 4 pages, five seeds of each method from the same base
agent. Expect RAPO at least 5 points ahead of GRPO on the mean, with GRPO's
seeds far apart.
"""

from experiments.config import (
  DataConfig,
  ExperimentConfig,
  TrainConfig,
  miniature_optimizer,
  miniature_retrieval,
  miniature_rollout,
  miniature_update,
)


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="testbed",
    data=DataConfig(families=("multihop", "compute", "web")),
    retrieval=miniature_retrieval(),
    rollout=miniature_rollout(),
    optimizer=miniature_optimizer(),
    update=miniature_update(),
    train=TrainConfig(
      methods=("grpo", "hybrid", "rapo"),
      seeds=(0, 1, 2, 3, 4),
    ),
  )
