"""How much of an evaluation is not rollout.

    python -m benchmarks.evaluation

Asks questions of the miniature world of an agent that has learned nothing, with
its python tool, and keeps every answer in a file. Prints one JSON line:

- `questions`: asked once, and once more greedily.
- `seconds`: of the whole evaluation, files and figures included.
- `rollout_seconds`: spent in the rollout engine.
- `outside_share`: of `seconds` that is not rollout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any

from experiments.config import ExperimentConfig, miniature_rollout
from experiments.policies import load_agent
from experiments.stages.evaluate import evaluate
from experiments.tasks import load_encoder, open_task
from experiments.workdir import Workdir
from rapo_jax import models
from rapo_jax.rollout import RolloutEngine
from rapo_jax.tasks.miniature import MiniatureTask
from rapo_jax.tasks.miniature.agents import AgentsConfig, initial_model
from rapo_jax.tasks.miniature.task import MiniatureAgents
from rapo_jax.tasks.miniature.tokenizer import end_ids
from rapo_jax.tasks.miniature.world import WorldConfig


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--questions", type=int, default=1000)
  known = parser.parse_args()
  world = WorldConfig(num_train=8, num_held_out=known.questions)
  config = ExperimentConfig(
    name="benchmark",
    tasks=(MiniatureTask("compute", world=world),),
    rollout=dataclasses.replace(miniature_rollout(), num_hybrid=0),
    evaluation=dataclasses.replace(
      ExperimentConfig(name="").evaluation, num_samples=1
    ),
  )
  with tempfile.TemporaryDirectory() as name:
    workdir = Workdir(pathlib.Path(name))
    _write_agents(workdir, world)
    with open_task(
      config, workdir, "compute", load_encoder(config.encoder)
    ) as task:
      model = load_agent(config, workdir.agent("compute", "base"))
      # Compiles.
      few = dataclasses.replace(
        task, evaluation={"held_out": task.held_out[:16]}
      )
      evaluate(config, few, model)
      rollout_s = _timed_rollouts()
      started = time.perf_counter()
      evaluate(config, task, model, path=workdir.root / "answers.jsonl")
      seconds = time.perf_counter() - started
  print(
    json.dumps(
      {
        "benchmark": "evaluation",
        "questions": known.questions,
        "seconds": round(seconds, 2),
        "rollout_seconds": round(sum(rollout_s), 2),
        "outside_share": round(1 - sum(rollout_s) / seconds, 4),
      }
    )
  )


def _write_agents(workdir: Workdir, world: WorldConfig) -> None:
  """Both agents of the task, with random weights."""
  tokenizer = MiniatureAgents("compute", world, AgentsConfig()).tokenizer()
  model = initial_model(AgentsConfig(), len(tokenizer))
  for agent in ("base", "off_policy"):
    models.save_pretrained(
      model,
      workdir.agent("compute", agent),
      tokenizer=tokenizer,
      end_ids=end_ids(tokenizer),
    )


def _timed_rollouts() -> list[float]:
  """Seconds of each rollout from now on."""
  seconds: list[float] = []
  rollout = RolloutEngine.rollout

  def timed(self: RolloutEngine, *args: Any, **kwargs: Any) -> Any:
    started = time.perf_counter()
    try:
      return rollout(self, *args, **kwargs)
    finally:
      seconds.append(time.perf_counter() - started)

  RolloutEngine.rollout = timed  # type: ignore[method-assign]
  return seconds


if __name__ == "__main__":
  main()
