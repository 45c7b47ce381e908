"""One GRPO update: tokens a second, beside google-tunix and torch.

    .venv/bin/python -m benchmarks.update

Forward, clipped loss, backward, global-norm clipping and AdamW, in float32 on
one CPU core. All three start from the same weights and train on the same
batch, in turns, one process each; peers live in environments of their own,
which the first run installs under `.cache/benchmarks`. The first update's loss
and gradient norm are printed, since they have to agree.

`matmul_fraction` is the update's own arithmetic a second, over that of one
large float32 product by JAX in the same process. It counts no recomputation,
the causal half of the attention, and the head on policy tokens.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import numpy as np
from flax import nnx

from benchmarks import peers
from rapo_jax import models

_WORKERS = pathlib.Path(__file__).resolve().parent / "update_peers"
_SCRIPTS = {
  peers.OURS: "ours.py",
  "tunix": "tunix_grpo.py",
  "torch": "torch_grpo.py",
}


def write_problem(
  folder: pathlib.Path, shape: dict[str, int], rows: int, length: int
) -> None:
  """Weights, batch and settings that all workers read."""
  model = models.Decoder(models.DecoderConfig(**shape), rngs=nnx.Rngs(0))
  models.save_pretrained(model, folder / "model")
  rng = np.random.default_rng(0)
  size = (rows, length)
  # Ids 0 and 1 are left to padding and the end of text.
  tokens = rng.integers(2, shape["vocab_size"], size, dtype=np.int32)
  noise = rng.normal(scale=0.2, size=size)
  np.savez(
    folder / "batch.npz",
    tokens=tokens,
    advantages=rng.normal(size=rows).astype(np.float32),
    # A fresh model is close to uniform; the noise clips some of the ratios.
    old_log_probs=(noise - np.log(shape["vocab_size"])).astype(np.float32),
  )
  settings = {
    "shape": shape,
    "learning_rate": 1e-5,
    "weight_decay": 0.01,
    "max_gradient_norm": 1.0,
    "clip_epsilon_low": 0.2,
    "clip_epsilon_high": 0.28,
  }
  (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def model_flops(
  shape: dict[str, int], rows: int, length: int, completion: int
) -> float:
  """Operations of one update; a backward pass takes two forward passes."""
  width, heads = shape["hidden_size"], shape["num_heads"] * shape["head_dim"]
  kv = shape["num_kv_heads"] * shape["head_dim"]
  weights = width * (2 * heads + 2 * kv + 3 * shape["intermediate_size"])
  # Scores and weighted values, over (length + 1) / 2 keys on average.
  scores = heads * (length + 1)
  layers = shape["num_layers"] * 2 * (weights + scores) * length
  head = 2 * width * shape["vocab_size"] * completion
  return 3.0 * rows * (layers + head)


def measure(arguments: argparse.Namespace, completion: int) -> dict[str, Any]:
  """Medians over turns, for one share of policy tokens."""
  shape = {
    "vocab_size": arguments.vocab_size,
    "hidden_size": arguments.width,
    "intermediate_size": 4 * arguments.width,
    "num_layers": arguments.layers,
    "num_heads": arguments.width // 64,
    "num_kv_heads": max(1, arguments.width // 128),
    "head_dim": 64,
  }
  rows, length = arguments.rows, arguments.length
  with tempfile.TemporaryDirectory() as path:
    folder = pathlib.Path(path)
    write_problem(folder, shape, rows, length)
    workers = {
      name: peers.Worker(
        name,
        _WORKERS / _SCRIPTS[name],
        folder,
        completion,
        cores=[arguments.core],
      )
      for name in arguments.workers
    }
    first = {name: worker.run("update") for name, worker in workers.items()}
    workers["ours"].run("product")
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    products = []
    for turn in range(arguments.repeats):
      for name, worker in workers.items():
        turns[name].append(worker.run("update"))
        print(turn, name, turns[name][-1], file=sys.stderr)
      products += [workers["ours"].run("product") for _ in range(9)]
    for worker in workers.values():
      worker.close()
  flops = model_flops(shape, rows, length, completion)
  return {
    "policy_tokens_of_a_row": completion,
    "shape": shape,
    "seconds": {
      n: [round(run["seconds"], 3) for run in runs] for n, runs in turns.items()
    },
    # Of the process, which another process on the core does not lengthen.
    "by_cpu_time": _figures(
      turns, products, rows * length, flops, "cpu_seconds"
    ),
    "by_wall_time": _figures(turns, products, rows * length, flops, "seconds"),
    "first_loss_and_gradient_norm": {n: a["result"] for n, a in first.items()},
    "versions": {n: a["versions"] for n, a in first.items()},
  }


def _figures(
  turns: dict[str, list[dict[str, Any]]],
  products: list[dict[str, Any]],
  tokens: int,
  flops: float,
  clock: str,
) -> dict[str, Any]:
  """Speeds and ratios of medians, by one of the two clocks."""
  medians = peers.medians(turns, clock)
  peak = statistics.median(p["result"] / p[clock] for p in products)
  return {
    "tokens_per_s": {n: round(tokens / s) for n, s in medians.items()},
    "ours_over": {
      n: round(s / medians["ours"], 3)
      for n, s in medians.items()
      if n != "ours"
    },
    "matmul_gflops_per_s": round(peak / 1e9, 1),
    "matmul_fraction": round(flops / medians["ours"] / peak, 3),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--layers", type=int, default=8)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--vocab-size", type=int, default=32_000)
  parser.add_argument("--rows", type=int, default=16)
  parser.add_argument("--length", type=int, default=512)
  parser.add_argument(
    "--policy-tokens",
    type=int,
    nargs="+",
    default=[256, 511],
    help="how many of a row's last tokens are the policy's; measured in turn",
  )
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--core", type=int, default=0)
  parser.add_argument(
    "--workers", nargs="+", default=list(_SCRIPTS), choices=list(_SCRIPTS)
  )
  arguments = parser.parse_args()
  report = {
    "benchmark": "update",
    "unit": "tokens/s",
    "rows": arguments.rows,
    "length": arguments.length,
    "results": [measure(arguments, n) for n in arguments.policy_tokens],
  }
  print(json.dumps(report))


if __name__ == "__main__":
  main()
