"""Decoding on an accelerator: share of the memory bandwidth that it reaches.

    python -m benchmarks.decode_bandwidth

Runs the rollout's own `decode` program with random weights of Qwen2.5-3B's
shape in bfloat16. At the end all slots have a cache of `--context` tokens. A
step has to read the weights once and each slot's cache up to its last block;
`fraction` is that many bytes a second, over what copies of a large array reach
in the same process. Sampling, log-probabilities, entropies and the stop
automaton are in the time and not in the bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics

import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator
from benchmarks.rollout_cache import step_bytes
from benchmarks.rollout_setup import about_this_machine
from rapo_jax import models
from rapo_jax.rollout import sampler

_STOP_STATES = 30


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--slots", type=int, default=64)
  parser.add_argument("--context", type=int, default=2048)
  parser.add_argument("--tokens", type=int, default=64, help="of one decode")
  parser.add_argument("--layers", type=int, help="fewer than the model has")
  parser.add_argument("--repeats", type=int, default=5)
  arguments = parser.parse_args()
  model = accelerator.decoder("bfloat16", arguments.layers)
  slots, context = arguments.slots, arguments.context
  vocab_size = model.config.vocab_size
  stop_table = jnp.zeros((_STOP_STATES, vocab_size), jnp.int8)
  eos = jnp.zeros(vocab_size, bool)
  start = context - arguments.tokens
  state = sampler.init_slots(model, slots, context)
  layers = sampler.layers_apart(model)

  def decode() -> sampler.SlotState:
    nonlocal state
    # The slots go back to the same length: the cache holds the same.
    state = state._replace(
      lengths=jnp.full(slots, start, jnp.int32),
      limits=jnp.full(slots, context, jnp.int32),
      active=jnp.ones(slots, bool),
    )
    state = sampler.decode(
      model,
      state,
      stop_table,
      eos,
      sampler.Sampling(temperature=jnp.float32(1.0)),
      layers,
      num_tokens=arguments.tokens,
      attend_length=context,
    )
    return state

  times = accelerator.seconds(decode, arguments.repeats, "decode")
  if int(state.lengths.min()) != context:
    raise ValueError("no slot may stop early, but one did.")
  peak = accelerator.bandwidth_bytes_per_s(9)
  # The token at position p reads the cache up to p.
  read = [
    step_bytes(model, slots, position // models.KV_BLOCK + 1)
    for position in range(start - 1, context - 1)
  ]
  step = statistics.median(times) / arguments.tokens
  print(
    json.dumps(
      {
        "benchmark": "decode_bandwidth",
        "unit": "share of the bandwidth of a copy",
        "sizes": vars(arguments),
        "fraction": round(float(np.mean(read)) / step / peak, 3),
        "step_ms": round(step * 1e3, 3),
        "tokens_per_s": round(slots / step),
        "step_mb": round(float(np.mean(read)) / 1e6),
        "gb_per_s": round(float(np.mean(read)) / step / 1e9),
        "copy_gb_per_s": round(peak / 1e9),
        "seconds": [round(s, 4) for s in times],
        "target": 0.6,
        **about_this_machine(),
      }
    )
  )


if __name__ == "__main__":
  main()
