"""RAPO's own settings, each swept alone, with 16 rollouts a question.

    python -m experiments.run --config experiments/configs/sweeps.py \\
        --workdir runs/sweeps

The retrieval coefficient a, the shaping coefficient m, hybrid rollouts
N_hybrid and the probability p of a retrieval. Three families and five seeds of
16 methods: 240 runs of some three minutes on two CPU cores, so half a day. It
goes on where it was stopped; `--config.train.seeds=0` takes one seed.
"""

import dataclasses

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

RAPO = ALGORITHMS["rapo"]
METHODS = (
  *variants(RAPO, "objective.retrieval_coef", (0.0, 0.05, 0.1, 0.2)),
  *variants(RAPO, "objective.shaping_coef", (0.0, 0.1, 0.2, 0.4)),
  *variants(RAPO, "rollout.num_hybrid", (2, 4, 8, 12)),
  *variants(RAPO, "rollout.retrieval_prob", (0.25, 0.5, 0.75, 1.0)),
)


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="sweeps",
    tasks=tuple(MiniatureTask(f, world=WorldConfig(seed=1)) for f in FAMILIES),
    retrieval=miniature_retrieval(),
    rollout=dataclasses.replace(
      miniature_rollout(), num_generations=16, num_hybrid=8
    ),
    optimizer=miniature_optimizer(),
    update=miniature_update(),
    train=TrainConfig(
      methods=METHODS, seeds=(0, 1, 2, 3, 4), health=miniature_health()
    ),
  )
