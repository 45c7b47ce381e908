"""A run's own Step-Trace Buffer, to which its successes are added."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.config import ExperimentConfig, GrowConfig
from rapo_jax import hosts
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import (
  GrowingBuffer,
  RetrievalConfig,
  StepTrace,
  StepTraceBuffer,
  index_class,
  select_top_k,
  step_traces,
)
from rapo_jax.training import Experience
from rapo_jax.trajectory import Source, TokenKind

SOURCE = "policy"
"""Name of the agent whose traces are added."""


class Growth:
  """Adds to a buffer after each update and merges it on a schedule.

  Args:
    config: the experiment; it has `buffer.grow`.
    base: buffer of the task, which stays as it is.
    folder: where the run's additions are kept.

  Attributes:
    buffer: what the run retrieves from.
  """

  def __init__(
    self, config: ExperimentConfig, base: StepTraceBuffer, folder: pathlib.Path
  ):
    assert config.buffer.grow is not None
    self._grow = config.buffer.grow
    self._retrieval = config.retrieval
    self.buffer = open_growing(config, base, folder)

  def state(self) -> dict[str, int | str]:
    """What a checkpoint says of the buffer."""
    return {
      "version": self.buffer.version,
      "num_traces": len(self.buffer),
      "sha256": self.buffer.digest(),
    }

  def restore(self, update: int, state: dict[str, int | str] | None) -> None:
    """Goes back to the buffer of an update.

    Args:
      update: its number; 0 for the buffer that the run begins with.
      state: what the checkpoint said; None if there is none.

    Raises:
      InputError: the buffer is not the one that the checkpoint saw.
    """
    self.buffer.restore(update)
    if state is not None and state != self.state():
      raise InputError(
        f"a run goes on with the buffer that it had; after update {update} that"
        f" was {state}, what is left makes {self.state()}: put the run's"
        " folder back as it was, or choose another --workdir."
      )
    warm_up(self.buffer, self._retrieval)

  def after_update(
    self,
    update: int,
    experience: Experience,
    queries: Sequence[Query],
    tokenizer: Any,
  ) -> dict[str, float]:
    """Adds an update's successes; returns metrics of the buffer."""
    traces = own_traces(
      experience,
      queries,
      tokenizer,
      self._grow,
      update=update,
      first_trace_id=self.buffer.next_trace_id,
    )
    self.buffer.add(traces, update=update)
    if update % self._grow.merge_every == 0:
      self.buffer.merge(update=update)
      warm_up(self.buffer, self._retrieval)
    return {
      "buffer/version": self.buffer.version,
      "buffer/traces": len(self.buffer),
      "buffer/tail_traces": self.buffer.tail_traces,
      "buffer/added_traces": len(traces),
    }


@hosts.led
def open_growing(
  config: ExperimentConfig, base: StepTraceBuffer, folder: pathlib.Path
) -> GrowingBuffer:
  """A buffer that grows, on all hosts.

  Args:
    config: the experiment.
    base: buffer of the task, which stays as it is.
    folder: where the run's additions are kept.
  """
  return GrowingBuffer(base, folder, index_cls=index_class(config.index))


@hosts.led
def warm_up(buffer: GrowingBuffer, retrieval: RetrievalConfig) -> None:
  """Compiles what the index searches with, which its size may decide.

  Args:
    buffer: what is searched.
    retrieval: how a trace is chosen.
  """
  buffer.retrieve([""], [()], config=retrieval, keys=[(0,)])


def own_traces(
  experience: Experience,
  queries: Sequence[Query],
  tokenizer: Any,
  config: GrowConfig,
  *,
  update: int,
  first_trace_id: int,
) -> list[StepTrace]:
  """Step traces of the policy's own successes.

  A trajectory with a retrieved step is left out: that step is in the buffer
  already, and those after it lean on it. So is one that is replayed.

  Args:
    experience: of one update.
    queries: the query of each group id.
    tokenizer: decodes the steps.
    config: how good a trajectory must be, and how many are taken.
    update: number of the update; part of the trajectory ids.
    first_trace_id: id of the first trace; the others follow it.
  """
  own = [
    number
    for number, trajectory in enumerate(experience.trajectories)
    if trajectory.source is Source.POLICY
    and not trajectory.is_cut_by_system
    and not np.any(trajectory.kinds == TokenKind.RETRIEVED)
  ]
  best = select_top_k(
    [experience.trajectories[i].query_id for i in own],
    [experience.scores[i].value for i in own],
    k=config.top_k_trajectories,
    min_reward=config.min_reward,
  )
  traces: list[StepTrace] = []
  for position in best:
    trajectory = experience.trajectories[own[position]]
    traces += step_traces(
      queries[trajectory.group_id].question,
      trajectory.step_texts(tokenizer),
      reward=experience.scores[own[position]].value,
      source=SOURCE,
      query_id=trajectory.query_id,
      first_trace_id=first_trace_id + len(traces),
      trajectory_id=f"update{update}/{trajectory.query_id}/{trajectory.index}",
    )
  return traces
