"""Scores and gradients on several meshes of fake devices, as JSON.

A program of its own, since the number of devices is fixed when JAX starts:
`log_probs_test.py` runs it with 8 fake CPU devices and the meshes' sizes, such
as `4x2` (fsdp × tensor), as arguments. Prints, for each mesh, how far values
and gradients are from those of one device, and how much of the logits one
device holds.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rapo_jax import models
from rapo_jax.models import log_probs, sharding
from tests.closeness import relative_gap
from tests.tiny_decoder import tiny_decoder

BATCH, LENGTH, VOCAB, CHUNK = 8, 24, 512, 12


def model(tie_embeddings: bool) -> models.Decoder:
  return tiny_decoder(
    vocab_size=VOCAB,
    num_heads=8,
    num_kv_heads=8,
    head_dim=4,
    initializer_range=0.3,
    tie_embeddings=tie_embeddings,
  )


def inputs() -> tuple[jax.Array, ...]:
  rng = np.random.default_rng(0)
  shape = (BATCH, LENGTH)
  return (
    jnp.asarray(rng.integers(0, VOCAB, shape)),
    # Rows differ in how many of their tokens are scored; one has none.
    jnp.asarray(rng.random(shape) < np.linspace(0, 1, BATCH)[:, None]),
    jnp.asarray(np.sort(rng.integers(1, 4, shape), axis=1)),
    jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32),
  )


@jax.jit
@jax.value_and_grad
def loss(model, tokens, where, segment_ids, weights):
  log_probs, entropies = models.token_log_probs(
    model, tokens, where=where, segment_ids=segment_ids, temperature=0.8
  )
  total, _ = models.token_loss_sum(
    model,
    tokens,
    lambda log_probs, weights: jnp.square(log_probs) * weights,
    weights[0],
    where=where,
    segment_ids=segment_ids,
  )
  return jnp.mean(log_probs * weights[0] + entropies * weights[1]) + (
    0.1 * total / tokens.size
  )


def on_mesh(fsdp: int, tensor: int, tie_embeddings: bool):
  mesh = sharding.make_mesh(fsdp=fsdp, tensor=tensor)
  policy = model(tie_embeddings)
  policy = jax.device_put(
    policy, sharding.shardings(policy, mesh, sharding.TRAIN_RULES)
  )
  rows = NamedSharding(mesh, P(("data", "fsdp")))
  tokens, where, segment_ids, weights = inputs()
  arguments = (
    policy,
    *(jax.device_put(x, rows) for x in (tokens, where, segment_ids)),
  )
  with jax.set_mesh(mesh):
    compiled = loss.lower(*arguments, weights).compile()
  return compiled(*arguments, weights), compiled.as_text()


def main() -> None:
  log_probs.HEAD_CHUNK = CHUNK
  report = []
  for tie_embeddings in (True, False):
    expected = loss(model(tie_embeddings), *inputs())
    for name in sys.argv[1:]:
      fsdp, tensor = map(int, name.split("x"))
      got, program = on_mesh(fsdp, tensor, tie_embeddings)
      report.append(
        {
          "mesh": name,
          "tied": tie_embeddings,
          "value_gap": relative_gap(got[0], expected[0]),
          "gradient_gap": relative_gap(got[1], expected[1]),
          # Every device takes its part of the rows and of the vocabulary.
          "own_logits": f"f32[1,{CHUNK},{VOCAB // tensor}]" in program,
          "whole_logits": tensor > 1 and f"{CHUNK},{VOCAB}]" in program,
        }
      )
  json.dump(report, sys.stdout)


if __name__ == "__main__":
  main()
