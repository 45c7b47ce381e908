"""Trajectories of an endpoint's agent on a task, kept in a journal."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from experiments.progress import Progress
from rapo_jax import text_files
from rapo_jax.data import Query
from rapo_jax.errors import InputError, accessing
from rapo_jax.records import TrajectoryRecord
from rapo_jax.rewards import Reward
from rapo_jax.rollout import RolloutConfig
from rapo_jax.rollout.endpoint import (
  EndpointAgent,
  EndpointConfig,
  EndpointFailure,
)
from rapo_jax.tools import Tool

_MAX_PROBLEMS = 5


def roll_out(
  endpoint: EndpointConfig,
  queries: Sequence[Query],
  tools: Mapping[str, Tool],
  rollout: RolloutConfig,
  journal: pathlib.Path,
  num_trajectories: int,
  progress: Progress,
  *,
  reward: Reward,
) -> None:
  """Has an endpoint's agent write trajectories, those that are not there yet.

  Args:
    endpoint: the agent.
    queries: questions.
    tools: by name.
    rollout: budgets, as `EndpointAgent` takes them.
    journal: JSONL file that trajectories are appended to as they are finished;
      a log as importers read it. Trajectories in it are not asked for again. A
      line that an interruption cut off is.
    num_trajectories: wanted on each question.
    progress: display, in a stage.
    reward: scores the trajectories.

  Raises:
    InputError: the endpoint is down or refuses, some trajectories failed for
      good, or the journal is of another agent.
  """
  done = _done(journal, endpoint.model)
  wanted = [
    (query, index)
    for query in queries
    for index in range(num_trajectories)
    if (query.query_id, index) not in done
  ]
  total = len(queries) * num_trajectories
  progress.update(total - len(wanted), total, "from the journal", earlier=True)
  agent = EndpointAgent(endpoint, tools, rollout, reward=reward)
  failures: list[EndpointFailure] = []
  work = _append(agent, wanted, journal, total, failures, progress)
  try:
    asyncio.run(work)
  except RuntimeError as error:
    raise InputError(str(error)) from error
  if failures:
    shown = "\n".join(
      f"  {f.query.query_id}, trajectory {f.index}: {f.reason}"
      for f in failures[:_MAX_PROBLEMS]
    )
    raise InputError(
      f"{len(failures)} of {total} trajectories failed, the others are in "
      f"{journal}:\n{shown}\nTry these again with --resume, or build from what "
      f"is there: `python -m experiments.buffer import {journal}`."
    )


async def _append(
  agent: EndpointAgent,
  wanted: Sequence[tuple[Query, int]],
  journal: pathlib.Path,
  total: int,
  failures: list[EndpointFailure],
  progress: Progress,
) -> None:
  num_done, rewarded = total - len(wanted), 0
  with journal.open("a", encoding="utf-8") as file:
    async for outcome in agent.rollouts(wanted):
      if isinstance(outcome, EndpointFailure):
        failures.append(outcome)
      else:
        record = outcome.record(agent.name).to_json()
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        num_done += 1
        rewarded += outcome.score.value > 0
      progress.update(
        num_done,
        total,
        f"{rewarded} of {num_done - total + len(wanted)} rewarded, "
        f"{len(failures)} failed",
      )


def _done(journal: pathlib.Path, agent: str) -> set[tuple[str, int]]:
  """Which trajectories a journal holds; cuts a line that is not whole."""
  with accessing(journal.parent):
    journal.parent.mkdir(parents=True, exist_ok=True)
  if not journal.exists():
    return set()
  data = journal.read_bytes()
  whole = data.rfind(b"\n") + 1
  if whole < len(data):
    os.truncate(journal, whole)
  done = set()
  for number, content in text_files.json_lines(journal):
    try:
      record = TrajectoryRecord.from_json(content)
    except InputError as error:
      raise InputError(
        f"{journal}:{number} is no trajectory of an endpoint ({error}): fix "
        "or remove the line."
      ) from error
    done.add((record.query_id, record.index))
    if record.source != agent:
      raise InputError(
        f"{journal} holds trajectories of {record.source}, not of {agent}: "
        "choose another --output, or remove it."
      )
  return done
