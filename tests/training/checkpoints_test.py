"""Checkpoints: what comes back is what went in."""

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from rapo_jax import models
from rapo_jax.training import Checkpoints, OptimizerConfig, init_train_state
from tests.tiny_decoder import tiny_decoder


def _state(seed, lora=None):
  model = tiny_decoder(seed=seed)
  if lora is not None:
    model = models.add_adapters(model, lora, rngs=nnx.Rngs(seed))
  return init_train_state(model, OptimizerConfig())


def test_restores_every_bit_and_the_metadata(tmp_path):
  state = _state(0)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.latest() is None
  checkpoints.save(3, state, {"totals": {"seconds": 1.5}})
  checkpoints.close()

  reopened = Checkpoints(tmp_path)
  assert reopened.latest() == 3
  metadata = reopened.metadata(3)
  restored = reopened.restore(3, _state(1))
  reopened.close()
  assert metadata == {"totals": {"seconds": 1.5}}
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for a, b in zip(
    jax.tree.leaves(restored), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, _state(0), {})
  checkpoints.close()
  # What a kill in the middle of a write leaves behind.
  (tmp_path / "2.orbax-checkpoint-tmp-7").mkdir()
  reopened = Checkpoints(tmp_path)
  assert reopened.latest() == 1
  reopened.close()


def test_keeps_the_newest(tmp_path):
  checkpoints = Checkpoints(tmp_path, max_to_keep=2)
  for update in (1, 2, 3):
    checkpoints.save(update, _state(0), {})
  checkpoints.close()
  assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == [
    "2",
    "3",
  ]


def _saved_arrays(path):
  """What a checkpoint holds, by name."""
  manager = ocp.CheckpointManager(path, item_names=("state", "metadata"))
  restored = manager.restore(
    1, args=ocp.args.Composite(state=ocp.args.StandardRestore())
  )
  manager.close()
  return restored.state


def test_of_adapters_nothing_frozen_is_written(tmp_path):
  lora = models.LoraConfig(2, 4.0, ("query", "up"))
  state = jax.tree.map(lambda x: x + 1, _state(0, lora))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state, {})
  checkpoints.close()
  saved = _saved_arrays(tmp_path)
  # A and B of two projections with two moments each, and the step counter.
  assert len(saved) == 2 * 2 * 3 + 1
  assert all("lora_" in name or "count" in name for name in saved)
  # Layers x rank x (in + out): query 16 + 32, up 16 + 32; three arrays of each.
  assert sum(x.size for x in saved.values()) == 3 * 2 * 2 * (48 + 48) + 1

  reopened = Checkpoints(tmp_path)
  like = _state(1, lora)
  frozen = np.array(like.model.embedding[...])
  restored = reopened.restore(1, like)
  reopened.close()
  for a, b in zip(
    jax.tree.leaves((models.trainable(restored.model), restored.opt_state)),
    jax.tree.leaves((models.trainable(state.model), state.opt_state)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(restored.model.embedding[...], frozen)


def test_the_policy_is_read_without_the_optimizer(tmp_path):
  state = _state(0)
  checkpoints = Checkpoints(tmp_path)
  for update in (1, 3):
    checkpoints.save(update, state, {"update": update})
  checkpoints.close()
  reader = Checkpoints(tmp_path, create=False)
  assert reader.updates() == [1, 3]
  assert reader.metadata(1) == {"update": 1}
  policy = reader.restore_policy(3, jax.eval_shape(lambda: state.model))
  reader.close()
  assert jax.tree.structure(policy) == jax.tree.structure(state.model)
  for a, b in zip(
    jax.tree.leaves(policy), jax.tree.leaves(state.model), strict=True
  ):
    np.testing.assert_array_equal(a, b)
