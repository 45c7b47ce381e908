"""Cost of probes: twins within the rollout, or rollouts of their own.

    python -m benchmarks.retrieval_probe --config testbed --workdir runs/effect

Rolls out the questions of an update in three ways, in turns: without probes;
with a twin of each retrieved step, which begins from the cached prefix; and
without probes, then once more from the prompt for each retrieved step, which a
second call of the engine leaves out. All twins and these rollouts are compared
token by token. Needs a work folder whose agents and buffer stages are done.
Prints one JSON line: medians over repetitions of seconds and sampled tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.config import ExperimentConfig
from experiments.devices import use_compilation_cache
from experiments.flags import apply_overrides, load_config, parse_arguments
from experiments.tasks import OpenedTask, agent_paths, open_task
from experiments.workdir import Workdir
from rapo_jax import models
from rapo_jax.data import order
from rapo_jax.retrieval import SentenceEncoder, StepTraceBuffer
from rapo_jax.rollout import RolloutEngine, RolloutRequest, group_requests
from rapo_jax.rollout.between import Boundary
from rapo_jax.rollout.retriever import RetrievalHook, RetrievalSession
from rapo_jax.trajectory import Trajectory


class Turn(NamedTuple):
  """One rollout: what it took, and its trajectories or twins."""

  seconds: float
  tokens: int
  trajectories: list[Trajectory]


class _Session(RetrievalSession):
  """Retrieval that leaves out one step of some requests."""

  left_out: Mapping[int, int]

  def wants(self, boundary: Boundary) -> bool:
    step = self.left_out.get(id(boundary.request))
    return boundary.step_id != step and super().wants(boundary)


class Without:
  """A hook that retrieves, but for one step of some requests.

  Attributes:
    left_out: the step, by `id` of the request.
  """

  def __init__(
    self, config: ExperimentConfig, buffer: StepTraceBuffer, share: float
  ):
    self._hook = RetrievalHook(
      buffer,
      dataclasses.replace(config.retrieval, probe_share=share),
      config.rollout.retrieval_prob,
    )
    self.left_out: dict[int, int] = {}

  def session(self, changed: threading.Condition) -> RetrievalSession:
    """Retrieval of one rollout."""
    session = self._hook.session(changed)
    session.__class__ = _Session
    assert isinstance(session, _Session)
    session.left_out = self.left_out
    return session


class Bench:
  """The three ways, on one policy."""

  def __init__(
    self,
    config: ExperimentConfig,
    task: OpenedTask,
    buffer: StepTraceBuffer,
    path: pathlib.Path,
  ):
    self._config, self._task = config, task
    self._model = models.from_pretrained(path)
    self._hooks = {
      share: Without(config, buffer, share) for share in (0.0, 1.0)
    }
    self._engines = {
      share: RolloutEngine(
        config.rollout,
        task.tokenizer,
        vocab_size=self._model.config.vocab_size,
        tools=task.tools,
        between_steps=hook,
      )
      for share, hook in self._hooks.items()
    }

  def requests(self, update: int) -> list[RolloutRequest]:
    """The questions of an update."""
    chosen = order.batch(
      0, update, self._config.update.queries_per_update, len(self._task.train)
    )
    queries = [self._task.train[i] for i in chosen]
    return group_requests(
      queries,
      [self._task.prompt(query) for query in queries],
      num_generations=self._config.rollout.num_generations,
      num_hybrid=self._config.rollout.num_hybrid,
    )

  def turn(
    self, requests: Sequence[RolloutRequest], update: int, share: float = 0.0
  ) -> Turn:
    """One rollout."""
    began = time.perf_counter()
    trajectories, stats = self._engines[share].rollout(
      self._model, requests, seed=0, update=update
    )
    seconds = time.perf_counter() - began
    return Turn(seconds, stats.sampled_tokens, trajectories)

  def again(
    self, probed: Turn, requests: Sequence[RolloutRequest], update: int
  ) -> Turn:
    """What each twin of a turn is, from the prompt on."""
    wanted = [
      (dataclasses.replace(request), twin.shared_steps)
      for request, trajectory in zip(requests, probed.trajectories, strict=True)
      for twin in trajectory.twins
    ]
    left_out = self._hooks[0.0].left_out
    left_out.update({id(request): step for request, step in wanted})
    try:
      return self.turn([request for request, _ in wanted], update)
    finally:
      left_out.clear()


def measure(bench: Bench, repetitions: int) -> dict[str, object]:
  """Medians over repetitions; the first one compiles and is left out."""
  rows: list[dict[str, float]] = []
  twins = same = 0
  for update in range(repetitions + 1):
    requests = bench.requests(update)
    plain = bench.turn(requests, update)
    probed = bench.turn(requests, update, 1.0)
    again = bench.again(probed, requests, update)
    made = [twin for t in probed.trajectories for twin in t.twins]
    twins += len(made)
    same += sum(
      np.array_equal(twin.tokens, other.tokens)
      for twin, other in zip(made, again.trajectories, strict=True)
    )
    rows.append(
      {
        "plain_seconds": plain.seconds,
        "twins_seconds": probed.seconds,
        "again_seconds": plain.seconds + again.seconds,
        "plain_tokens": plain.tokens,
        "twins_tokens": probed.tokens,
        "again_tokens": plain.tokens + again.tokens,
      }
    )
  return {
    "twins": twins,
    "twins_same_from_prompt": same,
    **{
      name: round(statistics.median(row[name] for row in rows[1:]), 3)
      for name in rows[0]
    },
  }


def main(arguments: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument("--config", default="testbed")
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--family", default="multihop")
  parser.add_argument("--agent", default="off_policy", help="or base")
  parser.add_argument("--repetitions", type=int, default=5)
  known, overrides = parse_arguments(parser, arguments)
  config = apply_overrides(load_config(known.config), overrides)
  use_compilation_cache()
  workdir = Workdir(known.workdir)
  encoder = SentenceEncoder.from_pretrained()
  encoder.compile()
  with open_task(config, workdir, known.family, encoder) as task:
    buffer = StepTraceBuffer.load(workdir.buffer(known.family), encoder)
    path = agent_paths(config, workdir, task.name)[known.agent]
    figures = measure(Bench(config, task, buffer, path), known.repetitions)
  print(
    json.dumps(
      {
        "benchmark": "retrieval_probe",
        "family": known.family,
        "agent": known.agent,
        "device": jax.devices()[0].device_kind,
        "repetitions": known.repetitions,
        **figures,
      }
    )
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
