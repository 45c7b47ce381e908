"""Slow tools beside instant ones.

    .venv/bin/python -m benchmarks.rollout_tools

64 sequences in as many slots make five tool calls each. A call takes between 0
and 1 s, uniformly, or no time; the two take turns in one process on one core.
`slow_over_bound` is the time with slow tools over that with instant ones plus
the mean of one call, 0.5 s: what a rollout takes whose sequences never wait for
each other's tools, but for the last one. A sequence cannot spare its own calls,
though: they come one after the other, between its steps. With slow tools
sequences also stop at different moments. So decoding runs with some of its
slots idle, and more programs insert results.

The policy is scripted (see `rollout_setup`): six steps of 64 tokens, results
of 100. A thread a sequence, since a tool that waits takes no core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import numpy as np

from benchmarks import rollout_setup as setup
from rapo_jax.rollout import RolloutConfig, RolloutEngine, group_requests

_TARGET = 1.25


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--sequences", type=int, default=64)
  parser.add_argument("--prompt-tokens", type=int, default=128)
  parser.add_argument("--step-tokens", type=int, default=64)
  parser.add_argument("--tool-calls", type=int, default=5)
  parser.add_argument("--result-tokens", type=int, default=100)
  parser.add_argument("--max-delay", type=float, default=1.0, help="s")
  parser.add_argument(
    "--decode-chunk", type=int, default=RolloutConfig().decode_chunk
  )
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--core", type=int, default=0)
  arguments = parser.parse_args()
  setup.pin(arguments.core)
  turns = setup.alternate(_rollouts(arguments), arguments.repeats)
  seconds = {n: [t.seconds for t in ts] for n, ts in turns.items()}
  medians = {n: statistics.median(s) for n, s in seconds.items()}
  latency = arguments.max_delay / 2
  print(
    json.dumps(
      {
        "benchmark": "rollout_tools",
        "unit": "s a rollout",
        "sizes": vars(arguments),
        "seconds": {n: round(s, 3) for n, s in medians.items()},
        "ranges": {
          n: [round(min(s), 3), round(max(s), 3)] for n, s in seconds.items()
        },
        "slow_over_bound": round(
          medians["slow"] / (medians["instant"] + latency), 3
        ),
        "where_seconds": setup.median_stats(turns),
        "target": _TARGET,
        **setup.about_this_machine(),
      }
    )
  )


def _rollouts(
  arguments: argparse.Namespace,
) -> dict[str, Callable[[int], setup.Turn]]:
  """The same rollout with instant and with slow tools."""
  policy = setup.scripted_policy([arguments.step_tokens])
  rng = np.random.default_rng(0)
  prompts = [
    policy.prompt(arguments.prompt_tokens, rng)
    for _ in range(arguments.sequences)
  ]
  wanted = group_requests(
    setup.queries(len(prompts)), prompts, num_generations=1, num_hybrid=0
  )
  config = RolloutConfig(
    num_slots=arguments.sequences,
    prefill_rows=min(arguments.sequences, setup.PREFILL_ROWS),
    max_prompt_tokens=arguments.prompt_tokens,
    max_response_tokens=(arguments.tool_calls + 1) * arguments.step_tokens
    + arguments.tool_calls * arguments.result_tokens,
    max_step_tokens=arguments.step_tokens,
    max_tool_tokens=arguments.result_tokens,
    max_tool_calls=arguments.tool_calls,
    decode_chunk=arguments.decode_chunk,
    trajectory_timeout_s=setup.TRAJECTORY_TIMEOUT_S,
    tool_threads=arguments.sequences,
  )

  def rollout(max_delay_s: float) -> Callable[[int], setup.Turn]:
    tool = policy.tool(arguments.result_tokens, max_delay_s)
    engine = RolloutEngine(
      config,
      policy.tokenizer,
      vocab_size=setup.VOCAB_SIZE,
      tools={tool.name: tool},
    )

    def run(number: int) -> setup.Turn:
      turn = setup.timed(
        lambda: engine.rollout(policy.model, wanted, seed=0, update=number)
      )
      setup.check_steps(
        turn.trajectories, [arguments.step_tokens], arguments.tool_calls
      )
      return turn

    return run

  return {
    "instant": rollout(0.0),
    "slow": rollout(arguments.max_delay),
  }


if __name__ == "__main__":
  main()
