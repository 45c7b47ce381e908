"""RAPO beside GRPO on the multi-hop family of the miniature world.

    make quickstart
    python -m experiments.run --config experiments/configs/quickstart.py \\
        --workdir runs/quickstart

Two CPU cores, at most 12 minutes. Two seeds a method show what to expect and
no more: GRPO's take-off is a matter of luck, and intervals that mean something
need the seeds of `testbed.py`. Expect RAPO ahead on the mean.
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


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="quickstart",
    retrieval=miniature_retrieval(),
    rollout=miniature_rollout(),
    optimizer=miniature_optimizer(),
    update=miniature_update(),
    train=TrainConfig(health=miniature_health()),
  )
