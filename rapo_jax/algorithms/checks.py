"""What an algorithm's functions must do, tried on a few numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rapo_jax.algorithms.base import COLUMNS, Algorithm, Signals, TokenLoss
from rapo_jax.algorithms.settings import ObjectiveConfig
from rapo_jax.errors import InputError
from rapo_jax.trajectory import Source, TokenKind

# What a loss must not read where its tokens are masked.
_GARBAGE = float("nan")


def check_algorithm(algorithm: Algorithm, objective: ObjectiveConfig) -> None:
  """Tries an algorithm on a few made-up numbers, before any rollout.

  Args:
    algorithm: to be tried.
    objective: settings of the experiment.

  Raises:
    InputError: the advantages or the loss have a wrong shape or are not finite.
      Or the loss mixes its tokens. Or it reads a column that it does not name,
      or that the settings do not make.
  """
  settings = algorithm.settings(objective)
  if "reference_log_probs" in algorithm.loss.columns and not settings.kl_coef:
    raise InputError(
      f"the loss of the algorithm {algorithm.name} reads "
      "reference_log_probs, which needs a kl_coef above 0, got "
      f"{settings.kl_coef}: set kl_coef, or leave the column out."
    )
  signals = _signals()
  with _named(algorithm, "retrieval_reward"):
    retrieval = algorithm.retrieval_reward(
      signals.step_entropies,
      signals.retrieved,
      where=signals.policy_steps | signals.retrieved,
      scale=settings.quality_scale,
    )
  if retrieval.shape != signals.rewards.shape:
    raise InputError(
      f"retrieval_reward of the algorithm {algorithm.name} must give one "
      f"number a trajectory, shape {signals.rewards.shape}, got "
      f"{retrieval.shape}: average over a trajectory's retrievals."
    )
  with _named(algorithm, "advantages"):
    values = algorithm.advantages(signals, settings)
  rows, tokens = signals.kinds.shape
  check_advantages(algorithm, values, (rows, tokens), num_steps=3)
  _check_loss(algorithm, settings)


def check_advantages(
  algorithm: Algorithm,
  values: Any,
  shape: tuple[int, int],
  *,
  num_steps: int,
) -> None:
  """Checks what an algorithm's advantages are.

  Args:
    algorithm: for the message.
    values: that its function gave.
    shape: trajectories and tokens, (B, L).
    num_steps: S.

  Raises:
    InputError: of a wrong shape or not finite.
  """
  rows, tokens = shape
  allowed = ((rows,), (rows, num_steps), (rows, tokens))
  if np.shape(values) not in allowed:
    raise InputError(
      f"advantages of the algorithm {algorithm.name} must have one entry a "
      f"trajectory {allowed[0]}, a step {allowed[1]} or a token {allowed[2]}, "
      f"got shape {np.shape(values)}: give one of these shapes."
    )
  if not np.isfinite(np.asarray(values)).all():
    raise InputError(
      f"advantages of the algorithm {algorithm.name} must be finite, got "
      f"{np.asarray(values).tolist()!r:.200}: look for a division by 0, such "
      "as by the deviation of equal rewards."
    )


def _check_loss(algorithm: Algorithm, settings: ObjectiveConfig) -> None:
  """Tries the loss with garbage in the place of every other token."""
  loss = algorithm.loss
  rng = np.random.default_rng(0)
  columns = {name: rng.uniform(0.1, 0.9, 8) for name in COLUMNS}
  columns["advantages"] = np.asarray([1.0, -1.0, 0.5, -0.5] * 2)
  log_probs = -rng.uniform(0.5, 1.5, 8)
  columns["source"] = np.asarray([*Source] * 3)[:8].astype(float)
  for name in ("old_log_probs", "reference_log_probs", "proximal_log_probs"):
    columns[name] = log_probs + rng.uniform(-0.1, 0.1, 8)
  columns = {name: columns[name] for name in loss.columns}
  clean = _tried(algorithm, loss, settings, log_probs, columns)
  where = np.arange(8) % 2 == 0
  poisoned = _tried(
    algorithm,
    loss,
    settings,
    np.where(where, log_probs, _GARBAGE),
    {name: np.where(where, x, _GARBAGE) for name, x in columns.items()},
  )
  for what, before, after in zip(
    ("value", "gradient"), clean, poisoned, strict=True
  ):
    if not np.isfinite(before).all():
      raise InputError(
        f"the loss of the algorithm {algorithm.name} ({loss.name}) must be "
        f"finite, its {what} is {before.tolist()}: look for a division by 0."
      )
    if not _same(before, after, where):
      raise InputError(
        f"the loss of the algorithm {algorithm.name} ({loss.name}) must take "
        f"each token by itself: its {what} at a token changes with others, "
        "which may be masked. Move what sees other tokens into the "
        "advantages, or read segment_log_ratio."
      )


def _tried(
  algorithm: Algorithm,
  loss: TokenLoss,
  settings: ObjectiveConfig,
  log_probs: Float[np.ndarray, " N"],
  columns: dict[str, Float[np.ndarray, " N"]],
) -> tuple[np.ndarray, np.ndarray]:
  """Losses, and gradients of the sum of those of every other token."""
  arrays = {name: jnp.asarray(x, jnp.float32) for name, x in columns.items()}
  real = jnp.arange(len(log_probs)) % 2 == 0

  def total(log_probs: Array) -> tuple[Array, Array]:
    losses = loss.function(log_probs, arrays, settings)
    if np.shape(losses) != log_probs.shape:
      raise InputError(
        f"the loss of the algorithm {algorithm.name} ({loss.name}) must give "
        f"one number a token, shape {log_probs.shape}, got "
        f"{np.shape(losses)}: do not sum or average it."
      )
    return jnp.sum(jnp.where(real, losses, 0)), losses

  with _named(algorithm, f"the loss ({loss.name})"):
    # One program, as in an update: each operation by itself would be one.
    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(
      jnp.asarray(log_probs, jnp.float32)
    )
  # Where a token is masked the sum has no gradient; NaN there is the select's.
  gradient = np.where(np.arange(len(log_probs)) % 2 == 0, gradient, 0)
  if np.isnan(log_probs).any():
    losses = np.where(np.isnan(log_probs), 0, losses)
  return np.asarray(losses), gradient


def _same(
  before: np.ndarray, after: np.ndarray, where: Bool[np.ndarray, " N"]
) -> bool:
  return bool(np.array_equal(before[where], after[where]))


@contextlib.contextmanager
def _named(algorithm: Algorithm, what: str) -> Iterator[None]:
  """Says what is missing where a function reads what it does not name."""
  try:
    yield
  except KeyError as error:
    raise InputError(
      f"{what} of the algorithm {algorithm.name} reads {error}, which it does "
      f"not name among its columns, {', '.join(algorithm.loss.columns)}: add "
      f"it; there are {', '.join(COLUMNS)}."
    ) from error


def _signals() -> Signals:
  """Two questions with three trajectories each, of three steps and 12 tokens.

  The middle step of one trajectory is retrieved.
  """
  kinds = np.full((6, 12), TokenKind.POLICY, np.int32)
  kinds[:, :2] = TokenKind.PROMPT
  kinds[:, 11] = -1
  kinds[2, 5:8] = TokenKind.RETRIEVED
  step_ids = np.tile(
    np.asarray([-1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2, -1], np.int32), (6, 1)
  )
  retrieved = np.zeros((6, 3), bool)
  retrieved[2, 1] = True
  rewards = np.asarray([1, 0, 0.5, 1, 1, 1], np.float32)
  entropies = np.linspace(0.1, 2.0, 18, dtype=np.float32).reshape(6, 3)
  step_rewards = np.zeros((6, 3), np.float32)
  step_rewards[:, 2] = rewards
  anchors = np.arange(18, dtype=np.int32).reshape(6, 3)
  anchors[:, 0] = [0, 0, 0, 9, 9, 9]
  by_token = np.repeat(entropies, 4, axis=1)
  return Signals(
    rewards=jnp.asarray(rewards),
    group_ids=jnp.asarray([0, 0, 0, 1, 1, 1], jnp.int32),
    kinds=jnp.asarray(kinds),
    step_ids=jnp.asarray(step_ids),
    entropies=jnp.asarray(np.where(kinds == TokenKind.POLICY, by_token, 0)),
    step_entropies=jnp.asarray(np.where(retrieved, 0, entropies)),
    policy_steps=jnp.asarray(~retrieved),
    retrieved=jnp.asarray(retrieved),
    retrieval_rewards=jnp.asarray([0, 0, 0.3, 0, 0, 0], jnp.float32),
    retrieval_effects=jnp.asarray(np.where(retrieved, 0.5, np.nan)),
    step_rewards=jnp.asarray(step_rewards),
    malformed=jnp.zeros((6, 3), bool),
    anchors=jnp.asarray(np.where(retrieved, -1, anchors)),
    tree_ids=jnp.arange(6, dtype=jnp.int32),
    node_ids=jnp.arange(18, dtype=jnp.int32).reshape(6, 3),
    sources=jnp.asarray([Source.POLICY] * 5 + [Source.AGENT], jnp.int32),
    num_groups=2,
  )
