"""The paper's ablations of RAPO beside RAPO, hybrid rollouts alone and GRPO.

    python -m experiments.run --config experiments/configs/ablations.py \\
        --workdir runs/ablations

Three families and five seeds of ten methods: 150 runs of about a minute and a
half on two CPU cores, so some four hours. It goes on where it was stopped;
`--task=multihop` runs one family alone.
"""

from experiments.config import (
  ExperimentConfig,
  TrainConfig,
  miniature_health,
  miniature_optimizer,
  miniature_retrieval,
  miniature_rollout,
  miniature_update,
)
from rapo_jax.tasks.miniature import MiniatureTask
from rapo_jax.tasks.miniature.world import FAMILIES, WorldConfig

METHODS = (
  "grpo",
  "hybrid",
  "rapo",
  "rapo_no_retrieval_reward",
  "rapo_no_shaping",
  "rapo_no_quality",
  "rapo_no_timing",
  "rapo_inverted",
  "rapo_low_entropy_timing",
  "rapo_trajectory",
)


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="ablations",
    tasks=tuple(MiniatureTask(f, world=WorldConfig(seed=1)) for f in FAMILIES),
    retrieval=miniature_retrieval(),
    rollout=miniature_rollout(),
    optimizer=miniature_optimizer(),
    update=miniature_update(),
    train=TrainConfig(
      methods=METHODS, seeds=(0, 1, 2, 3, 4), health=miniature_health()
    ),
  )
