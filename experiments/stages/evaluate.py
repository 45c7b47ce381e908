"""Stage evaluate: held-out questions, never retrieving."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.config import ExperimentConfig
from experiments.engines import open_engine
from experiments.input_errors import InputError
from experiments.tasks import Task
from rapo_jax import models, rewards
from rapo_jax.rollout import RolloutRequest
from rapo_jax.trajectory import Trajectory

_log = logging.getLogger(__name__)


def evaluate(
  config: ExperimentConfig, task: Task, model: models.Decoder
) -> dict[str, Any]:
  """Greedy and sampled correctness of an agent on the held-out questions.

  Returns:
    `greedy` and `sampled` by query id (see `experiments.results`), how many
    trajectories were left out as the system cut them (`left_out`), finish
    reasons, generated tokens and tool calls of the sampled trajectories.

  Raises:
    InputError: the system cut every trajectory.
  """
  greedy = roll_out(config, task, model, samples=1, greedy=True)
  sampled = roll_out(
    config, task, model, samples=config.evaluation.num_samples, greedy=False
  )
  return {
    "greedy": {k: v[0] for k, v in correct(task, greedy).items()},
    "sampled": correct(task, sampled),
    "left_out": sum(t.is_cut_by_system for t in (*greedy, *sampled)),
    "finish_reasons": dict(
      collections.Counter(str(t.finish_reason) for t in sampled)
    ),
    "generated_tokens": sum(int(t.policy_mask.sum()) for t in sampled),
    "tool_calls": sum(len(t.tool_events) for t in sampled),
  }


def sample_accuracy(
  config: ExperimentConfig, task: Task, model: models.Decoder, *, samples: int
) -> float:
  """Share of right answers over the first samples of `evaluate`.

  Raises:
    InputError: the system cut every trajectory.
  """
  rolled = roll_out(config, task, model, samples=samples, greedy=False)
  return float(np.mean([x for v in correct(task, rolled).values() for x in v]))


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


def correct(
  task: Task, trajectories: Sequence[Trajectory]
) -> dict[str, list[int]]:
  """1 or 0 for each sample of each question: right, in a sound format.

  Samples that the system cut are left out and logged: they say nothing of the
  agent. A question without any other sample is missing.

  Raises:
    InputError: the system cut all of them.
  """
  found: dict[str, list[int]] = {}
  cut = [t for t in trajectories if t.is_cut_by_system]
  if cut:
    _log.warning(
      "%d of %d trajectories of this evaluation were cut by the system (out of "
      "time, or tools that broke) and are left out: see the limits of "
      "config.rollout and the tools.",
      *(len(cut), len(trajectories)),
    )
  if len(cut) == len(trajectories):
    raise InputError(
      f"the system cut all {len(cut)} trajectories of an evaluation (out of "
      "time, or tools that broke), so there is no accuracy: raise "
      "rollout.trajectory_timeout_s or look into the tools."
    )
  for trajectory in trajectories:
    if trajectory.is_cut_by_system:
      continue
    query = task.held_out[trajectory.group_id]
    score = rewards.score(trajectory.texts(task.tokenizer), query.ground_truth)
    found.setdefault(query.query_id, []).append(int(score.correct))
  return found
