"""Stage evaluate: held-out questions, never retrieving."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import health
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
    `greedy` and `sampled` by query id (see `experiments.results`); finish
    reasons, score statuses, generated tokens and tool calls of the sampled
    trajectories.
  """
  greedy = roll_out(config, task, model, samples=1, greedy=True)
  report(1 / (1 + config.evaluation.num_samples))
  sampled = roll_out(
    config, task, model, samples=config.evaluation.num_samples, greedy=False
  )
  scores = _scores(task, sampled)
  return {
    "greedy": {
      k: v[0] for k, v in _correct(task, greedy, _scores(task, greedy)).items()
    },
    "sampled": _correct(task, sampled, scores),
    "finish_reasons": dict(
      collections.Counter(str(t.finish_reason) for t in sampled)
    ),
    "score_statuses": dict(collections.Counter(str(s.status) for s in scores)),
    "generated_tokens": sum(int(t.policy_mask.sum()) for t in sampled),
    "tool_calls": sum(len(t.tool_events) for t in sampled),
  }


def curve_point(
  config: ExperimentConfig, task: Task, model: models.Decoder, *, samples: int
) -> dict[str, float]:
  """Shares over the first samples of `evaluate`, as metrics.

  Returns:
    `eval/accuracy`, of right answers, and `eval/format_whole`, of trajectories
    that close their tags and give an answer.
  """
  rolled = roll_out(config, task, model, samples=samples, greedy=False)
  scores = _scores(task, rolled)
  whole = [s.status in rewards.WHOLE_FORMAT for s in scores]
  correct = _correct(task, rolled, scores)
  return {
    "eval/accuracy": float(np.mean(list(correct.values()))),
    "eval/format_whole": float(np.mean(whole)),
  }


def roll_out(
  config: ExperimentConfig,
  task: Task,
  model: models.Decoder,
  *,
  samples: int,
  greedy: bool,
) -> list[Trajectory]:
  """Trajectories for every held-out question, `samples` each, in order.

  Raises:
    health.HealthStop: the model's log-probs are not finite, or a tool answered
      none of its calls. There is no accuracy then.
  """
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
  where = f"evaluation on {task.name}"
  with health.finite_rollout(where):
    trajectories, stats = engine.rollout(
      model, requests, seed=config.evaluation.seed, update=0, greedy=greedy
    )
  health.check_tools(config.train.health, stats.tool_numbers(), where)
  return trajectories


def _scores(task: Task, trajectories: list[Trajectory]) -> list[rewards.Score]:
  return [
    rewards.score(
      t.texts(task.tokenizer), task.held_out[t.group_id].ground_truth
    )
    for t in trajectories
  ]


def _correct(
  task: Task, trajectories: list[Trajectory], scores: list[rewards.Score]
) -> dict[str, list[int]]:
  """1 or 0 for each sample of each question: F1 of 1, in a sound format."""
  correct: dict[str, list[int]] = {}
  for trajectory, score in zip(trajectories, scores, strict=True):
    query = task.held_out[trajectory.group_id]
    correct.setdefault(query.query_id, []).append(int(score.f1 == 1))
  return correct
