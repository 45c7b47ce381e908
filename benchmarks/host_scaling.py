"""What a host takes for a trajectory in its loop, and in retrieval.

    .venv/bin/python -m benchmarks.host_scaling

Each of several hosts runs the loop of its own slots, with tools and retrieval.
That work stays the same with so many more hosts and trajectories.

Runs the loop, as it is, for 64, 256 and 1,024 trajectories: hybrid rollouts by
a scripted policy with instant tools and a Step-Trace Buffer, see
`rollout_host`. Their device programs run here too, on the same core, and are
not counted. Reports milliseconds a trajectory, and what share they take of a
round of `--round-seconds` with `--a-host` trajectories a host. Retrieval runs
in a thread of its own beside decoding, so it has a line of its own. Here it
shares the core with decoding and waits for it: on a host with more cores it
takes far less than that line says. 64 trajectories take 150 s a turn.

The planner takes its figure of the loop from here
(`experiments/planner/host_loop.py`). What one host does for all is measured by
`score_and_pack`.

The defaults are a round of Qwen2.5-7B on v5p:4x4x2, which has eight hosts
(docs/scale.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from benchmarks import rollout_host
from benchmarks import rollout_setup as setup
from rapo_jax import retrieval

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
        **setup.about_this_machine(),
      }
    )
  )


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
