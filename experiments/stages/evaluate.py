"""Stage evaluate: held-out questions, never retrieving."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments import health
from experiments.config import ExperimentConfig
from experiments.engines import open_engine
from experiments.tasks import OpenedTask
from rapo_jax import models, rewards
from rapo_jax.errors import InputError
from rapo_jax.rollout import RolloutRequest
from rapo_jax.trajectory import Trajectory

_log = logging.getLogger(__name__)


def evaluate(
  config: ExperimentConfig,
  task: OpenedTask,
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
    `greedy` and `sampled` by query id (see `report.results`). `sets`: query ids
    of each evaluation set. `left_out`: how many trajectories the system cut.
    Score statuses of the sampled ones that it did not cut, and how many of
    these keep the format. Finish reasons, generated tokens and tool calls of
    all sampled trajectories.

  Raises:
    InputError: the system cut every trajectory.
  """
  greedy = roll_out(config, task, model, samples=1, greedy=True)
  report(1 / (1 + config.evaluation.num_samples))
  sampled = roll_out(
    config, task, model, samples=config.evaluation.num_samples, greedy=False
  )
  scored = counted(task, sampled)
  return {
    "greedy": {
      k: v[0] for k, v in correct(task, counted(task, greedy)).items()
    },
    "sampled": correct(task, scored),
    "sets": {
      name: [query.query_id for query in queries]
      for name, queries in task.evaluation.items()
    },
    "left_out": sum(t.is_cut_by_system for t in (*greedy, *sampled)),
    "finish_reasons": dict(
      collections.Counter(str(t.finish_reason) for t in sampled)
    ),
    "score_statuses": dict(
      collections.Counter(str(s.status) for _, s in scored)
    ),
    "format_whole": sum(s.whole for _, s in scored),
    "generated_tokens": sum(int(t.policy_mask.sum()) for t in sampled),
    "tool_calls": sum(len(t.tool_events) for t in sampled),
  }


def curve_point(
  config: ExperimentConfig,
  task: OpenedTask,
  model: models.Decoder,
  *,
  samples: int,
) -> dict[str, float]:
  """Shares over the first samples of `evaluate`, as metrics.

  Args:
    config: the experiment.
    task: questions and tools.
    model: the agent.
    samples: trajectories a question.

  Returns:
    `eval/accuracy`, of right answers, and `eval/format_whole`, of trajectories
    that close their tags and give an answer. With several evaluation sets the
    first is the mean over them, and `eval/<set>/accuracy` is that of each.

  Raises:
    InputError: the system cut every trajectory.
  """
  rolled = roll_out(config, task, model, samples=samples, greedy=False)
  scored = counted(task, rolled)
  sets = [name for name, queries in task.evaluation.items() for _ in queries]
  by_set: dict[str, list[bool]] = {}
  for trajectory, score in scored:
    by_set.setdefault(sets[trajectory.group_id], []).append(score.correct)
  accuracies = {name: float(np.mean(by_set[name])) for name in sorted(by_set)}
  point = {
    "eval/accuracy": float(np.mean(list(accuracies.values()))),
    "eval/format_whole": float(np.mean([score.whole for _, score in scored])),
  }
  if len(task.evaluation) > 1:
    point |= {f"eval/{name}/accuracy": a for name, a in accuracies.items()}
  return point


def roll_out(
  config: ExperimentConfig,
  task: OpenedTask,
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


def counted(
  task: OpenedTask, trajectories: Sequence[Trajectory]
) -> list[tuple[Trajectory, rewards.Score]]:
  """Trajectories and their scores, without those that the system cut.

  Those say nothing of the agent; their number is logged.

  Args:
    task: its held-out questions.
    trajectories: of them; `group_id` is the position of the question.

  Raises:
    InputError: the system cut all of them.
  """
  kept = [t for t in trajectories if not t.is_cut_by_system]
  cut = len(trajectories) - len(kept)
  if cut:
    _log.warning(
      "%d of %d trajectories of this evaluation were cut by the system (out of "
      "time, or tools that broke) and are left out: see the limits of "
      "config.rollout and the tools.",
      *(cut, len(trajectories)),
    )
  if not kept:
    raise InputError(
      f"the system cut all {cut} trajectories of an evaluation (out of time, "
      "or tools that broke), so there is no accuracy: raise "
      "rollout.trajectory_timeout_s or look into the tools."
    )
  samples = rewards.samples_of(
    kept, task.held_out, task.tokenizer, task.tag_set
  )
  return list(zip(kept, rewards.score_all(task.reward, samples), strict=True))


def correct(
  task: OpenedTask, scored: Sequence[tuple[Trajectory, rewards.Score]]
) -> dict[str, list[int]]:
  """1 or 0 for each sample of each question: right, in a sound format.

  A question of which every sample was left out is missing.

  Args:
    task: its held-out questions.
    scored: what `counted` returns.

  Returns:
    Values of each question, by query id.
  """
  found: dict[str, list[int]] = {}
  for trajectory, score in scored:
    query = task.held_out[trajectory.group_id]
    found.setdefault(query.query_id, []).append(int(score.correct))
  return found
