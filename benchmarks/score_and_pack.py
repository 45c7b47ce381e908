"""What one host takes to score and pack the trajectories of all.

  python -m benchmarks.score_and_pack --tokenizer models/smollm2-135m

Between two rollouts the host that leads takes in the trajectories, scores them,
works out advantages, packs them and sends each host its rows, and all devices
wait (docs/pods.md). That work grows with the trajectories of a round, and more
hosts do not shorten it.

Runs the trainer's own functions on made-up trajectories of 16 questions: a
prompt of 768 tokens, five tool calls with results of 200 tokens, and an answer,
2,794 tokens in the tokens of SmolLM2. The text is this project's README, the
reward the recipe's. Reports medians in milliseconds a trajectory, and at how
many hosts of `--a-host` trajectories they take 5 % of a round of
`--round-seconds`, and all of it. The planner takes its figure from here
(`experiments/planner/host_loop.py`).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import numpy as np
import transformers

from benchmarks import rollout_setup as setup
from benchmarks.peers import ROOT
from rapo_jax import hosts, rewards
from rapo_jax.algorithms import ObjectiveConfig
from rapo_jax.data import Query
from rapo_jax.training import UpdateConfig
from rapo_jax.training.experience import (
  evaluate_trajectories,
  score_trajectories,
)
from rapo_jax.training.trainer import minibatches
from rapo_jax.trajectory import FinishReason, TokenKind, Trajectory

_QUESTIONS, _ROLLOUTS, _CALLS = 16, 16, 5
_LENGTH, _RESPONSE = 5632, 4096


def make_trajectory(
  tokenizer: Any,
  words: list[int],
  rng: np.random.Generator,
  place: tuple[int, int],
) -> Trajectory:
  """A trajectory of steps with python calls, then an answer."""
  ids: list[int] = []
  kinds: list[TokenKind] = []
  steps: list[int] = []

  def add(kind: TokenKind, step: int, *parts: str | int) -> None:
    for part in parts:
      if isinstance(part, str):
        piece = tokenizer.encode(part)
      else:
        start = int(rng.integers(len(words) - part))
        piece = words[start : start + part]
      ids.extend(piece)
      kinds.extend([kind] * len(piece))
      steps.extend([step] * len(piece))

  add(TokenKind.PROMPT, -1, 768)
  for step in range(_CALLS):
    call = "</think><python>print(1)</python>"
    add(TokenKind.POLICY, step, "<think>", 150, call)
    add(TokenKind.OBSERVATION, step, "<result>", 200, "</result>")
  answer = r"</think><answer>It is \boxed{42}</answer>"
  add(TokenKind.POLICY, _CALLS, "<think>", 150, answer)
  group, index = place
  return Trajectory(
    tokens=np.array(ids, np.int32),
    kinds=np.array(kinds, np.int8),
    step_ids=np.array(steps, np.int32),
    log_probs=-rng.random(len(ids), dtype=np.float32),
    entropies=rng.random(len(ids), dtype=np.float32),
    query_id=f"q{group}",
    group_id=group,
    index=index,
    hybrid=index >= _ROLLOUTS // 2,
    policy_version=0,
    finish_reason=FinishReason.ANSWER,
  )


def take(
  trajectories: list[Trajectory], queries: list[Query], tokenizer: Any
) -> dict[str, float]:
  """Seconds of each part, as the trainer does them one after another."""
  marks = [time.perf_counter()]
  taken_in = hosts.decode(hosts.encode(trajectories))
  marks.append(time.perf_counter())
  scores = score_trajectories(
    *(taken_in, queries, tokenizer, rewards.OUTCOME, rewards.RECIPE_TAGS)
  )
  marks.append(time.perf_counter())
  experience = evaluate_trajectories(
    *(taken_in, queries, tokenizer, ObjectiveConfig()),
    max_length=_LENGTH,
    max_steps=_CALLS + 1,
    max_response_tokens=_RESPONSE,
    scores=scores,
  )
  marks.append(time.perf_counter())
  update = UpdateConfig(
    queries_per_update=_QUESTIONS,
    queries_per_minibatch=_QUESTIONS,
    row_length=_LENGTH,
  )
  packed = minibatches(experience, update, ObjectiveConfig())
  marks.append(time.perf_counter())
  for one in packed:
    hosts.encode(one.batch)
  marks.append(time.perf_counter())
  names = ("take in", "score", "advantages", "pack", "send")
  return dict(zip(names, np.diff(marks).tolist(), strict=True))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--round-seconds", type=float, default=18.9)
  parser.add_argument("--a-host", type=int, default=64)
  known = parser.parse_args()
  tokenizer = transformers.AutoTokenizer.from_pretrained(known.tokenizer)
  words = tokenizer.encode((ROOT / "README.md").read_text(encoding="utf-8"))
  rng = np.random.default_rng(0)
  trajectories = [
    make_trajectory(tokenizer, words, rng, (group, index))
    for group in range(_QUESTIONS)
    for index in range(_ROLLOUTS)
  ]
  queries = [
    Query(f"q{n}", "?", ("42",), ({"role": "user", "content": "?"},), "t")
    for n in range(_QUESTIONS)
  ]
  take(trajectories, queries, tokenizer)  # Compiles.
  turns = [take(trajectories, queries, tokenizer) for _ in range(known.repeats)]
  seconds = {
    name: statistics.median(turn[name] for turn in turns) / len(trajectories)
    for name in turns[0]
  }
  total = sum(seconds.values())
  print(
    json.dumps(
      {
        "benchmark": "score_and_pack",
        "unit": "ms a trajectory",
        "tokens": round(statistics.mean(len(t.tokens) for t in trajectories)),
        "parts": {name: round(1e3 * s, 2) for name, s in seconds.items()},
        "all": round(1e3 * total, 2),
        "hosts": {
          share: round(part * known.round_seconds / (known.a_host * total), 1)
          for share, part in (("5 %", 0.05), ("100 %", 1.0))
        },
        **setup.about_this_machine(),
      }
    )
  )


if __name__ == "__main__":
  main()
