"""Stage buffer: the off-policy agent's best trajectories, cut into steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from experiments.config import ExperimentConfig
from experiments.engines import open_engine
from experiments.policies import load_agent
from experiments.tasks import Task
from rapo_jax import rewards
from rapo_jax.retrieval import (
  SentenceEncoder,
  StepTrace,
  StepTraceBuffer,
  select_top_k,
  step_traces,
)
from rapo_jax.rollout import group_requests

QUERIES_AT_A_TIME = 32


def build_buffer(
  config: ExperimentConfig,
  task: Task,
  encoder: SentenceEncoder,
  report: Callable[[float, str], None],
) -> StepTraceBuffer:
  """Rolls the off-policy agent out on every training question.

  Args:
    config: the experiment.
    task: training questions and tools.
    encoder: embeds the keys.
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
  traces: list[StepTrace] = []
  kept = 0
  for first in range(0, len(task.train), QUERIES_AT_A_TIME):
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
    kept += len(best)
    for position in best:
      trajectory = trajectories[position]
      query = queries[trajectory.group_id]
      traces += step_traces(
        query.question,
        trajectory.step_texts(task.tokenizer),
        reward=scores[position],
        source=task.off_policy_name,
        query_id=query.query_id,
        first_trace_id=len(traces),
      )
    report(
      (first + len(queries)) / total,
      f"{kept} trajectories, {len(traces)} steps",
    )
  report(0.5, f"embedding {len(traces)} keys")
  buffer = StepTraceBuffer.build(traces, encoder)
  report(1.0, f"{len(buffer)} step traces")
  return buffer
