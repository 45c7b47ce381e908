"""Evaluation: questions that are not trained on, never retrieving.

The evaluate stage, the curve of a run and `experiments.evaluate` are this.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import flags, health
from experiments.answers import (
  Answer,
  AnswerFile,
  answer_of,
  by_question,
  figures,
)
from experiments.config import ExperimentConfig
from experiments.dependencies import EVALUATE
from experiments.engines import open_engine
from experiments.tasks import OpenedTask
from rapo_jax import models, rewards, text_files
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.rollout import RolloutEngine, RolloutRequest
from rapo_jax.trajectory import Trajectory

# Trajectories a slot that one batch gives.
_BATCH_SLOTS = 8
_log = logging.getLogger(__name__)


def evaluate(
  config: ExperimentConfig,
  task: OpenedTask,
  model: models.Decoder,
  report: Callable[[float], None] = lambda share: None,
  *,
  path: pathlib.Path | None = None,
  made_with: str = "",
) -> dict[str, Any]:
  """Greedy and sampled answers of an agent to the evaluation questions.

  Args:
    config: the experiment.
    task: questions and tools.
    model: the agent.
    report: called with the share of the trajectories that is done.
    path: keeps each answer, so that an interrupted evaluation goes on.
    made_with: changes with all that the answers depend on.

  Returns:
    `greedy` and `sampled` by query id (see `report.results`). `sets`: query ids
    of each evaluation set. `left_out`: how many trajectories the system cut.
    Score statuses of the sampled ones that it did not cut, and how many of
    these keep the format. Finish reasons, generated tokens and tool calls of
    all sampled trajectories. `tools`: what each tool counts itself, since this
    evaluation was started. `figures` of each set, see `answers.figures`.

  Raises:
    InputError: the system cut every trajectory.
  """
  kept = AnswerFile(path, made_with)
  samples = config.evaluation.num_samples
  share = 1 / (1 + samples)
  ask(
    *(config, task, model, kept),
    samples=1,
    greedy=True,
    report=lambda done: report(share * done),
  )
  ask(
    *(config, task, model, kept),
    samples=samples,
    greedy=False,
    report=lambda done: report(share + (1 - share) * done),
  )
  sampled = [answer for answer in kept.answers if not answer.greedy]
  greedy = [answer for answer in kept.answers if answer.greedy]
  scored = counted(sampled)
  limit = config.evaluation.max_tool_fail_rate
  return {
    "greedy": {
      query_id: int(own[0].correct)
      for query_id, own in by_question(counted(greedy)).items()
    },
    "sampled": {
      query_id: [int(answer.correct) for answer in own]
      for query_id, own in by_question(scored).items()
    },
    "sets": {
      name: [query.query_id for query in queries]
      for name, queries in task.evaluation.items()
    },
    "left_out": sum(answer.cut for answer in kept.answers),
    "finish_reasons": dict(
      collections.Counter(answer.finish_reason for answer in sampled)
    ),
    "score_statuses": dict(
      collections.Counter(str(answer.status) for answer in scored)
    ),
    "format_whole": sum(answer.whole for answer in scored),
    "generated_tokens": sum(answer.tokens for answer in sampled),
    "tool_calls": sum(answer.calls for answer in sampled),
    "tools": task.equipment.numbers(),
    "figures": {
      name: figures(
        [a for a in kept.answers if a.evaluation_set == name],
        max_tool_fail_rate=limit,
      )
      for name in task.evaluation
    },
  }


def evaluated_with(
  config: ExperimentConfig,
  task: str,
  agent: Any,
  evaluation: Mapping[str, Sequence[Query]],
) -> str:
  """Changes with an agent, and with all else that its answers depend on.

  Args:
    config: the experiment.
    task: name of the task.
    agent: what changes with the agent, as JSON.
    evaluation: questions of each evaluation set. They count by what they hold,
      since a file may change and keep its name.

  Raises:
    InputError: the file of a chat template is not there.
  """
  template = config.policy.chat_template
  written = template and text_files.whole_text(pathlib.Path(template))
  fields = EVALUATE.of(flags.to_dict(config), task)
  questions = {
    name: [dataclasses.astuple(query) for query in queries]
    for name, queries in evaluation.items()
  }
  text = json.dumps([fields, written, agent, questions], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def curve_point(
  config: ExperimentConfig,
  task: OpenedTask,
  model: models.Decoder,
) -> dict[str, float]:
  """Shares over the first questions and samples of `evaluate`, as metrics.

  Args:
    config: the experiment.
    task: questions and tools.
    model: the agent.

  Returns:
    `eval/accuracy`, of right answers, and `eval/format_whole`, of trajectories
    that close their tags and give an answer. With several evaluation sets the
    first is the mean over them, and `eval/<set>/accuracy` is that of each.

  Raises:
    InputError: the system cut every trajectory.
  """
  kept = AnswerFile(None, "")
  ask(
    *(config, task, model, kept),
    samples=config.evaluation.curve_samples,
    greedy=False,
    num_questions=config.evaluation.curve_questions,
  )
  scored = counted(kept.answers)
  by_set: dict[str, list[bool]] = {}
  for answer in scored:
    by_set.setdefault(answer.evaluation_set, []).append(answer.correct)
  accuracies = {name: float(np.mean(by_set[name])) for name in sorted(by_set)}
  point = {
    "eval/accuracy": float(np.mean(list(accuracies.values()))),
    "eval/format_whole": float(np.mean([answer.whole for answer in scored])),
  }
  if len(task.evaluation) > 1:
    point |= {f"eval/{name}/accuracy": a for name, a in accuracies.items()}
  return point


def ask(
  config: ExperimentConfig,
  task: OpenedTask,
  model: models.Decoder,
  kept: AnswerFile,
  *,
  samples: int,
  greedy: bool,
  num_questions: int | None = None,
  report: Callable[[float], None] = lambda share: None,
) -> None:
  """Asks what `kept` does not hold yet, some questions at a time.

  An answer depends on its question and its number alone, so it is the same
  whatever is asked beside it.

  Args:
    config: the experiment.
    task: questions and tools.
    model: the agent.
    kept: gets the answers.
    samples: trajectories a question.
    greedy: whether they take the likeliest tokens.
    num_questions: of each evaluation set, the first ones; None for all.
    report: called with the share of the questions that is done.

  Raises:
    health.HealthStop: the model's log-probs are not finite, or a tool answered
      none of its calls. There is no accuracy then.
  """
  there = {answer.key for answer in kept.answers}
  waiting = [
    (name, query)
    for name, queries in task.evaluation.items()
    for query in queries[:num_questions]
    if not all((query.query_id, i, greedy) in there for i in range(samples))
  ]
  if not waiting:
    return
  engine = _engine(config, task, model)
  # Slots are idle at the end of a batch: it has to be long.
  at_a_time = max(1, _BATCH_SLOTS * config.rollout.num_slots // samples)
  for first in range(0, len(waiting), at_a_time):
    batch = waiting[first : first + at_a_time]
    asked = [query for _, query in batch]
    trajectories = _roll_out(
      config, task, engine, model, asked, samples=samples, greedy=greedy
    )
    whole = [t for t in trajectories if not t.is_cut_by_system]
    scores = rewards.score_all(
      task.reported_reward,
      rewards.samples_of(whole, asked, task.tokenizer, task.tag_set),
    )
    by_key = {
      (t.group_id, t.index): score
      for t, score in zip(whole, scores, strict=True)
    }
    found = [
      answer_of(
        trajectory,
        by_key.get((trajectory.group_id, trajectory.index)),
        evaluation_set=batch[trajectory.group_id][0],
        greedy=greedy,
      )
      for trajectory in trajectories
    ]
    kept.add([answer for answer in found if answer.key not in there])
    report((first + len(batch)) / len(waiting))


def _engine(
  config: ExperimentConfig, task: OpenedTask, model: models.Decoder
) -> RolloutEngine:
  evaluation = config.evaluation
  return open_engine(
    config,
    task.equipment,
    task.agent,
    dataclasses.replace(
      config.rollout,
      temperature=evaluation.temperature,
      top_k=evaluation.top_k,
      top_p=evaluation.top_p,
      min_p=evaluation.min_p,
      num_hybrid=0,
    ),
    vocab_size=model.config.vocab_size,
  )


def _roll_out(
  config: ExperimentConfig,
  task: OpenedTask,
  engine: RolloutEngine,
  model: models.Decoder,
  queries: Sequence[Query],
  *,
  samples: int,
  greedy: bool,
) -> list[Trajectory]:
  """Trajectories of every question, `samples` each, in order."""
  requests = [
    RolloutRequest(query, task.prompt(query), group, index)
    for group, query in enumerate(queries)
    for index in range(samples)
  ]
  where = f"evaluation on {task.name}"
  with health.finite_rollout(where):
    trajectories, stats = engine.rollout(
      model, requests, seed=config.evaluation.seed, update=0, greedy=greedy
    )
  health.check_tools(config.train.health, stats.tool_numbers(), where)
  return trajectories


def counted(answers: Sequence[Answer]) -> list[Answer]:
  """Answers without those that the system cut.

  Those say nothing of the agent; their number is logged.

  Raises:
    InputError: the system cut all of them.
  """
  kept = [answer for answer in answers if not answer.cut]
  cut = len(answers) - len(kept)
  if cut:
    _log.warning(
      "%d of %d trajectories of this evaluation were cut by the system (out of "
      "time, or tools that broke) and are left out: see the limits of "
      "config.rollout and the tools.",
      *(cut, len(answers)),
    )
  if not kept:
    raise InputError(
      f"the system cut all {cut} trajectories of an evaluation (out of time, "
      "or tools that broke), so there is no accuracy: raise "
      "rollout.trajectory_timeout_s or look into the tools."
    )
  return kept
