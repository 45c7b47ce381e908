"""A task's own worked solutions as trajectories of an off-policy agent."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.tasks import reward_tags
from rapo_jax.data import Query
from rapo_jax.retrieval.buffer.agent_trajectory import AgentTrajectory
from rapo_jax.rewards import Sample, score_all
from rapo_jax.tasks import Task, check_tool_specs, load_solutions
from rapo_jax.tools import TagSet
from rapo_jax.trajectory import FinishReason, TokenKind

AGENT = "solutions"
"""Name of the agent that wrote them."""


def solution_trajectories(
  task: Task, queries: Sequence[Query]
) -> list[AgentTrajectory]:
  """The solutions of some questions, scored by the task's reward.

  Args:
    task: gives solutions, tools and reward.
    queries: training questions.

  Returns:
    In the order of the questions; one without a solution has none.

  Raises:
    InputError: the solutions cannot be read or are of another form, or the
      reward keeps no protocol.
  """
  solutions = load_solutions(task, queries)
  solved = [query for query in queries if query.query_id in solutions]
  tag_set = reward_tags(check_tool_specs(task).tool_names)
  samples = [
    Sample(
      query,
      _segments(solutions[query.query_id], tag_set),
      FinishReason.ANSWER,
      tag_set,
    )
    for query in solved
  ]
  return [
    AgentTrajectory(
      question=query.question,
      steps=solutions[query.query_id],
      reward=score.value,
      source=AGENT,
      query_id=query.query_id,
      trajectory_id=f"{AGENT}/{task.name}/{query.query_id}",
    )
    for query, score in zip(
      solved, score_all(task.reward, samples), strict=True
    )
  ]


def _segments(
  steps: Sequence[str], tag_set: TagSet
) -> tuple[tuple[TokenKind, str], ...]:
  kinds = (TokenKind.POLICY, TokenKind.OBSERVATION)
  return tuple(
    (kind, text)
    for step in steps
    for kind, text in zip(kinds, tag_set.split_step(step), strict=True)
    if text
  )
