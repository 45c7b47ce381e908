"""RAPO with retrievals that are replaced by random traces, ever more often.

    python -m experiments.run --config experiments/configs/noise.py \\
        --workdir runs/noise

Six probabilities from 0 to 1, three families and five seeds: 90 runs of about
a minute and a half on two CPU cores. It goes on where it was stopped.
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
from rapo_jax.algorithms import ALGORITHMS, variants
from rapo_jax.tasks.miniature import MiniatureTask
from rapo_jax.tasks.miniature.world import FAMILIES, WorldConfig

METHODS = variants(
  ALGORITHMS["rapo"], "retrieval.noise_prob", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
)


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="noise",
    tasks=tuple(MiniatureTask(f, world=WorldConfig(seed=1)) for f in FAMILIES),
    retrieval=miniature_retrieval(),
    rollout=miniature_rollout(),
    optimizer=miniature_optimizer(),
    update=miniature_update(),
    train=TrainConfig(
      methods=METHODS, seeds=(0, 1, 2, 3, 4), health=miniature_health()
    ),
  )
