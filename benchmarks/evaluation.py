"""How much of an evaluation is not rollout.

    python -m benchmarks.evaluation

Warm-starts the agents of the miniature world, which takes a minute. Then asks
the off-policy one, which solves most questions by its python tool, and keeps
every answer in a file. Prints one JSON line:

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
from rapo_jax.rollout import RolloutEngine
from rapo_jax.tasks.miniature import MiniatureTask
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
    agents = config.task("compute").own_agents()
    assert agents is not None
    folder = workdir.agent("compute", "base").parent
    agents.train(folder, report=lambda share, text: None)
    with open_task(
      config, workdir, "compute", load_encoder(config.encoder)
    ) as task:
      model = load_agent(config, workdir.agent("compute", "off_policy"))
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
