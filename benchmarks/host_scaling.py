"""What a host takes for a trajectory, and up to how many hosts that works.

    .venv/bin/python -m benchmarks.host_scaling

Each host runs the loop of its own slots, with tools and retrieval: that work
stays the same with so many more hosts and trajectories. The first host scores
and packs the trajectories of all: that grows, and there is a number of hosts
from which on the others wait for it.

Runs both, as they are, for 64, 256 and 1,024 trajectories: hybrid rollouts by a
scripted policy with instant tools and a Step-Trace Buffer, see `rollout_host`,
then rewards, advantages and packing. Device programs run here too, on the same
core, and are not counted. Reports milliseconds a trajectory of each. For a
round of `--round-seconds` with `--a-host` trajectories a host it adds what
share of it the loop takes, and at how many hosts scoring and packing take 5 %
of it, and all of it. Retrieval runs in a thread of its own beside decoding, so
it has a line of its own. Here it shares the core with decoding and waits for
it: on a host with more cores it takes far less than that line says.

The planner takes its figures from here (`experiments/planner/host_loop.py`).

The defaults are a round of Qwen2.5-7B on v5p:4x4x2, which has eight hosts
(docs/scale.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from benchmarks import rollout_host
from benchmarks import rollout_setup as setup
from rapo_jax import retrieval, rewards
from rapo_jax.algorithms import ObjectiveConfig
from rapo_jax.rollout import RolloutConfig, RolloutEngine
from rapo_jax.training import UpdateConfig
from rapo_jax.training.experience import (
  evaluate_trajectories,
  score_trajectories,
)
from rapo_jax.training.trainer import minibatches
from rapo_jax.trajectory import Trajectory

_QUESTIONS = (4, 16, 64)


def main() -> None:
  known = _arguments()
  setup.pin(known.core)
  policy = setup.scripted_policy(known.step_tokens)
  print("building the buffer", file=sys.stderr)
  buffer, _ = rollout_host.make_buffer(
    known.traces, policy.words, retrieval.SentenceEncoder.from_pretrained()
  )
  found: dict[int, dict[str, float]] = {}
  for questions in known.questions:
    sizes = argparse.Namespace(**{**vars(known), "questions": questions})
    engine, wanted = rollout_host.make_rollout(policy, buffer, sizes)

    def run(number: int, engine: Any = engine, wanted: Any = wanted) -> Any:
      return setup.timed(
        lambda: engine.rollout(policy.model, wanted, seed=0, update=number)
      )

    turns = setup.alternate({"hybrid": run}, known.repeats)["hybrid"]
    found[len(wanted)] = {
      name: statistics.median(seconds) / len(wanted)
      for name, seconds in {
        "loop": [t.stats.numbers()["host_seconds"] for t in turns],
        "retrieval_busy": [t.stats.retrieval_busy_seconds for t in turns],
        "score_and_pack": [
          _leader_seconds(policy, engine, t.trajectories) for t in turns
        ],
      }.items()
    }
  largest = found[max(found)]
  print(
    json.dumps(
      {
        "benchmark": "host_scaling",
        "unit": "ms a trajectory",
        "sizes": vars(known),
        "by_trajectories": {
          count: {name: round(1e3 * s, 2) for name, s in one.items()}
          for count, one in found.items()
        },
        "share_of_a_round": {
          name: round(known.a_host * largest[name] / known.round_seconds, 3)
          for name in ("loop", "retrieval_busy")
        },
        "hosts": {
          share: round(
            part
            * known.round_seconds
            / (known.a_host * largest["score_and_pack"]),
            1,
          )
          for share, part in (("5 %", 0.05), ("100 %", 1.0))
        },
        **setup.about_this_machine(),
      }
    )
  )


def _leader_seconds(
  policy: setup.ScriptedPolicy,
  engine: RolloutEngine,
  trajectories: list[Trajectory],
) -> float:
  """Of scoring and packing, as the trainer does it between two rollouts."""
  config = RolloutConfig()
  questions = len(trajectories) // config.num_generations
  update = UpdateConfig(
    queries_per_update=questions,
    queries_per_minibatch=min(questions, 16),
    row_length=engine.max_length,
  )
  objective, queries = ObjectiveConfig(), setup.queries(questions)
  began = time.perf_counter()
  scores = score_trajectories(
    *(trajectories, queries, policy.tokenizer),
    *(rewards.OUTCOME, rewards.RECIPE_TAGS),
  )
  experience = evaluate_trajectories(
    *(trajectories, queries, policy.tokenizer, objective),
    max_length=engine.max_length,
    max_steps=config.max_steps,
    max_response_tokens=engine.max_length,
    scores=scores,
  )
  minibatches(experience, update, objective)
  return time.perf_counter() - began


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  rollout_host.add_sizes(parser)
  parser.add_argument(
    "--questions", type=int, nargs="+", default=list(_QUESTIONS)
  )
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--round-seconds", type=float, default=18.9)
  parser.add_argument("--a-host", type=int, default=64)
  return parser.parse_args()


if __name__ == "__main__":
  main()
