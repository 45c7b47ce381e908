"""Where it does not help: multi-hop questions of 2 to 4 steps, mixed.

    python -m experiments.run --config experiments/configs/testbed_control.py \\
        --workdir runs/testbed_control

Two CPU cores, about 20 minutes, five seeds a method.
The world is that of `testbed.py`.
The base agent succeeds on the easy ones often enough for GRPO to take off by
itself. The negative control: expect no advantage (measured: RAPO 2.8 points
behind, 95 % interval -5.0 to -0.7).
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
from rapo_jax.tasks.miniature.world import WorldConfig


def get_config() -> ExperimentConfig:
  return ExperimentConfig(
    name="testbed_control",
    tasks=(
      MiniatureTask(
        "multihop", world=WorldConfig(seed=1, multihop_hops=(2, 3, 4))
      ),
    ),
    retrieval=miniature_retrieval(),
    rollout=miniature_rollout(),
    optimizer=miniature_optimizer(),
    update=miniature_update(),
    train=TrainConfig(seeds=(0, 1, 2, 3, 4), health=miniature_health()),
  )
