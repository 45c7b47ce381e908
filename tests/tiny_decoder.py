"""The decoder that tests run: everything in it is small, and differs in size.

A test states the dimensions that it is about; what it leaves out is of no
importance to it.
"""

from flax import nnx

from rapo_jax import models


def tiny_config(**changes) -> models.DecoderConfig:
  """Grouped heads, two layers, and weights so large that mistakes show."""
  return models.DecoderConfig(
    **{
      "vocab_size": 40,
      "hidden_size": 16,
      "intermediate_size": 32,
      "num_layers": 2,
      "num_heads": 4,
      "num_kv_heads": 2,
      "head_dim": 8,
      "initializer_range": 0.2,
      **changes,
    }
  )


def tiny_decoder(*, seed: int = 0, **changes) -> models.Decoder:
  """A decoder of `tiny_config` with random weights."""
  return models.Decoder(tiny_config(**changes), rngs=nnx.Rngs(seed))
