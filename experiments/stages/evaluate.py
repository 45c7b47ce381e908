"""Stage evaluate: held-out questions, never retrieving."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.config import ExperimentConfig
from experiments.engines import open_engine
from experiments.tasks import Task
from rapo_jax import models, rewards
from rapo_jax.rollout import RolloutRequest
from rapo_jax.trajectory import Trajectory


def evaluate(
  config: ExperimentConfig,
  task: Task,
  model: models.Decoder,
  report: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
  """Greedy and sampled correctness of an agent on the held-out questions.

  Args:
    config: the experiment.
    task: questions and tools.
    model: the agent.
    report: called with the share of the trajectories that is done.

  Returns:
    `greedy` and `sampled` by query id (see `experiments.results`), finish
    reasons, generated tokens and tool calls of the sampled trajectories.
  """
  greedy = roll_out(config, task, model, samples=1, greedy=True)
  report(1 / (1 + config.evaluation.num_samples))
  sampled = roll_out(
    config, task, model, samples=config.evaluation.num_samples, greedy=False
  )
  answers = _correct(task, sampled)
  return {
    "greedy": {k: v[0] for k, v in _correct(task, greedy).items()},
    "sampled": answers,
    "finish_reasons": dict(
      collections.Counter(str(t.finish_reason) for t in sampled)
    ),
    "generated_tokens": sum(int(t.policy_mask.sum()) for t in sampled),
    "tool_calls": sum(len(t.tool_events) for t in sampled),
  }


def sample_accuracy(
  config: ExperimentConfig, task: Task, model: models.Decoder, *, samples: int
) -> float:
  """Share of right answers over the first samples of `evaluate`."""
  rolled = roll_out(config, task, model, samples=samples, greedy=False)
  return float(np.mean(list(_correct(task, rolled).values())))


def roll_out(
  config: ExperimentConfig,
  task: Task,
  model: models.Decoder,
  *,
  samples: int,
  greedy: bool,
) -> list[Trajectory]:
  """Trajectories for every held-out question, `samples` each, in order."""
  engine = open_engine(
    config,
    task,
    dataclasses.replace(
      config.rollout,
      temperature=config.evaluation.temperature,
      top_k=config.evaluation.top_k,
      top_p=config.evaluation.top_p,
      min_p=config.evaluation.min_p,
      num_hybrid=0,
    ),
    vocab_size=model.config.vocab_size,
  )
  requests = [
    RolloutRequest(query, task.prompt(query), group, index)
    for group, query in enumerate(task.held_out)
    for index in range(samples)
  ]
  trajectories, _ = engine.rollout(
    model, requests, seed=config.evaluation.seed, update=0, greedy=greedy
  )
  return trajectories


def _correct(
  task: Task, trajectories: list[Trajectory]
) -> dict[str, list[int]]:
  """1 or 0 for each sample of each question: F1 of 1, in a sound format."""
  correct: dict[str, list[int]] = {}
  for trajectory in trajectories:
    query = task.held_out[trajectory.group_id]
    score = rewards.score(trajectory.texts(task.tokenizer), query.ground_truth)
    correct.setdefault(query.query_id, []).append(int(score.f1 == 1))
  return correct
