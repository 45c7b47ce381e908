"""Up to how many hosts one host can run the loop of all.

    .venv/bin/python -m benchmarks.host_scaling

Of several hosts the first alone runs the loop between device programs, the
tools, and the queries of retrieval. Its work grows with the trajectories of a
round. With so many more devices the time of a round stays. So there is a number
of hosts from which on the others wait for the first.

Runs that loop, as it is, for the trajectories of 1, 4 and 16 hosts: hybrid
rollouts by a scripted policy with instant tools and a Step-Trace Buffer, see
`rollout_host`. Their device programs run here too, on the same core, and are
not counted. Reports milliseconds a trajectory of the loop and of retrieval. For
a round of `--round-seconds` with `--a-host` trajectories a host it adds at how
many hosts each takes 5 % of it, and at how many all of it. Retrieval runs in a
thread of its own beside decoding, so it has a line of its own. Here it
shares the core with decoding and waits for it: on a host with more cores it
takes far less than that line says.

The planner takes its figure of the loop from here
(`experiments/planner/host_loop.py`).

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
      name: statistics.median(
        turn.stats.numbers()[f"{name}_seconds"] for turn in turns
      )
      / len(wanted)
      for name in ("host", "retrieval_busy")
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
        "hosts": {
          name: {
            share: round(
              part * known.round_seconds / (known.a_host * largest[name]), 1
            )
            for share, part in (("5 %", 0.05), ("100 %", 1.0))
          }
          for name in largest
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
