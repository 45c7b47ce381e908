"""Checkpoints: what comes back is what went in."""

import jax
import numpy as np
from flax import nnx

from rapo_jax import models
from rapo_jax.training import Checkpoints, OptimizerConfig, init_train_state


def _state(seed):
  config = models.DecoderConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
  )
  return init_train_state(
    models.Decoder(config, rngs=nnx.Rngs(seed)), OptimizerConfig()
  )


def test_restores_every_bit_and_the_metadata(tmp_path):
  state = _state(0)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.latest() is None
  checkpoints.save(3, state, {"totals": {"seconds": 1.5}})
  checkpoints.close()

  reopened = Checkpoints(tmp_path)
  assert reopened.latest() == 3
  restored, metadata = reopened.restore(3, _state(1))
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
