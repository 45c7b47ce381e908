"""One update by rapo_jax.training, as the trainer runs it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from problem import Problem, serve

from rapo_jax import models, objectives
from rapo_jax.training import (
  ObjectiveConfig,
  OptimizerConfig,
  PackedBatch,
  init_train_state,
  update_minibatch,
)

_MATMUL_SIZE = 1536
_ROWS_PER_MICROBATCH = 2


def make_update(problem: Problem):
  settings = problem.settings
  optimizer = OptimizerConfig(
    learning_rate=settings["learning_rate"],
    weight_decay=settings["weight_decay"],
    max_gradient_norm=settings["max_gradient_norm"],
  )
  objective = ObjectiveConfig(
    retrieval_coef=0.0,
    shaping_coef=0.0,
    clip_epsilon_low=settings["clip_epsilon_low"],
    clip_epsilon_high=settings["clip_epsilon_high"],
  )
  batch = _batch(problem)
  state = init_train_state(models.from_pretrained(problem.model), optimizer)

  def update() -> tuple[float, float]:
    nonlocal state
    state, metrics = update_minibatch(
      state,
      batch,
      objective=objective,
      optimizer=optimizer,
      temperature=1.0,
      dtype="float32",
      remat="none",
      head_chunk=models.HEAD_CHUNK,
    )
    jax.block_until_ready(state)
    return float(metrics.loss), float(metrics.gradient_norm)

  return update


def _batch(problem: Problem) -> PackedBatch:
  shape = problem.tokens.shape
  where = np.zeros(shape, bool)
  where[:, -problem.completion :] = True
  old_log_probs = np.zeros(shape, np.float32)
  old_log_probs[:, -problem.completion :] = problem.old_log_probs
  rows = (
    problem.tokens,
    np.ones(shape, np.int32),
    where,
    np.asarray(objectives.loss_weights(where, aggregation="sequence")),
    {
      "old_log_probs": old_log_probs,
      "advantages": np.repeat(problem.advantages[:, None], shape[1], axis=1),
      "retrieved_fraction": np.zeros(shape, np.float32),
    },
  )
  # Micro-batches sum to the same gradient, and what one keeps for its backward
  # pass stays small.
  microbatches = shape[0] // _ROWS_PER_MICROBATCH
  return PackedBatch(
    *jax.tree.map(
      lambda x: jnp.asarray(x).reshape(microbatches, -1, shape[1]), rows
    ),
    jnp.asarray(microbatches),
  )


if __name__ == "__main__":
  matrix = jnp.ones((_MATMUL_SIZE, _MATMUL_SIZE), jnp.float32)
  multiply = jax.jit(jnp.matmul)

  def product() -> int:
    jax.block_until_ready(multiply(matrix, matrix))
    return 2 * _MATMUL_SIZE**3

  serve(make_update, {"jax": jax.__version__}, product=product)
