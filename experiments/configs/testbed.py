"""The headline table: RAPO, hybrid rollouts alone and GRPO, three families.

    python -m experiments.run --config experiments/configs/testbed.py \\
        --workdir runs/testbed

Two CPU cores, about an hour. Multi-hop and compute questions of 3 and 4 steps,
web questions of 2 to 4 pages, five seeds of each method from the same base
agent. Expect RAPO far ahead of GRPO on multi-hop questions and behind it on
compute (measured on the mean: 67.0 % against 67.7 %), with GRPO's seeds far
apart. The study `guidance` adds a rule when to retrieve, which is ahead.

Families can run side by side, each on a core of its own:

    taskset -c 0 python -m experiments.run --task=multihop <the same> &
    taskset -c 1 python -m experiments.run --task=compute <the same>

The world is not the default one, which settings were chosen on: nobody had
seen its questions before the table was made.
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


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="testbed",
    tasks=tuple(MiniatureTask(f, world=WorldConfig(seed=1)) for f in FAMILIES),
    retrieval=miniature_retrieval(),
    rollout=miniature_rollout(),
    optimizer=miniature_optimizer(),
    update=miniature_update(),
    train=TrainConfig(
      methods=("grpo", "hybrid", "rapo"),
      seeds=(0, 1, 2, 3, 4),
      health=miniature_health(),
    ),
  )
