"""Stage buffer: the off-policy agent's best trajectories, cut into steps."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from experiments import health
from experiments.config import ExperimentConfig
from experiments.dependencies import BUFFER
from experiments.engines import open_engine
from experiments.policies import load_agent
from experiments.progress import Report
from experiments.tasks import OpenedTask
from experiments.workdir import read_json, write_json
from rapo_jax import rewards
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import (
  BufferWriter,
  SentenceEncoder,
  index_class,
  select_top_k,
  step_traces,
)
from rapo_jax.retrieval.buffer.manifest import Manifest, partial_folder
from rapo_jax.rollout import group_requests
from rapo_jax.trajectory import Trajectory

QUERIES_AT_A_TIME = 32
_PROGRESS_FILE = "rolled_out.json"


def build_buffer(
  config: ExperimentConfig,
  task: OpenedTask,
  encoder: SentenceEncoder,
  report: Report,
  directory: pathlib.Path,
) -> Manifest:
  """Rolls the off-policy agent out on every training question.

  An interrupted build goes on behind the last questions that were finished,
  all of `QUERIES_AT_A_TIME`, with the same result.

  Args:
    config: the experiment.
    task: training questions and tools.
    encoder: embeds the keys.
    report: called with the share done, 0 to 1, and a word on it.
    directory: folder of the buffer.

  Raises:
    InputError: what an interrupted build left is of another config.
    health.HealthStop: the agent's log-probs are not finite, or a tool answered
      none of its calls.
  """
  task, agent_path = task.for_off_policy()
  model = load_agent(config, agent_path)
  engine = open_engine(
    config,
    task.equipment,
    task.agent,
    dataclasses.replace(config.rollout, num_hybrid=0),
    vocab_size=model.config.vocab_size,
  )
  writer = BufferWriter(
    directory, encoder, index_cls=index_class(config.index), resume=True
  )
  progress = _Progress(directory, config, task.name)
  # Under which the agent's traces are kept.
  source = f"{task.name}/{agent_path.name}"
  total = len(task.train)
  begun = progress.num_questions

  def rolled_out(questions: int, *, earlier: bool = False) -> None:
    # How long embedding takes is not known from the rollouts.
    report(
      0.5 * questions / total,
      f"{writer.num_traces} steps",
      earlier=earlier,
      until=0.5,
    )

  rolled_out(begun, earlier=begun > 0)
  for first in range(begun, total, QUERIES_AT_A_TIME):
    queries = task.train[first : first + QUERIES_AT_A_TIME]
    requests = group_requests(
      queries,
      [task.prompt(query) for query in queries],
      num_generations=config.buffer.num_trajectories,
      num_hybrid=0,
    )
    where = f"buffer of {task.name}"
    with health.finite_rollout(where):
      trajectories, stats = engine.rollout(
        model, requests, seed=config.buffer.seed, update=0
      )
    health.check_tools(config.train.health, stats.tool_numbers(), where)
    for trajectory, reward in _best(config, task, queries, trajectories):
      query = queries[trajectory.group_id]
      trajectory_id = f"{source}/{query.query_id}/{trajectory.index}"
      # There already if the build was killed between the two files.
      if trajectory_id not in writer.trajectory_ids:
        traces = step_traces(
          query.question,
          trajectory.step_texts(task.tokenizer),
          reward=reward,
          source=source,
          query_id=query.query_id,
          first_trace_id=writer.next_trace_id,
          trajectory_id=trajectory_id,
        )
        writer.add(traces)
    writer.flush()
    progress.write(first + len(queries))
    rolled_out(first + len(queries))
  return writer.finish(
    lambda share, text: report(0.5 + 0.5 * share, text, until=1.0)
  )


def _best(
  config: ExperimentConfig,
  task: OpenedTask,
  queries: Sequence[Query],
  trajectories: Sequence[Trajectory],
) -> Iterator[tuple[Trajectory, float]]:
  """The trajectories that are kept, with their rewards.

  What the system cut is not whole, and is never kept.
  """
  trajectories = [t for t in trajectories if not t.is_cut_by_system]
  samples = rewards.samples_of(
    trajectories, queries, task.tokenizer, task.tag_set
  )
  scores = [s.value for s in rewards.score_all(task.reward, samples)]
  best = select_top_k(
    [t.query_id for t in trajectories],
    scores,
    k=config.buffer.top_k_trajectories,
    min_reward=config.retrieval.min_reward,
  )
  for position in best:
    yield trajectories[position], scores[position]


class _Progress:
  """How many questions are done, kept beside what they gave.

  Raises:
    InputError: they were done with another config.
  """

  def __init__(
    self, directory: pathlib.Path, config: ExperimentConfig, task: str
  ):
    self._config = BUFFER.digest(config, task)
    self._path = partial_folder(directory) / _PROGRESS_FILE
    self.num_questions = 0
    if self._path.exists():
      content = read_json(self._path)
      if content["config_sha256"] != self._config:
        raise InputError(
          f"{self._path.parent} was begun with another config: go on with that "
          "one, or delete the folder to begin again."
        )
      self.num_questions = content["num_questions"]

  def write(self, num_questions: int) -> None:
    self.num_questions = num_questions
    write_json(
      self._path,
      {"config_sha256": self._config, "num_questions": num_questions},
    )
