"""Inserting observations, beside generating without a break.

    .venv/bin/python -m benchmarks.rollout_inserts

Five tool calls a trajectory, each answered by 100 tokens, and six steps of 64
tokens around them. The rollout inserts what came back into its cache and goes
on. Three things stand beside it, in turns, in one process on one core:

- `unbroken`: one generation that ends at the same length. It samples as many
  tokens as the trajectory samples and inserts together. So much the trajectory
  would cost if the policy wrote everything itself. An inserted token runs
  through the model too, but without the output head, without sampling, and many
  at once; so the ratio tells whether stopping, tools, encoding and inserting
  cost more than they spare.
- `sampled_alone`: one generation of as many tokens as the trajectory samples,
  and none for those that it inserts. The trajectory's time beyond it is the
  whole cost of its inserts, the model's own work on them included.
- `prefill_again`: what engines without an insertion do. Every step is a request
  of its own, whose prompt is all that there is so far.

The policy is scripted (see `rollout_setup`), so all sequences stop together;
tools answer at once.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import statistics

import numpy as np

from benchmarks import rollout_setup as setup
from rapo_jax.rollout import (
  RolloutConfig,
  RolloutEngine,
  RolloutStats,
  group_requests,
)
from rapo_jax.trajectory import Trajectory

_TARGET = 1.15


class Comparison:
  """The ways to come to as many tokens."""

  def __init__(self, arguments: argparse.Namespace):
    self._steps = arguments.inserts + 1
    self._step_tokens = arguments.step_tokens
    self._inserts = arguments.inserts
    self._policy = setup.scripted_policy([arguments.step_tokens])
    self._tool = self._policy.tool(arguments.insert_tokens)
    self._length = (
      self._steps * arguments.step_tokens
      + arguments.inserts * arguments.insert_tokens
    )
    rng = np.random.default_rng(0)
    self._calling, self._endless = (
      [
        self._policy.prompt(arguments.prompt_tokens, rng, endless=endless)
        for _ in range(arguments.sequences)
      ]
      for endless in (False, True)
    )
    config = RolloutConfig(
      num_slots=arguments.sequences,
      prefill_rows=min(arguments.sequences, setup.PREFILL_ROWS),
      max_prompt_tokens=arguments.prompt_tokens,
      max_response_tokens=self._length,
      max_step_tokens=self._length,
      max_tool_tokens=arguments.insert_tokens,
      max_tool_calls=arguments.inserts,
      trajectory_timeout_s=setup.TRAJECTORY_TIMEOUT_S,
    )
    self._engine = self._make(config)
    self._sampled = self._steps * arguments.step_tokens
    self._short_engine = self._make(
      dataclasses.replace(config, max_response_tokens=self._sampled)
    )
    # Room for everything before the last step; a call ends a request.
    self._step_engine = self._make(
      dataclasses.replace(
        config,
        max_prompt_tokens=arguments.prompt_tokens
        + self._length
        - arguments.step_tokens,
        max_response_tokens=arguments.step_tokens,
        max_step_tokens=arguments.step_tokens,
        max_tool_calls=0,
      )
    )

  def _make(self, config: RolloutConfig) -> RolloutEngine:
    return RolloutEngine(
      config,
      self._policy.tokenizer,
      vocab_size=setup.VOCAB_SIZE,
      tools={self._tool.name: self._tool},
    )

  def _generate(
    self, engine: RolloutEngine, prompts: list[np.ndarray], update: int
  ) -> tuple[list[Trajectory], RolloutStats]:
    wanted = group_requests(
      setup.queries(len(prompts)), prompts, num_generations=1, num_hybrid=0
    )
    return engine.rollout(self._policy.model, wanted, seed=0, update=update)

  def inserts(self, number: int) -> setup.Turn:
    """Trajectories with tool calls, as training rolls them out."""
    turn = setup.timed(
      lambda: self._generate(self._engine, self._calling, number)
    )
    setup.check_steps(turn.trajectories, [self._step_tokens], self._inserts)
    self._check_lengths(turn, self._length)
    return turn

  def unbroken(self, number: int) -> setup.Turn:
    """As many tokens by one generation."""
    turn = setup.timed(
      lambda: self._generate(self._engine, self._endless, number)
    )
    self._check_lengths(turn, self._length)
    return turn

  def sampled_alone(self, number: int) -> setup.Turn:
    """As many sampled tokens by one generation."""
    turn = setup.timed(
      lambda: self._generate(self._short_engine, self._endless, number)
    )
    self._check_lengths(turn, self._sampled)
    return turn

  def prefill_again(self, number: int) -> setup.Turn:
    """The same trajectories, one request a step."""
    turn = setup.timed(lambda: self._step_by_step(number))
    self._check_lengths(turn, self._length)
    return turn

  def _step_by_step(self, number: int) -> tuple[list[Trajectory], RolloutStats]:
    prompts = list(self._calling)
    sums: collections.Counter[str] = collections.Counter()
    trajectories: list[Trajectory] = []
    for step in range(self._steps):
      trajectories, stats = self._generate(self._step_engine, prompts, number)
      setup.check_steps(trajectories, [self._step_tokens], 0)
      sums.update({name: getattr(stats, name) for name in setup.SUMS})
      if step < self._inserts:
        prompts = [
          np.append(trajectory.tokens, self._observation()).astype(np.int32)
          for trajectory in trajectories
        ]
    return trajectories, RolloutStats(**sums)

  def _observation(self) -> list[int]:
    text = f"<result> {self._tool.call('').text} </result>"
    return self._policy.tokenizer.encode(
      text, add_special_tokens=False, split_special_tokens=True
    )

  def _check_lengths(self, turn: setup.Turn, response_tokens: int) -> None:
    wanted = len(self._calling[0]) + response_tokens
    lengths = {len(trajectory.tokens) for trajectory in turn.trajectories}
    if lengths != {wanted}:
      raise ValueError(
        f"all trajectories must hold {wanted} tokens, got {sorted(lengths)}."
      )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--sequences", type=int, default=16)
  parser.add_argument("--prompt-tokens", type=int, default=128)
  parser.add_argument("--step-tokens", type=int, default=64)
  parser.add_argument("--inserts", type=int, default=5)
  parser.add_argument("--insert-tokens", type=int, default=100)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--core", type=int, default=0)
  arguments = parser.parse_args()
  setup.pin(arguments.core)
  comparison = Comparison(arguments)
  turns = setup.alternate(
    {
      "inserts": comparison.inserts,
      "unbroken": comparison.unbroken,
      "sampled_alone": comparison.sampled_alone,
      "prefill_again": comparison.prefill_again,
    },
    arguments.repeats,
  )
  print(
    json.dumps(
      {
        "benchmark": "rollout_inserts",
        "unit": "s a rollout",
        "sizes": vars(arguments),
        "by_cpu_time": _figures(turns, "cpu_seconds"),
        "by_wall_time": _figures(turns, "seconds"),
        "where_seconds": setup.median_stats(turns),
        "target": _TARGET,
        **setup.about_this_machine(),
      }
    )
  )


def _figures(
  turns: dict[str, list[setup.Turn]], clock: str
) -> dict[str, object]:
  """Medians, their spread and the ratios, by one of the two clocks."""
  seconds = {n: [getattr(t, clock) for t in ts] for n, ts in turns.items()}
  medians = {n: statistics.median(s) for n, s in seconds.items()}
  return {
    "seconds": {n: round(s, 3) for n, s in medians.items()},
    "ranges": {
      n: [round(min(s), 3), round(max(s), 3)] for n, s in seconds.items()
    },
    "inserts_over_unbroken": round(medians["inserts"] / medians["unbroken"], 3),
    "inserts_over_sampled_alone": round(
      medians["inserts"] / medians["sampled_alone"], 3
    ),
    "prefill_again_over_inserts": round(
      medians["prefill_again"] / medians["inserts"], 3
    ),
  }


if __name__ == "__main__":
  main()
