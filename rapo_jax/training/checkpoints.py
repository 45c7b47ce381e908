"""Checkpoints: one atomic folder an update, written by Orbax."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from rapo_jax.training.update import TrainState


class Checkpoints:
  """Saves and restores the training state of one run.

  A checkpoint becomes visible only when all of it is written, so a process
  killed at any moment leaves the one before it intact.

  Args:
    path: folder of the run's checkpoints; made if missing.
    max_to_keep: older checkpoints are deleted.
  """

  def __init__(self, path: pathlib.Path, *, max_to_keep: int = 2):
    self._manager = ocp.CheckpointManager(
      path.absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, create=True
      ),
      item_names=("state", "metadata"),
    )

  def latest(self) -> int | None:
    """Update number of the newest complete checkpoint, None without one."""
    return self._manager.latest_step()

  def save(
    self, update: int, state: TrainState, metadata: dict[str, Any]
  ) -> None:
    """Writes the state after `update` updates, in the background.

    Errors of the write before this one are raised here.
    """
    self._manager.check_for_errors()
    self._manager.save(
      update,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_named(state)),
        metadata=ocp.args.JsonSave(metadata),
      ),
    )

  def restore(
    self, update: int, like: TrainState
  ) -> tuple[TrainState, dict[str, Any]]:
    """State and metadata of a checkpoint.

    Args:
      update: one that exists.
      like: a state of the same structure; its values are not read.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like))
    restored = self._manager.restore(
      update,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract),
        metadata=ocp.args.JsonRestore(),
      ),
    )
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = [restored.state[jax.tree_util.keystr(p)] for p, _ in paths]
    return jax.tree.unflatten(structure, leaves), restored.metadata

  def close(self) -> None:
    """Waits for the last write and raises its error if it failed."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()
    self._manager.close()


def _named(state: TrainState) -> dict[str, jax.Array]:
  """Arrays by their path, whatever classes the state is made of."""
  paths, _ = jax.tree_util.tree_flatten_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in paths}
