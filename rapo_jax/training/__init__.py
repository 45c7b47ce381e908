"""Training: experience, packed batches, the update, checkpoints."""

from rapo_jax.algorithms import ObjectiveConfig
from rapo_jax.training.checkpoints import BrokenCheckpointError, Checkpoints
from rapo_jax.training.config import OptimizerConfig, UpdateConfig
from rapo_jax.training.examples import (
  Example,
  SupervisedBatch,
  from_chat,
  from_trajectory,
  pack_examples,
  repeat_examples,
)
from rapo_jax.training.experience import (
  Experience,
  evaluate_trajectories,
  score_trajectories,
)
from rapo_jax.training.packing import (
  BASE_COLUMNS,
  Packed,
  PackedBatch,
  Placement,
  empty_batch,
  pack,
  packed_columns,
)
from rapo_jax.training.parameters import non_finite, parameter_norm
from rapo_jax.training.supervised import (
  StepLoss,
  SupervisedConfig,
  SupervisedTrainer,
)
from rapo_jax.training.trainer import Trainer, minibatches, summarise
from rapo_jax.training.trajectory_log import trajectory_records
from rapo_jax.training.update import (
  TrainState,
  UpdateMetrics,
  init_train_state,
  make_optimizer,
  score_proximal,
  score_reference,
  update_minibatch,
)

__all__ = [
  "BASE_COLUMNS",
  "BrokenCheckpointError",
  "Checkpoints",
  "Example",
  "Experience",
  "ObjectiveConfig",
  "OptimizerConfig",
  "Packed",
  "PackedBatch",
  "Placement",
  "StepLoss",
  "SupervisedBatch",
  "SupervisedConfig",
  "SupervisedTrainer",
  "TrainState",
  "Trainer",
  "UpdateConfig",
  "UpdateMetrics",
  "empty_batch",
  "evaluate_trajectories",
  "from_chat",
  "from_trajectory",
  "init_train_state",
  "make_optimizer",
  "minibatches",
  "non_finite",
  "pack",
  "pack_examples",
  "packed_columns",
  "parameter_norm",
  "repeat_examples",
  "score_proximal",
  "score_reference",
  "score_trajectories",
  "summarise",
  "trajectory_records",
  "update_minibatch",
]
