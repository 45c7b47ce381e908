"""What the host takes between device programs, retrieval included.

    .venv/bin/python -m benchmarks.rollout_host

A hybrid rollout with instant tools and a Step-Trace Buffer of 169,489 traces: 4
questions, 16 trajectories each, 8 of them hybrid, retrieval at every other
boundary. Steps of 16 to 112 tokens, five tool calls, results of 100 tokens,
retrieved steps of 40. Keys in the buffer are made up, in bundles as those of
step traces are (see `index_vectors`). The real encoder embeds the queries. The
texts are English words, each of which is one wordpiece to it. All results are
new, so no vector is found in the encoder's cache.

The engine's own clock splits the rollout's wall time into shares:

- `host`: in which no device program of the policy ran and no tool was waited
  for: retrieval, and the loop's own work.
- `retrieval`: embedding and searching, of which `search` is the index's.
- `loop`: the rest of `host`.
- `tools`: nothing decoded, and the host waited for tools.

What the host copies from the device after a chunk counts as decoding there.
The policy is scripted (see `rollout_setup`).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time

import numpy as np

from benchmarks import index_vectors
from benchmarks import rollout_setup as setup
from rapo_jax import retrieval
from rapo_jax.rollout import RolloutConfig, RolloutEngine, group_requests
from rapo_jax.rollout.requests import RolloutRequest

_TARGET = 0.05
_RETRIEVED_WORDS = 32
_BUNDLES = 10_000


class TimedIndex:
  """The index that training takes, and how long it was searched.

  Attributes:
    encoder_sha256: the index's.
    parameters: the index's.
    seconds: of all searches so far.
    queries: looked up so far.
  """

  def __init__(self, vectors: np.ndarray):
    self._index = retrieval.index_class().build(vectors)
    self.encoder_sha256 = self._index.encoder_sha256
    self.parameters = self._index.parameters
    self.seconds = 0.0
    self.queries = 0

  def __len__(self) -> int:
    return len(self._index)

  def search(
    self, queries: np.ndarray, num_neighbors: int
  ) -> retrieval.Neighbors:
    """Searches under the clock."""
    began = time.perf_counter()
    neighbors = self._index.search(queries, num_neighbors)
    self.seconds += time.perf_counter() - began
    self.queries += len(queries)
    return neighbors

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the index that is timed."""
    self._index.save(path)


def make_buffer(
  size: int, words: tuple[str, ...], encoder: retrieval.SentenceEncoder
) -> tuple[retrieval.StepTraceBuffer, TimedIndex]:
  """A buffer of made-up keys and short steps, and its index."""
  rng = np.random.default_rng(0)
  keys = index_vectors.made_up_keys(_BUNDLES, encoder.dimension, rng)
  index = TimedIndex(np.concatenate([*index_vectors.moved(keys, size, rng)]))
  chosen = rng.integers(len(words), size=(size, _RETRIEVED_WORDS))

  def step(row: np.ndarray) -> str:
    query, *result = (words[i] for i in row)
    return f"<search> {query} </search><result> {' '.join(result)} </result>"

  traces = [
    retrieval.StepTrace(
      question=f"question {i}",
      history=(),
      step=step(row),
      reward=1.0,
      source="random",
      trace_id=i,
      query_id=f"q{i}",
      step_index=0,
      answers=False,
    )
    for i, row in enumerate(chosen)
  ]
  buffer = retrieval.StepTraceBuffer(traces, range(size), index, encoder)
  return buffer, index


def make_rollout(
  policy: setup.ScriptedPolicy,
  buffer: retrieval.StepTraceBuffer,
  sizes: argparse.Namespace,
) -> tuple[RolloutEngine, list[RolloutRequest]]:
  """An engine with a slot for each trajectory, and what to ask it.

  Args:
    policy: writes steps of known lengths.
    buffer: is asked at the boundaries of half of the trajectories.
    sizes: what the command line says.
  """
  config = RolloutConfig(
    num_slots=sizes.questions * RolloutConfig.num_generations,
    max_prompt_tokens=sizes.prompt_tokens,
    # Room for a retrieved step at every boundary.
    max_response_tokens=(sizes.tool_calls + 1) * max(sizes.step_tokens)
    + sizes.tool_calls * (sizes.result_tokens + 2 * _RETRIEVED_WORDS),
    max_step_tokens=max(sizes.step_tokens),
    max_tool_tokens=sizes.result_tokens,
    max_tool_calls=sizes.tool_calls,
    trajectory_timeout_s=setup.TRAJECTORY_TIMEOUT_S,
  )
  tool = policy.tool(sizes.result_tokens)
  engine = RolloutEngine(
    config,
    policy.tokenizer,
    vocab_size=setup.VOCAB_SIZE,
    tools={tool.name: tool},
    buffer=buffer,
  )
  rng = np.random.default_rng(0)
  wanted = group_requests(
    setup.queries(sizes.questions),
    [policy.prompt(sizes.prompt_tokens, rng) for _ in range(sizes.questions)],
    num_generations=config.num_generations,
    num_hybrid=config.num_hybrid,
  )
  return engine, wanted


def main() -> None:
  arguments = _arguments()
  setup.pin(arguments.core)
  policy = setup.scripted_policy(arguments.step_tokens)
  print("building the buffer", file=sys.stderr)
  buffer, index = make_buffer(
    arguments.traces, policy.words, retrieval.SentenceEncoder.from_pretrained()
  )
  engine, wanted = make_rollout(policy, buffer, arguments)
  searched: list[tuple[float, int]] = []

  def run(number: int) -> setup.Turn:
    began, queries = index.seconds, index.queries
    turn = setup.timed(
      lambda: engine.rollout(policy.model, wanted, seed=0, update=number)
    )
    setup.check_steps(
      turn.trajectories, arguments.step_tokens, arguments.tool_calls
    )
    searched.append((index.seconds - began, index.queries - queries))
    return turn

  turns = setup.alternate({"hybrid": run}, arguments.repeats)["hybrid"]
  splits = [
    _split(turn, seconds)
    for turn, (seconds, _) in zip(turns, searched[1:], strict=True)
  ]
  events = [e for t in turns[-1].trajectories for e in t.retrieval_events]
  print(
    json.dumps(
      {
        "benchmark": "rollout_host",
        "unit": "share of the rollout's wall time, and s",
        "sizes": vars(arguments),
        "share": {
          name: round(
            statistics.median(split[name] / split["all"] for split in splits), 4
          )
          for name in splits[0]
        },
        "seconds": {
          name: round(statistics.median(split[name] for split in splits), 3)
          for name in splits[0]
        },
        "cpu_seconds": round(
          statistics.median(turn.cpu_seconds for turn in turns), 3
        ),
        "retrievals": len(events),
        "hits": sum(event.outcome == "hit" for event in events),
        "search_ms_a_query": round(
          statistics.median(s / n for s, n in searched[1:]) * 1e3, 2
        ),
        "targets": {"host": _TARGET, "retrieval": _TARGET},
        **setup.about_this_machine(),
      }
    )
  )


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  add_sizes(parser)
  parser.add_argument("--questions", type=int, default=4)
  parser.add_argument("--repeats", type=int, default=5)
  return parser.parse_args()


def add_sizes(parser: argparse.ArgumentParser) -> None:
  """Adds what a rollout is like, apart from how many questions it has."""
  parser.add_argument("--traces", type=int, default=169_489)
  parser.add_argument("--prompt-tokens", type=int, default=128)
  parser.add_argument(
    "--step-tokens", type=int, nargs="+", default=list(range(16, 113, 8))
  )
  parser.add_argument("--tool-calls", type=int, default=5)
  parser.add_argument("--result-tokens", type=int, default=100)
  parser.add_argument("--core", type=int, default=0)


def _split(turn: setup.Turn, search_seconds: float) -> dict[str, float]:
  """Where a turn's seconds went."""
  stats = turn.stats
  host = (
    turn.seconds
    - stats.decode_seconds
    - stats.cache_seconds
    - stats.tool_seconds
  )
  return {
    "all": turn.seconds,
    "decode": stats.decode_seconds,
    "cache": stats.cache_seconds,
    "tools": stats.tool_seconds,
    "host": host,
    "retrieval": stats.retrieval_seconds,
    "search": search_seconds,
    "loop": host - stats.retrieval_seconds,
  }


if __name__ == "__main__":
  main()
