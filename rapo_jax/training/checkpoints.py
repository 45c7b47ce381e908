"""Checkpoints: one atomic folder an update, written by Orbax."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import optax
import orbax.checkpoint as ocp
from flax import nnx

from rapo_jax import models
from rapo_jax.training.update import TrainState


class Checkpoints:
  """Saves and restores the training state of one run.

  A checkpoint becomes visible only when all of it is written, so a process
  killed at any moment leaves the one before it intact.

  Args:
    path: folder of the run's checkpoints.
    max_to_keep: older checkpoints are deleted when one is saved.
    create: make the folder if it is missing; not needed to read.
  """

  def __init__(
    self, path: pathlib.Path, *, max_to_keep: int = 2, create: bool = True
  ):
    self._manager = ocp.CheckpointManager(
      path.absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, create=create
      ),
      item_names=("state", "metadata"),
    )

  def latest(self) -> int | None:
    """Update number of the newest complete checkpoint, None without one."""
    return self._manager.latest_step()

  def updates(self) -> list[int]:
    """Update numbers of all complete checkpoints, from old to new."""
    return sorted(self._manager.all_steps())

  def save(
    self, update: int, state: TrainState, metadata: dict[str, Any]
  ) -> None:
    """Writes the state after `update` updates, in the background.

    Of a model with adapters they alone are written, with their optimizer state.
    Errors of the write before this one are raised here.
    """
    self._manager.check_for_errors()
    self._manager.save(
      update,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_named(_saved(state))),
        metadata=ocp.args.JsonSave(metadata),
      ),
    )

  def restore(self, update: int, like: TrainState) -> TrainState:
    """State of a checkpoint; read and judge its `metadata` first.

    Args:
      update: one that exists.
      like: a state of the same structure. What is trained is not read, only
        where it lies; what is frozen is taken from here.
    """
    like_saved = _saved(like)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like_saved))
    restored = self._manager.restore(
      update,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
    )
    saved = _unnamed(restored.state, like_saved)
    model = models.with_trainable(like.model, saved.variables)
    return TrainState(model, saved.opt_state)

  def metadata(self, update: int) -> dict[str, Any]:
    """What was saved beside the state of a checkpoint that exists."""
    restored = self._manager.restore(
      update, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
    )
    return restored.metadata

  def restore_policy(self, update: int, like: models.Decoder) -> models.Decoder:
    """The policy of a checkpoint on the default device, and no optimizer state.

    Args:
      update: one that exists, written on any devices.
      like: a decoder of the same structure. What is trained is not read and
        may be abstract; what is frozen is taken from here.
    """
    variables = models.trainable(like)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
      for name, leaf in _named(_Saved(variables, ())).items()
    }
    restored = self._manager.restore(
      update,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          abstract,
          restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
          partial_restore=True,
        )
      ),
    )
    saved = _unnamed(restored.state, _Saved(variables, ()))
    return models.with_trainable(like, saved.variables)

  def close(self) -> None:
    """Waits for the last write and raises its error if it failed."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()
    self._manager.close()


class _Saved(NamedTuple):
  """What a checkpoint holds of a state: nothing that is frozen."""

  variables: dict[str, nnx.Variable]
  opt_state: optax.OptState


def _saved(state: TrainState) -> _Saved:
  return _Saved(models.trainable(state.model), state.opt_state)


def _named(tree: Any) -> dict[str, Any]:
  """Leaves by their path, whatever classes the tree is made of."""
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


def _unnamed(leaves: dict[str, Any], like: Any) -> Any:
  """Undoes `_named`."""
  paths, structure = jax.tree_util.tree_flatten_with_path(like)
  return jax.tree.unflatten(
    structure, [leaves[jax.tree_util.keystr(path)] for path, _ in paths]
  )
