"""Cost of an update, RAPO against GRPO, with the same weights and questions.

    python -m benchmarks.matched_policy --workdir runs/quickstart

Comparing whole runs misleads: a policy that answers early is cheap. So both
methods here roll out the same policy on the same questions, and nothing is
learned in between: every repetition starts from the same weights. Needs a work
folder whose agents and buffer stages are done. Prints one JSON line with
medians over repetitions and the ratio GRPO / RAPO of each figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence

from experiments.config import ExperimentConfig, Method
from experiments.flags import apply_overrides, load_config
from experiments.run import use_compilation_cache
from experiments.tasks import Task, open_task
from experiments.workdir import Workdir
from rapo_jax import models
from rapo_jax.data import order
from rapo_jax.retrieval import SentenceEncoder, StepTraceBuffer
from rapo_jax.rollout import RolloutEngine
from rapo_jax.training import Trainer, init_train_state

FIGURES = (
  "rollout/generated_tokens",
  "rollout/tool_calls",
  "rollout/response_tokens",
  "rollout/seconds",
  "rollout/decode_seconds",
  "rollout/cache_seconds",
  "rollout/tool_seconds",
  "rollout/retrieval_seconds",
  "update/seconds",
  "step/seconds",
)


def measure(
  config: ExperimentConfig,
  task: Task,
  buffer: StepTraceBuffer,
  method: Method,
  path: pathlib.Path,
  repetitions: int,
) -> list[dict[str, float]]:
  """Metrics of `repetitions` updates, each on other questions."""
  rollout, objective = config.method(method)
  model = models.from_pretrained(path)
  trainer = Trainer(
    RolloutEngine(
      rollout,
      task.tokenizer,
      vocab_size=model.config.vocab_size,
      tools=task.tools,
      buffer=buffer,
      retrieval=config.retrieval,
    ),
    task.tokenizer,
    rollout=rollout,
    objective=objective,
    optimizer=dataclasses.replace(config.optimizer, learning_rate=0.0),
    update=config.update,
    seed=0,
  )
  rows = []
  # The first one compiles and fills the caches of the encoder.
  for update in range(-1, repetitions):
    chosen = order.batch(
      0, max(update, 0), config.update.queries_per_update, len(task.train)
    )
    queries = [task.train[i] for i in chosen]
    state = init_train_state(models.from_pretrained(path), config.optimizer)
    _, _, row = trainer.step(
      state, queries, [task.prompt(q) for q in queries], max(update, 0)
    )
    if update >= 0:
      rows.append(row)
  return rows


def compare(
  config: ExperimentConfig, workdir: Workdir, family: str, repetitions: int
) -> dict[str, object]:
  """Medians of both methods for the base and the off-policy agent."""
  encoder = SentenceEncoder.from_pretrained()
  result: dict[str, object] = {}
  with open_task(config, workdir, family, encoder) as task:
    buffer = StepTraceBuffer.load(workdir.buffer(family), encoder)
    for name, path in (
      ("base", task.base_path),
      ("off_policy", task.off_policy_path),
    ):
      grpo, rapo = (
        measure(config, task, buffer, method, path, repetitions)
        for method in ("grpo", "rapo")
      )
      result[name] = {
        figure: _compared(
          [row[figure] for row in grpo], [row[figure] for row in rapo]
        )
        for figure in FIGURES
      }
  return result


def _compared(grpo: list[float], rapo: list[float]) -> dict[str, float]:
  first, second = statistics.median(grpo), statistics.median(rapo)
  return {
    "grpo": round(first, 4),
    "rapo": round(second, 4),
    "ratio": round(first / second, 3) if second else float("nan"),
  }


def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--config", default="experiments/configs/quickstart.py")
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--family", default="multihop")
  parser.add_argument("--repetitions", type=int, default=7)
  known, overrides = parser.parse_known_args(arguments)
  config = apply_overrides(load_config(known.config), overrides)
  use_compilation_cache()
  figures = compare(
    config, Workdir(known.workdir), known.family, known.repetitions
  )
  print(
    json.dumps(
      {
        "benchmark": "matched_policy",
        "family": known.family,
        "repetitions": known.repetitions,
        **figures,
      }
    )
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
