"""Decoding against what lies in the cache.

    .venv/bin/python -m benchmarks.rollout_cache

How long a decode step takes with ever longer prompts, whose cache is read in
blocks of `KV_BLOCK` positions. The last token of a prompt is the first of a
block, and a run generates as many tokens as a block has. So it reads the same
number of blocks from its first step to its last. All lengths run in one engine
with the same room, in turns, on one core.

`predicted` is what the bytes say: all weights and the cache up to the last
block read, against those of the length before. `over_predicted` is the measured
growth over that; the target is at most 1.1 from one length to the next. The
bytes bound a machine that waits for memory. One that computes should grow by
less. `off_the_line` is the largest distance from the straight line through all
lengths (least squares), over the time there.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics

import jax
import numpy as np
from flax import nnx

from benchmarks import rollout_setup as setup
from rapo_jax import models
from rapo_jax.rollout import RolloutConfig, RolloutEngine, group_requests
from rapo_jax.trajectory import FinishReason

_TARGET = 1.1
_NEW_TOKENS = models.KV_BLOCK


def step_bytes(model: models.Decoder, slots: int, blocks: int) -> int:
  """Bytes that one decode step reads: weights once, and the slots' cache."""
  config = model.config
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
  position = 2 * config.num_layers * config.num_kv_heads * config.head_dim
  itemsize = np.dtype(config.dtype).itemsize
  return weights + slots * blocks * models.KV_BLOCK * position * itemsize


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--blocks",
    type=int,
    nargs="+",
    default=[1, 2, 3, 4, 6, 8, 12, 16],
    help="of the cache that are read, ascending",
  )
  parser.add_argument("--slots", type=int, default=64)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--core", type=int, default=0)
  arguments = parser.parse_args()
  setup.pin(arguments.core)
  model = models.Decoder(setup.decoder_config(), rngs=nnx.Rngs(0))
  lengths = {
    blocks: (blocks - 1) * models.KV_BLOCK + 1 for blocks in arguments.blocks
  }
  engine = RolloutEngine(
    RolloutConfig(
      num_slots=arguments.slots,
      max_prompt_tokens=max(lengths.values()),
      max_response_tokens=_NEW_TOKENS,
      max_step_tokens=_NEW_TOKENS,
      decode_chunk=_NEW_TOKENS,
    ),
    setup.spelling_tokenizer(),
    vocab_size=setup.VOCAB_SIZE,
    tools={setup.TOOL: setup.WordsTool()},
  )
  rng = np.random.default_rng(0)

  def run(prompt: np.ndarray, number: int) -> setup.Turn:
    wanted = group_requests(
      setup.queries(1),
      [prompt],
      num_generations=arguments.slots,
      num_hybrid=0,
    )
    turn = setup.timed(
      lambda: engine.rollout(model, wanted, seed=0, update=number)
    )
    if any(
      t.finish_reason is not FinishReason.LENGTH for t in turn.trajectories
    ):
      raise ValueError("no sequence may end before its limit, but one did.")
    return turn

  runs = {
    str(blocks): functools.partial(
      run, rng.integers(1, setup.VOCAB_SIZE, length, dtype=np.int32)
    )
    for blocks, length in lengths.items()
  }
  turns = setup.alternate(runs, arguments.repeats)
  step_ms = [
    statistics.median(turn.stats.decode_seconds for turn in turns[str(blocks)])
    / _NEW_TOKENS
    * 1e3
    for blocks in arguments.blocks
  ]
  read = [
    step_bytes(model, arguments.slots, blocks) for blocks in arguments.blocks
  ]
  predicted = [b / a for a, b in itertools.pairwise(read)]
  grown = [b / a for a, b in itertools.pairwise(step_ms)]
  line = np.polyval(np.polyfit(arguments.blocks, step_ms, 1), arguments.blocks)
  print(
    json.dumps(
      {
        "benchmark": "rollout_cache",
        "unit": "ms a decode step of all slots",
        "sizes": vars(arguments),
        "block_positions": models.KV_BLOCK,
        "step_ms": [round(ms, 2) for ms in step_ms],
        "step_mb": [round(size / 1e6, 1) for size in read],
        "grown": [round(x, 3) for x in grown],
        "predicted": [round(x, 3) for x in predicted],
        "over_predicted": [
          round(a / b, 3) for a, b in zip(grown, predicted, strict=True)
        ],
        "off_the_line": round(float(np.max(np.abs(step_ms / line - 1))), 3),
        "target": _TARGET,
        **setup.about_this_machine(),
      }
    )
  )


if __name__ == "__main__":
  main()
