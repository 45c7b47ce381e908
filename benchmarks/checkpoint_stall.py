"""How long training waits for a checkpoint that is written meanwhile.

  python -m benchmarks.checkpoint_stall

A training state of 500 MB (parameters and two moments in float32) is saved
several times, as a run saves it: in the background, with checksums, each file
read again. Reports the seconds for which `save` blocks when no other write is
under way, and those until the checkpoint is whole on the disk. Target: at most
1 s blocked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time

import jax
from flax import nnx

from benchmarks import rollout_setup as setup
from rapo_jax import models
from rapo_jax.training import (
  Checkpoints,
  OptimizerConfig,
  TrainState,
  init_train_state,
)

_TARGET_S = 1.0


def make_state(megabytes: int) -> TrainState:
  """A state of about so many bytes, most of them in layers of 1,024."""
  width = 1024
  # Four square matrices of attention, and three of the MLP that are twice as
  # wide, in float32 with two moments.
  layer_bytes = (4 + 3 * 2) * width * width * 4 * 3
  config = models.DecoderConfig(
    vocab_size=1_000,
    hidden_size=width,
    intermediate_size=2 * width,
    num_layers=max(1, round(megabytes * 1e6 / layer_bytes)),
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
  )
  model = models.Decoder(config, rngs=nnx.Rngs(0))
  return init_train_state(model, OptimizerConfig())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--megabytes", type=int, default=500)
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--folder", type=pathlib.Path, help="of the disk to try")
  known = parser.parse_args()
  state = jax.block_until_ready(make_state(known.megabytes))
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  blocked, whole = [], []
  with (
    tempfile.TemporaryDirectory(dir=known.folder) as folder,
    contextlib.closing(Checkpoints(pathlib.Path(folder))) as checkpoints,
  ):
    for number in range(known.repeats + 1):
      began = time.perf_counter()
      checkpoints.save(number, state, {})
      blocked.append(time.perf_counter() - began)
      while checkpoints.latest() != number:
        time.sleep(0.01)
      whole.append(time.perf_counter() - began)
      print(
        f"{blocked[-1]:.2f} s blocked, {whole[-1]:.2f} s in all",
        file=sys.stderr,
      )
  print(
    json.dumps(
      {
        "benchmark": "checkpoint_stall",
        "unit": "s",
        "megabytes": round(size / 1e6),
        "blocked": round(statistics.median(blocked[1:]), 3),
        "blocked_range": [round(f(blocked[1:]), 3) for f in (min, max)],
        "whole": round(statistics.median(whole[1:]), 2),
        "target_blocked": _TARGET_S,
        **setup.about_this_machine(),
      }
    )
  )


if __name__ == "__main__":
  main()
