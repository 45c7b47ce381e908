"""Training: experience, packed batches, the update, checkpoints."""

from rapo_jax.algorithms import ObjectiveConfig
from rapo_jax.training.checkpoints import BrokenCheckpointError, Checkpoints
from rapo_jax.training.config import OptimizerConfig, UpdateConfig
from rapo_jax.training.experience import Experience, evaluate_trajectories
from rapo_jax.training.packing import BASE_COLUMNS, PackedBatch, pack
from rapo_jax.training.parameters import non_finite, parameter_norm
from rapo_jax.training.trainer import Trainer, minibatches, summarise
from rapo_jax.training.trajectory_log import trajectory_records
from rapo_jax.training.update import (
  TrainState,
  UpdateMetrics,
  init_train_state,
  make_optimizer,
  update_minibatch,
)

__all__ = [
  "BASE_COLUMNS",
  "BrokenCheckpointError",
  "Checkpoints",
  "Experience",
  "ObjectiveConfig",
  "OptimizerConfig",
  "PackedBatch",
  "TrainState",
  "Trainer",
  "UpdateConfig",
  "UpdateMetrics",
  "evaluate_trajectories",
  "init_train_state",
  "make_optimizer",
  "minibatches",
  "non_finite",
  "pack",
  "parameter_norm",
  "summarise",
  "trajectory_records",
  "update_minibatch",
]
