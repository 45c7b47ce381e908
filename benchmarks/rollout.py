"""Generated tokens a second, beside google-tunix, transformers and vLLM.

    .venv/bin/python -m benchmarks.rollout

Distinct prompts have 128 tokens, and every row generates 128 new ones. Float32,
one CPU core. All use the same weights and sample at temperature 1 over the
whole vocabulary. All four run in turns, one process each; peers live in
environments of their own, which the first run installs under
`.cache/benchmarks`. Prefill counts, compiling does not.

Ours is the rollout engine as training runs it. The stop automaton of the
answer's tag and of all tools' runs at every token. Log-probabilities and
entropies of sampled tokens are kept; the peers keep the tokens alone. No text
ends early: no id ends a text here. In this vocabulary eight or more ids spell a
tag, and an untrained policy does not write them.

`greedy_agreement` is the share of the first eight likeliest tokens of every row
in which a peer agrees with ours; it has to be 1, up to near ties.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from flax import nnx

from benchmarks import peers
from benchmarks import rollout_setup as setup
from rapo_jax import models

_WORKERS = pathlib.Path(__file__).resolve().parent / "rollout_peers"
_SCRIPTS = {
  peers.OURS: "ours.py",
  "tunix": "tunix_sampler.py",
  "torch": "torch_generate.py",
  "vllm": "vllm_generate.py",
}
_TARGETS = {"tunix": 2.0, "torch": 2.0, "vllm": 1.3}


def _variables(peer: str, core: int) -> dict[str, str]:
  """What a peer reads from its environment."""
  if peer != "vllm":
    return {}
  return {
    "VLLM_CPU_OMP_THREADS_BIND": str(core),
    "VLLM_CPU_KVCACHE_SPACE": "2",
    # In this process, so that its clock sees the work.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
  }


def write_problem(
  folder: pathlib.Path, rows: int, prompt_tokens: int, new_tokens: int
) -> None:
  """Weights, prompts and settings that all workers read."""
  # Wider weights than usual let the layers count beside the embedding. Alone it
  # would write the same token again and again.
  config = setup.decoder_config(initializer_range=0.06)
  models.save_pretrained(
    models.Decoder(config, rngs=nnx.Rngs(0)), folder / "model"
  )
  rng = np.random.default_rng(0)
  # Id 0 is left to padding.
  size = (rows, prompt_tokens)
  prompts = rng.integers(1, config.vocab_size, size, dtype=np.int32)
  np.save(folder / "prompts.npy", prompts)
  names = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers"),
    *("num_heads", "num_kv_heads", "head_dim"),
  )
  settings = {
    "new_tokens": new_tokens,
    "shape": {name: getattr(config, name) for name in names},
  }
  (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def measure(arguments: argparse.Namespace, rows: int) -> dict[str, Any]:
  """Medians over turns, for one batch size."""
  with tempfile.TemporaryDirectory() as path:
    folder = pathlib.Path(path)
    write_problem(folder, rows, arguments.prompt_tokens, arguments.new_tokens)
    workers = {
      name: peers.Worker(
        name,
        _WORKERS / _SCRIPTS[name],
        folder,
        cores=[arguments.core],
        variables=_variables(name, arguments.core),
      )
      for name in arguments.workers
    }
    greedy = {name: worker.run("greedy") for name, worker in workers.items()}
    for worker in workers.values():
      worker.run("sample")
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for turn in range(arguments.repeats):
      for name, worker in workers.items():
        turns[name].append(worker.run("sample"))
        print(rows, turn, name, turns[name][-1], file=sys.stderr)
    for worker in workers.values():
      worker.close()
  ours = np.asarray(greedy[peers.OURS]["result"])
  return {
    "rows": rows,
    "seconds": {
      n: [round(run["seconds"], 3) for run in runs] for n, runs in turns.items()
    },
    # Of the process, which another process on the core does not lengthen.
    "by_cpu_time": _figures(turns, rows * arguments.new_tokens, "cpu_seconds"),
    "by_wall_time": _figures(turns, rows * arguments.new_tokens, "seconds"),
    "greedy_agreement": {
      n: round(float(np.mean(ours == np.asarray(answer["result"]))), 4)
      for n, answer in greedy.items()
      if n != peers.OURS
    },
    "versions": {n: answer["versions"] for n, answer in greedy.items()},
  }


def _figures(
  turns: dict[str, list[dict[str, Any]]], tokens: int, clock: str
) -> dict[str, Any]:
  """Speeds and ratios of medians, by one of the two clocks."""
  medians = peers.medians(turns, clock)
  return {
    "tokens_per_s": {n: round(tokens / s) for n, s in medians.items()},
    "ours_over": {
      n: round(s / medians[peers.OURS], 3)
      for n, s in medians.items()
      if n != peers.OURS
    },
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rows", type=int, nargs="+", default=[16, 64])
  parser.add_argument("--prompt-tokens", type=int, default=128)
  parser.add_argument("--new-tokens", type=int, default=128)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--core", type=int, default=0)
  parser.add_argument(
    "--workers",
    nargs="+",
    default=list(_SCRIPTS),
    choices=list(_SCRIPTS),
    help="who takes part; ours has to",
  )
  arguments = parser.parse_args()
  report = {
    "benchmark": "rollout",
    "unit": "generated tokens/s",
    "prompt_tokens": arguments.prompt_tokens,
    "new_tokens": arguments.new_tokens,
    "targets": _TARGETS,
    "results": [measure(arguments, rows) for rows in arguments.rows],
  }
  print(json.dumps(report))


if __name__ == "__main__":
  main()
