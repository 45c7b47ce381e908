"""Stage buffer: the off-policy agent's best trajectories, cut into steps."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from experiments import input_errors
from experiments.config import ExperimentConfig
from experiments.engines import open_engine
from experiments.policies import load_agent
from experiments.tasks import Task
from rapo_jax import rewards
from rapo_jax.retrieval import (
  BufferWriter,
  SentenceEncoder,
  select_top_k,
  step_traces,
)
from rapo_jax.rollout import group_requests

QUERIES_AT_A_TIME = 32


def build_buffer(
  config: ExperimentConfig,
  task: Task,
  encoder: SentenceEncoder,
  directory: pathlib.Path,
  report: Callable[[float, str], None],
) -> None:
  """Rolls the off-policy agent out on every training question.

  Goes on where an earlier build was interrupted.

  Args:
    config: the experiment.
    task: training questions and tools.
    encoder: embeds the keys.
    directory: folder of the buffer.
    report: called with the share done, 0 to 1, and a word on it.
  """
  task = task.for_off_policy()
  model = load_agent(config, task.off_policy_path)
  engine = open_engine(
    config,
    task,
    dataclasses.replace(config.rollout, num_hybrid=0),
    vocab_size=model.config.vocab_size,
  )
  # Rolling out and embedding take about as long as each other.
  total = 2.0 * len(task.train)
  directory.parent.mkdir(parents=True, exist_ok=True)
  with input_errors.from_outside():
    writer = BufferWriter(directory, encoder, resume=True)
  if writer.position is None:
    writer.flush(position=0)
  for first in range(writer.position or 0, len(task.train), QUERIES_AT_A_TIME):
    queries = task.train[first : first + QUERIES_AT_A_TIME]
    requests = group_requests(
      queries,
      [task.prompt(query) for query in queries],
      num_generations=config.buffer.num_trajectories,
      num_hybrid=0,
    )
    trajectories, _ = engine.rollout(
      model, requests, seed=config.buffer.seed, update=0
    )
    scores = [
      rewards.score(
        t.texts(task.tokenizer), queries[t.group_id].ground_truth
      ).value
      for t in trajectories
    ]
    best = select_top_k(
      [t.query_id for t in trajectories],
      scores,
      k=config.buffer.top_k_trajectories,
      min_reward=config.retrieval.min_reward,
    )
    for position in best:
      trajectory = trajectories[position]
      query = queries[trajectory.group_id]
      writer.add(
        step_traces(
          query.question,
          trajectory.step_texts(task.tokenizer),
          reward=scores[position],
          source=task.off_policy_name,
          query_id=query.query_id,
          first_trace_id=writer.next_trace_id,
          trajectory_id=f"{query.query_id}/{trajectory.index}",
        )
      )
    writer.flush(position=first + len(queries))
    report(
      (first + len(queries)) / total,
      f"{len(writer.trajectory_ids)} trajectories, {writer.num_traces} steps",
    )
  writer.finish(lambda share, text: report(0.5 + share / 2, text))
