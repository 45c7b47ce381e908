"""One update in its stages; the algorithm says how each is done.

1. rollout       the plan: G trajectories a query; hybrid ones retrieve
                 between steps; other queries for groups that teach nothing;
                 stored groups in place of some
2. rewards       outcome reward from policy tokens; retrieval reward from
                 step entropies (Eq. 5-7)
3. advantages    of trajectories, steps or tokens (RAPO's: Eq. 9-10)
4. pack          minibatches of queries, trajectories side by side in rows
5. update        the weighted sum of token losses (RAPO's: Eq. 8, 11)
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from rapo_jax import hosts, models, objectives, rewards
from rapo_jax.algorithms import (
  Algorithm,
  GuideRule,
  ObjectiveConfig,
  Resample,
  TokenLoss,
  check_algorithm,
)
from rapo_jax.algorithms.replay import StoredGroup
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.models import sharding
from rapo_jax.rollout import (
  RolloutConfig,
  RolloutEngine,
  RolloutStats,
  group_requests,
)
from rapo_jax.rollout.requests import RolloutRequest, query_number
from rapo_jax.tools.tags import TagSet
from rapo_jax.training.agent_rows import AgentRows
from rapo_jax.training.budget import Budget, budget_of
from rapo_jax.training.config import OptimizerConfig, UpdateConfig
from rapo_jax.training.experience import (
  RAPO,
  Experience,
  counts,
  evaluate_trajectories,
  judged,
  score_trajectories,
)
from rapo_jax.training.guided import roll_out_guided
from rapo_jax.training.packing import (
  Packed,
  PackedBatch,
  pack,
  packed_columns,
  unlearned,
)
from rapo_jax.training.probes import probe_numbers, scored_with_effects
from rapo_jax.training.repetition import repetitive_fraction
from rapo_jax.training.stored_groups import fresh_groups, replayed
from rapo_jax.training.update import (
  TrainState,
  UpdateMetrics,
  score_proximal,
  score_reference,
  update_minibatch,
)
from rapo_jax.trajectory import FinishReason, Source, TokenKind, Trajectory

Prompts = Sequence[Int[np.ndarray, " _"]]
Questions = Callable[[int], tuple[Sequence[Query], Prompts]]
"""Queries and prompts of another round before the same update, from 1 on."""


_COUNTS = (
  "rollout/seconds",
  "rollout/tool_seconds",
  "rollout/retrieval_seconds",
  "rollout/generated_tokens",
  "rollout/response_tokens",
  "rollout/tool_calls",
  "rollout/retrievals",
  "rollout/retrievals_missed",
  "rollout/retrievals_failed",
)
_OF_ROLLOUTS = (
  "rollout/",
  "reward/",
  "score/",
  "retrieval/",
  "groups/live_fraction",
  "clip_fraction",
  "mismatch/",
)


# Blank trajectories answer it, from which everything is compiled.
_NO_QUERY = Query(
  "none", "", ("none",), ({"role": "user", "content": ""},), "none"
)


class Sampled(NamedTuple):
  """The groups that an update trains on.

  Attributes:
    queries: the query of each group id.
    trajectories: of all groups.
    scores: of the trajectories.
    stats: of all rollouts together.
    rounds: rollouts that were made.
    dropped: groups that were rolled out and are not trained on.
    replayed: groups of earlier updates.
    budget: what all rollouts took.
    guidance: metrics of a rule when to retrieve.
  """

  queries: list[Query]
  trajectories: list[Trajectory]
  scores: list[rewards.Score]
  stats: RolloutStats
  rounds: int = 1
  dropped: int = 0
  replayed: int = 0
  budget: Budget = Budget()
  guidance: Mapping[str, float] = types.MappingProxyType({})


class _Group(NamedTuple):
  """The rollouts of one question."""

  query: Query
  members: list[tuple[Trajectory, rewards.Score]]


class Trainer:
  """Runs updates. Holds no state of its own between them.

  Args:
    engine: generates trajectories.
    tokenizer: decodes them for the reward.
    rollout: G, N_hybrid and temperature are read here, the rest by the engine.
    objective: settings of the experiment; the algorithm may change some.
    optimizer: of the train state.
    update: batch shapes.
    seed: of sampling and retrieval.
    mesh: devices that share the update; None for one device.
    reward: scores the trajectories.
    tag_set: tags of the agent's tools, for the reward.
    algorithm: what is trained with.
    reference: the policy before the first update, which KL is taken to; needed
      with a `kl_coef` above 0, unless the policy has adapters.
    agent_rows: another agent's trajectories, for a plan with a teacher
      or prefixes.

  Raises:
    InputError: the algorithm is not as it must be, see
      `algorithms.check_algorithm`; or the mesh does not divide the rows of a
      micro-batch. Or the plan has a teacher, and there are no rows of one, or
      as many as a group has. Or it has a rule when to retrieve, and no
      rollout is plain.
  """

  def __init__(
    self,
    engine: RolloutEngine,
    tokenizer: Any,
    *,
    rollout: RolloutConfig,
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig,
    update: UpdateConfig,
    seed: int,
    mesh: jax.sharding.Mesh | None = None,
    reward: rewards.Reward = rewards.OUTCOME,
    tag_set: TagSet = rewards.RECIPE_TAGS,
    algorithm: Algorithm = RAPO,
    reference: models.Decoder | None = None,
    agent_rows: AgentRows | None = None,
  ):
    if mesh is not None:
      sharding.check_rows(
        "rows_per_microbatch", update.rows_per_microbatch, mesh
      )
    check_algorithm(algorithm, objective)
    self._mesh = mesh
    self._engine = engine
    self._tokenizer = tokenizer
    self._algorithm = algorithm
    self._rollout = algorithm.plan.rollout(rollout)
    self._objective = algorithm.settings(objective).for_budget(
      rollout.max_response_tokens
    )
    self._optimizer = optimizer
    self._update = update
    self._seed = seed
    self._reward = reward
    self._tag_set = tag_set
    self._reference = reference
    _check_teacher(algorithm, rollout.num_generations, agent_rows)
    _check_guide(algorithm, rollout)
    self._agent_rows = agent_rows if algorithm.plan.reads_agent else None

  def step(
    self,
    state: TrainState,
    queries: Sequence[Query],
    prompts: Prompts,
    update: int,
    more: Questions | None = None,
    store: Sequence[StoredGroup] = (),
    guidance: float = 1.0,
  ) -> tuple[TrainState, Experience, dict[str, float]]:
    """Rollouts and the minibatch updates on them.

    Args:
      state: donated.
      queries: as many as `num_fresh` says.
      prompts: token ids of each query's prompt.
      update: number of updates before this one.
      more: gives the queries of further rounds, for a plan that resamples;
        None for one round.
      store: groups of earlier updates, for a plan that replays: see `stored`.
      guidance: `guidance/needed` of the update before, for a plan with a rule
        when to retrieve.

    Returns:
      The new state, what it was trained on, and metrics of the update.

    Raises:
      InputError: there are more or fewer queries than the store leaves room
        for. Or one is not to be asked, see `asks`.
    """
    began = time.perf_counter()
    if len(queries) != self.num_fresh(store):
      raise InputError(
        f"an update with {len(store)} stored groups asks "
        f"{self.num_fresh(store)} questions, got {len(queries)}: hand in as "
        "many as num_fresh says."
      )
    unasked = [query.query_id for query in queries if not self.asks(query)]
    if unasked:
      raise InputError(
        f"the algorithm {self._algorithm.name} learns from another agent's "
        f"trajectories alone, and there is none on {', '.join(unasked)!r:.200}"
        ": hand in questions that `asks` takes."
      )
    guide = self._algorithm.plan.guide
    if guide is None:
      sampled = self._sample(state.model, queries, prompts, update, more)
    else:
      sampled = self._sample_guided(
        guide, state.model, queries, prompts, update, guidance
      )
    if store:
      sampled = self._with_replayed(sampled, store, update)
    experience = self._evaluated(
      sampled.trajectories, sampled.queries, sampled.scores
    )
    rolled_out = time.perf_counter()
    state, experience, history, numbers = self._learn(state, experience)
    report = summarise(experience, sampled.stats, history)
    report |= probe_numbers(experience.trajectories, sampled.stats)
    report |= {
      f"budget/{name}": value
      for name, value in sampled.budget._asdict().items()
    }
    report["budget/leaves"] = len(experience.trajectories)
    report["rollout/rounds"] = sampled.rounds
    report["groups/dropped"] = sampled.dropped
    report["groups/replayed"] = sampled.replayed
    report |= sampled.guidance
    report["groups/agent_rows"] = sum(
      t.source is Source.AGENT for t in experience.trajectories
    )
    report["update/seconds"] = time.perf_counter() - rolled_out
    report |= numbers
    report["step/seconds"] = time.perf_counter() - began
    return state, experience, report

  def compile(self, state: TrainState) -> TrainState:
    """Compiles what an update runs, without a rollout and without learning.

    Args:
      state: donated.

    Returns:
      The state, bit for bit.
    """
    state = committed(state)
    self._engine.compile(state.model, seed=self._seed)
    count = self._update.queries_per_update
    size = self._rollout.num_generations
    blanks = [
      _blank(number // size, number % size) for number in range(count * size)
    ]
    experience = self._evaluated(
      blanks, [_NO_QUERY] * count, [rewards.Score(0.0, "")] * len(blanks)
    )
    # Minibatches are alike.
    batch = self._batches(state.model, experience)[0].batch
    state, metrics = self._train(state, unlearned(batch))
    jax.block_until_ready(metrics)
    return state

  def asks(self, query: Query) -> bool:
    """Whether a question is trained on.

    One on which another agent has no trajectory is not, where all rows of a
    group are of that agent.

    Args:
      query: the question.
    """
    if self._agent_rows is None or self._algorithm.plan.teacher != "all":
      return True
    return query.query_id in self._agent_rows.query_ids

  def num_fresh(self, store: Sequence[StoredGroup]) -> int:
    """Questions that an update asks: those that the store does not fill.

    Args:
      store: groups of earlier updates.
    """
    wanted = self._update.queries_per_update
    replay = self._algorithm.plan.replay
    return wanted - (replay.replayed(wanted, len(store)) if replay else 0)

  def stored(
    self, store: Sequence[StoredGroup], experience: Experience
  ) -> list[StoredGroup]:
    """The store after an update; empty for a plan that does not replay.

    Args:
      store: before it.
      experience: of the update.
    """
    replay = self._algorithm.plan.replay
    return replay.stored(store, fresh_groups(experience)) if replay else []

  def _with_replayed(
    self, sampled: Sampled, store: Sequence[StoredGroup], update: int
  ) -> Sampled:
    """Adds groups of the store, and mixes them with those that are new."""
    replay = self._algorithm.plan.replay
    rng = np.random.default_rng([self._seed, update])
    wanted = self._update.queries_per_update
    drawn = replay.drawn(store, wanted, rng) if replay else []
    if not drawn:
      return sampled
    groups = _groups(sampled.queries, sampled.trajectories, sampled.scores)
    groups += [_Group(g.content.query, replayed(g)) for g in drawn]
    # So that each minibatch has its share.
    groups = [groups[i] for i in rng.permutation(len(groups))]
    joined = _joined(groups, [sampled.stats], dropped=0)
    return joined._replace(
      replayed=len(drawn),
      rounds=sampled.rounds,
      budget=sampled.budget,
      guidance=sampled.guidance,
    )

  def _scored(
    self, trajectories: Sequence[Trajectory], queries: Sequence[Query]
  ) -> tuple[list[Trajectory], list[rewards.Score]]:
    """Trajectories with the effects of their retrievals, and their scores."""
    return scored_with_effects(
      trajectories,
      lambda chosen: score_trajectories(
        chosen, queries, self._tokenizer, self._reward, self._tag_set
      ),
    )

  def _evaluated(
    self,
    trajectories: Sequence[Trajectory],
    queries: Sequence[Query],
    scores: Sequence[rewards.Score],
  ) -> Experience:
    """Rewards and advantages, in arrays of the same shapes in every update."""
    return evaluate_trajectories(
      trajectories,
      queries,
      self._tokenizer,
      self._objective,
      max_length=self._engine.max_length,
      max_steps=self._rollout.max_steps,
      max_response_tokens=self._rollout.max_response_tokens,
      algorithm=self._algorithm,
      scores=scores,
    )

  def _batches(
    self, model: models.Decoder, experience: Experience
  ) -> list[Packed]:
    """The minibatches of an update, with what is scored before its first."""
    loss = self._algorithm.loss
    with sharding.use_mesh(self._mesh):
      share_prompts = models.reads_prefixes(model.config.attention)
    packed = minibatches(
      experience,
      self._update,
      self._objective,
      self._algorithm,
      share_prompts=share_prompts,
    )
    if "proximal_log_probs" not in loss.columns:
      return packed
    return [
      one._replace(
        batch=with_proximal(
          model,
          sharding.split_rows(one.batch, self._mesh),
          mesh=self._mesh,
          scoring=self._scoring,
        )
      )
      for one in packed
    ]

  @property
  def _scoring(self) -> dict[str, Any]:
    """How tokens are scored."""
    return {
      "temperature": self._rollout.temperature,
      "dtype": self._rollout.dtype,
      "remat": self._update.remat,
      "head_chunk": self._update.head_chunk,
    }

  def _learn(
    self, state: TrainState, experience: Experience
  ) -> tuple[TrainState, Experience, list[UpdateMetrics], dict[str, float]]:
    """The minibatch updates.

    Returns:
      The new state, what it was trained on with what the trainer made of it,
      metrics of each minibatch, and the seconds in which minibatches ran and
      the share of padding, by name.
    """
    history: list[UpdateMetrics] = []
    padding: list[float] = []
    skipped: list[PackedBatch] = []
    seconds = 0.0
    packed = self._batches(state.model, experience)
    for _ in range(self._update.epochs):
      for batch, _ in packed:
        began = time.perf_counter()
        state, metrics = self._train(state, batch)
        history.append(jax.device_get(metrics))
        seconds += time.perf_counter() - began
        padding.append(batch.padding_fraction)
        if history[-1].skipped:
          skipped.append(batch)
    experience = experience._replace(
      skipped=tuple(skipped),
      trainer_log_probs=_trainer_log_probs(experience, packed, history),
    )
    numbers = {
      "update/device_seconds": seconds,
      "update/padding_fraction": float(np.mean(padding)),
    }
    return state, experience, history, numbers

  def _train(
    self, state: TrainState, batch: PackedBatch
  ) -> tuple[TrainState, UpdateMetrics]:
    """One minibatch update."""
    return train_minibatch(
      state,
      sharding.split_rows(batch, self._mesh),
      self._reference,
      mesh=self._mesh,
      objective=self._objective,
      optimizer=self._optimizer,
      loss=self._algorithm.loss,
      scoring=self._scoring,
    )

  def _sample(
    self,
    model: models.Decoder,
    queries: Sequence[Query],
    prompts: Prompts,
    update: int,
    more: Questions | None,
  ) -> Sampled:
    """Rolls out until there are enough groups that the plan keeps."""
    resample = self._algorithm.plan.resample
    if resample is None:
      trajectories, stats = self._roll_out(model, queries, prompts, update, 0)
      budget = budget_of(trajectories)
      trajectories, scores = self._scored(trajectories, queries)
      return Sampled([*queries], trajectories, scores, stats, budget=budget)
    wanted = len(queries)
    rounds = resample.max_rounds if more is not None else 1
    kept: list[_Group] = []
    all_stats: list[RolloutStats] = []
    budget = Budget()
    for number in range(rounds):
      if number and more is not None:
        queries, prompts = more(number)
      trajectories, stats = self._roll_out(
        model, queries, prompts, update, number
      )
      all_stats.append(stats)
      budget = budget.plus(budget_of(trajectories))
      trajectories, scores = self._scored(trajectories, queries)
      groups = _groups(queries, trajectories, scores)
      dead: list[_Group] = []
      for group in groups:
        (kept if self._teaches(group, resample) else dead).append(group)
      if len(kept) >= wanted:
        break
    rolled_out = len(all_stats) * wanted
    # Only where the last round has left too few.
    kept += dead
    joined = _joined(kept[:wanted], all_stats, dropped=rolled_out - wanted)
    return joined._replace(budget=budget)

  def _sample_guided(
    self,
    guide: GuideRule,
    model: models.Decoder,
    queries: Sequence[Query],
    prompts: Prompts,
    update: int,
    share: float,
  ) -> Sampled:
    """Rolls out by a rule when to retrieve."""
    budget = Budget()

    def score(
      sampled: Sequence[Trajectory],
    ) -> tuple[list[Trajectory], list[rewards.Score]]:
      nonlocal budget
      budget = budget.plus(budget_of(sampled))
      return self._scored(sampled, queries)

    found = roll_out_guided(
      guide,
      self._requests(queries, prompts),
      lambda chosen: self._engine.rollout(
        model, chosen, seed=self._seed, update=update
      ),
      score,
      lambda trajectory: counts(trajectory, self._objective),
      share,
    )
    return Sampled(
      [*queries],
      found.trajectories,
      found.scores,
      RolloutStats.in_turn(found.stats),
      rounds=len(found.stats),
      budget=budget,
      guidance={
        "guidance/needed": found.needed,
        "guidance/given": found.given,
      },
    )

  def _teaches(self, group: _Group, resample: Resample) -> bool:
    """Whether a group is kept, by those of its rollouts that count."""
    scores = [s for t, s in group.members if counts(t, self._objective)]
    if len(scores) < min(2, len(group.members)):
      return False
    return judged(resample.keep, scores)

  def _requests(
    self, queries: Sequence[Query], prompts: Prompts
  ) -> list[RolloutRequest]:
    """Requests of the groups of some questions."""
    return group_requests(
      queries,
      prompts,
      num_generations=self._rollout.num_generations,
      num_hybrid=self._rollout.num_hybrid,
    )

  def _roll_out(
    self,
    model: models.Decoder,
    queries: Sequence[Query],
    prompts: Prompts,
    update: int,
    number: int,
  ) -> tuple[list[Trajectory], RolloutStats]:
    """One rollout; a question that comes again in another round differs."""
    requests = self._requests(queries, prompts)
    # Random streams go by question and index.
    shift = number * self._rollout.num_generations
    if shift:
      requests = [
        dataclasses.replace(request, index=request.index + shift)
        for request in requests
      ]
    requests = self._prefixed(requests, update)
    rows = self._of_agent(queries, prompts, update)
    there = {(row.group_id, row.index) for row in rows}
    left = [r for r in requests if (r.group_id, r.index) not in there]
    if not left:
      return sorted(rows, key=_place), RolloutStats()
    trajectories, stats = self._engine.rollout(
      model, left, seed=self._seed, update=update
    )
    if rows:
      trajectories = sorted([*trajectories, *rows], key=_place)
    return trajectories, stats

  def _prefixed(
    self, requests: list[RolloutRequest], update: int
  ) -> list[RolloutRequest]:
    """Requests with the steps that they begin with, one prefix a question."""
    share = self._algorithm.plan.prefixed
    if self._agent_rows is None or not share:
      return requests
    config = self._rollout
    prefixes: dict[int, tuple[np.ndarray, ...]] = {}
    for request in requests:
      if request.group_id not in prefixes:
        number = query_number(request.query)
        rng = np.random.default_rng([self._seed, update, number])
        prefixes[request.group_id] = ()
        if rng.random() < share:
          prefixes[request.group_id] = self._agent_rows.draw_prefix(
            request.query.query_id,
            rng,
            # A step of the policy has room behind them.
            room=config.max_response_tokens - config.max_step_tokens,
            most=config.max_tool_calls,
          )
    return [
      dataclasses.replace(request, prefix=prefixes[request.group_id])
      for request in requests
    ]

  def _of_agent(
    self, queries: Sequence[Query], prompts: Prompts, update: int
  ) -> list[Trajectory]:
    """Another agent's rows, in the last places of their groups."""
    rows: list[Trajectory] = []
    teacher = self._algorithm.plan.teacher
    if self._agent_rows is None or teacher is None:
      return rows
    size = self._rollout.num_generations
    count = size if teacher == "all" else teacher
    for group, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
      drawn = self._agent_rows.draw(
        query.query_id,
        prompt,
        count,
        np.random.default_rng([self._seed, update, query_number(query)]),
        fill=teacher == "all",
      )
      rows += [
        dataclasses.replace(row, group_id=group, index=size - 1 - number)
        for number, row in enumerate(drawn)
      ]
    return rows


@hosts.led
def committed(state: TrainState) -> TrainState:
  """The state with all arrays committed to the devices that they lie on.

  What is restored is, and what is frozen may not be. A program is compiled for
  either, and all that an update gives is committed if a part of it was.

  Args:
    state: donated.
  """
  return jax.tree.map(
    lambda x: x if x.committed else jax.device_put(x, x.sharding), state
  )


@hosts.led
def with_proximal(
  model: models.Decoder,
  batch: PackedBatch | sharding.HostRows,
  *,
  mesh: jax.sharding.Mesh | None,
  scoring: dict[str, Any],
) -> PackedBatch:
  """A minibatch with the policy's log-probs before the update, see Eq. 11.

  Args:
    model: the policy before the update.
    batch: packed trajectories, or the rows of this host, see `split_rows`.
    mesh: devices that share the work; None for one device.
    scoring: how tokens are scored, see `score_proximal`.
  """
  with sharding.use_mesh(mesh):
    scored = score_proximal(model, sharding.join_rows(batch, mesh), **scoring)
  if not hosts.is_shared(mesh):
    return scored
  # What is sent on has to be whole on every host.
  return jax.tree.map(sharding.gathered, scored)


@hosts.led
def train_minibatch(
  state: TrainState,
  batch: PackedBatch | sharding.HostRows,
  reference: models.Decoder | None,
  *,
  mesh: jax.sharding.Mesh | None,
  objective: ObjectiveConfig,
  optimizer: OptimizerConfig,
  loss: TokenLoss,
  scoring: dict[str, Any],
) -> tuple[TrainState, UpdateMetrics]:
  """One minibatch update on the devices of all hosts; see `update_minibatch`.

  Args:
    state: donated.
    batch: packed trajectories, or the rows of this host, see `split_rows`.
    reference: policy that KL is taken to; None for that of the state with its
      adapters off.
    mesh: devices that share the work; None for one device.
    objective: coefficients and clip range.
    optimizer: of which the state is a part.
    loss: of each token.
    scoring: how tokens are scored.
  """
  with sharding.use_mesh(mesh):
    batch = sharding.join_rows(batch, mesh)
    if objective.kl_coef:
      batch = score_reference(
        state.model if reference is None else reference, batch, **scoring
      )
    state, metrics = update_minibatch(
      state,
      batch,
      objective=objective,
      optimizer=optimizer,
      loss=loss,
      **scoring,
    )
  if hosts.is_shared(mesh):
    # What the leader reads has to be whole on it.
    whole = sharding.gathered(metrics.log_probs)
    metrics = metrics._replace(log_probs=whole)
  return state, metrics


def _check_teacher(
  algorithm: Algorithm, num_generations: int, agent_rows: AgentRows | None
) -> None:
  """Refuses a plan with a teacher that groups have no rows or room for."""
  teacher = algorithm.plan.teacher
  if algorithm.plan.prefixed and agent_rows is None:
    raise InputError(
      f"the algorithm {algorithm.name} begins rollouts with another agent's "
      "steps, and there are no trajectories of one: hand in agent_rows."
    )
  if teacher is not None and agent_rows is None:
    raise InputError(
      f"the algorithm {algorithm.name} trains on trajectories of another "
      "agent, and there are none: hand in agent_rows."
    )
  if isinstance(teacher, int) and teacher >= num_generations:
    raise InputError(
      f"a group of the algorithm {algorithm.name} has {teacher} rows of "
      f"another agent and further ones of the policy, got a group of "
      f"{num_generations}: raise rollout.num_generations."
    )


def _check_guide(algorithm: Algorithm, rollout: RolloutConfig) -> None:
  """Refuses a rule when to retrieve in groups without a plain half."""
  if algorithm.plan.guide and rollout.num_hybrid >= rollout.num_generations:
    raise InputError(
      f"the algorithm {algorithm.name} asks the plain rollouts of a group when "
      f"to retrieve, got a group of {rollout.num_generations} with "
      f"{rollout.num_hybrid} hybrid ones: lower rollout.num_hybrid."
    )


def _blank(group: int, index: int) -> Trajectory:
  """A trajectory of one token, behind a prompt of one."""
  zeros = np.zeros(2, np.float32)
  return Trajectory(
    tokens=np.zeros(2, np.int32),
    kinds=np.asarray([TokenKind.PROMPT, TokenKind.POLICY], np.int8),
    step_ids=np.asarray([-1, 0], np.int32),
    log_probs=zeros,
    entropies=zeros,
    query_id=_NO_QUERY.query_id,
    group_id=group,
    index=index,
    hybrid=False,
    policy_version=0,
    finish_reason=FinishReason.EOS,
  )


def _place(trajectory: Trajectory) -> tuple[int, int]:
  """Group and index, for sorting."""
  return trajectory.group_id, trajectory.index


def _groups(
  queries: Sequence[Query],
  trajectories: Sequence[Trajectory],
  scores: Sequence[rewards.Score],
) -> list[_Group]:
  groups = [_Group(query, []) for query in queries]
  for trajectory, score in zip(trajectories, scores, strict=True):
    groups[trajectory.group_id].members.append((trajectory, score))
  return groups


def _joined(
  groups: Sequence[_Group], stats: Sequence[RolloutStats], *, dropped: int
) -> Sampled:
  """Groups of several rounds as if they were of one."""
  trajectories = []
  scores = []
  for number, group in enumerate(groups):
    for trajectory, score in group.members:
      trajectories.append(dataclasses.replace(trajectory, group_id=number))
      scores.append(score)
  return Sampled(
    [group.query for group in groups],
    trajectories,
    scores,
    RolloutStats.in_turn(stats),
    rounds=len(stats),
    dropped=dropped,
  )


def minibatches(
  experience: Experience,
  update: UpdateConfig,
  objective: ObjectiveConfig,
  algorithm: Algorithm = RAPO,
  *,
  share_prompts: bool = True,
) -> list[Packed]:
  """Packed batches of `queries_per_minibatch` groups each, in order.

  Members of placements are indices of the update's trajectories.

  Trajectories that do not count are left out. So are those without an
  advantage where nothing else gives a gradient. Weights are means over both
  kinds: the gradient is that of a batch that holds all that count.

  Args:
    experience: all trajectories of an update.
    update: how many groups, rows and tokens a minibatch has.
    objective: how token losses are weighted.
    algorithm: whose columns are packed.
    share_prompts: as for `packing.pack`.
  """
  per_batch = update.queries_per_minibatch
  trajectories = experience.trajectories
  columns = packed_columns(algorithm)
  found = []
  for first in range(0, update.queries_per_update, per_batch):
    members = [
      i
      for i, t in enumerate(trajectories)
      if first <= t.group_id < first + per_batch
    ]
    chosen = [trajectories[i] for i in members]
    where = np.zeros((len(chosen), update.row_length), bool)
    counted = experience.counted[members]
    for row, trajectory in enumerate(chosen):
      length = len(trajectory.tokens)
      where[row, :length] = trajectory.policy_mask & counted[row]
    weights = np.asarray(
      objectives.loss_weights(
        where,
        aggregation=objective.aggregation,
        constant=objective.aggregation_length,
      )
    )
    if objective.aggregation != "token" and counted.any():
      # The mean is over those that count. A factor of 1 changes no bit.
      weights = weights * np.float32(len(counted) / counted.sum())
    advantages = experience.advantages[members]
    if algorithm.loss.vanishes and not (
      objective.kl_coef or objective.entropy_coef
    ):
      idle = ~np.any(advantages.reshape(len(members), -1) != 0, axis=1)
      weights = np.where(idle[:, None], np.float32(0), weights)
    packed = pack(
      chosen,
      advantages=advantages,
      retrieved_fraction=experience.retrieved_fraction[members],
      weights=weights,
      row_length=update.row_length,
      rows_per_microbatch=update.rows_per_microbatch,
      columns=columns,
      share_prompts=share_prompts,
    )
    placements = [
      p._replace(member=members[p.member]) for p in packed.placements
    ]
    found.append(packed._replace(placements=placements))
  return found


def _trainer_log_probs(
  experience: Experience,
  packed: Sequence[Packed],
  history: Sequence[UpdateMetrics],
) -> tuple[Float[np.ndarray, " T"], ...]:
  """Of each trajectory, see `Experience`; from the update's first epoch."""
  found = tuple(
    np.full(len(t.tokens), np.nan, np.float32) for t in experience.trajectories
  )
  for (batch, placements), metrics in zip(packed, history, strict=False):
    scored = np.where(batch.where, metrics.log_probs, np.nan)
    for placement in placements:
      found[placement.member][placement.own] = scored[placement.at]
  return found


def summarise(
  experience: Experience, stats: RolloutStats, history: Sequence[UpdateMetrics]
) -> dict[str, float]:
  """Metrics of one update as a flat dictionary of numbers.

  Those of rollouts and rewards leave out what was not sampled for it. Where
  nothing was, only their counts are there, which are 0. Those of the update
  leave out minibatches that were skipped.
  """
  own = np.flatnonzero(
    [t.source is Source.POLICY for t in experience.trajectories]
  )
  trajectories = [experience.trajectories[i] for i in own]
  scores = [experience.scores[i] for i in own]
  retrieval_rewards = experience.retrieval_rewards[own]
  minibatches = len(history)
  history = [m for m in history if not m.skipped]
  sampled = max(sum(float(m.sampled) for m in history), 1.0)

  def count(kind: TokenKind) -> int:
    return sum(int(np.sum(t.kinds == kind)) for t in trajectories)

  retrieving = [
    i
    for i, t in enumerate(trajectories)
    if np.any(t.kinds == TokenKind.RETRIEVED)
  ]
  retrievals = [e for t in trajectories for e in t.retrieval_events]
  outcomes = [e.outcome for e in retrievals]
  hits = [e for e in retrievals if e.outcome == "hit"]
  calls = [e for t in trajectories for e in t.tool_events]
  policy_tokens = count(TokenKind.POLICY)
  entropy = sum(float(np.sum(t.entropies)) for t in trajectories)
  finished = [t.finish_reason for t in trajectories]
  counted = experience.counted[own]
  correct = [s.correct for s in scores]
  values = experience.rewards[own][counted]
  scored = [s for s, counts in zip(scores, counted, strict=True) if counts]
  report = {
    **{f"rollout/{k}": value for k, value in stats.numbers().items()},
    "rollout/generated_tokens": policy_tokens,
    "rollout/response_tokens": policy_tokens
    + count(TokenKind.OBSERVATION)
    + count(TokenKind.RETRIEVED),
    "rollout/entropy": entropy / max(policy_tokens, 1),
    "rollout/tool_calls": len(calls),
    "rollout/tool_failures": sum(c.status != "ok" for c in calls),
    "rollout/malformed_calls": sum(c.status == "malformed" for c in calls),
    "rollout/retrievals": len(hits),
    "rollout/retrievals_with_answer": sum(e.answers for e in hits),
    "rollout/retrievals_missed": outcomes.count("miss"),
    "rollout/retrievals_failed": outcomes.count("failed")
    + outcomes.count("open"),
    "rollout/retrievals_open": outcomes.count("open"),
    "rollout/retrievals_without_room": outcomes.count("no_room"),
    "rollout/retrieved_fraction": _mean(experience.retrieved_fraction[own]),
    **{
      f"rollout/finished_{reason}": finished.count(reason)
      / max(len(finished), 1)
      for reason in FinishReason
    },
    "rollout/repetitive_fraction": repetitive_fraction(trajectories),
    # Of those that count; 0 where none does.
    "rollout/left_out": int(np.sum(~counted)),
    "reward/mean": _mean(values),
    "reward/min": float(min(values, default=0.0)),
    "reward/max": float(max(values, default=0.0)),
    "reward/accuracy": _mean(np.asarray(correct, bool)[counted]),
    "reward/format_whole": _mean(np.asarray([score.whole for score in scored])),
    **{
      f"score/{status}": count
      for status, count in collections.Counter(
        str(score.status) for score in scored
      ).items()
    },
    "retrieval/reward": _mean(retrieval_rewards[retrieving])
    if retrieving
    else 0.0,
    "groups/live_fraction": float(np.mean(experience.live_groups)),
    # NaN, where every minibatch was skipped.
    "loss": _mean([m.loss for m in history], math.nan),
    "gradient_norm": _mean([m.gradient_norm for m in history], math.nan),
    "update/minibatches": minibatches,
    "update/skipped": minibatches - len(history),
    "clip_fraction_low": sum(float(m.clipped_low) for m in history) / sampled,
    "clip_fraction_high": sum(float(m.clipped_high) for m in history) / sampled,
    **_mismatch(history),
    **_right_log_prob(trajectories, correct),
    **stats.tool_numbers(),
  }
  return report if trajectories else _without_rollouts(report)


def _mismatch(history: Sequence[UpdateMetrics]) -> dict[str, float]:
  """What trainer and sampler disagree about in the first minibatch.

  The policy has not moved yet there: it is error, not learning. Nothing, where
  that minibatch computes no token: momentum moves the policy all the same.

  Args:
    history: metrics of the minibatches that were not skipped.
  """
  first = next(iter(history), None)
  if first is None or not first.sampled:
    return {}
  return {
    "mismatch/abs_log_prob_mean": float(first.gap_sum / first.sampled),
    "mismatch/abs_log_prob_max": float(first.gap_max),
  }


def _right_log_prob(
  trajectories: Sequence[Trajectory], correct: Sequence[bool]
) -> dict[str, float]:
  """Mean log-prob of the policy's tokens in right trajectories, if any."""
  right = [
    t.log_probs[t.policy_mask]
    for t, is_right in zip(trajectories, correct, strict=True)
    if is_right
  ]
  tokens = np.concatenate(right) if right else np.zeros(0)
  return {"rollout/right_log_prob": _mean(tokens)} if len(tokens) else {}


def _without_rollouts(report: dict[str, float]) -> dict[str, float]:
  """Metrics that say something where nothing was rolled out."""
  return {
    name: value
    for name, value in report.items()
    if name in _COUNTS or not name.startswith(_OF_ROLLOUTS)
  }


def _mean(values: np.ndarray | Sequence[Any], otherwise: float = 0.0) -> float:
  """The mean of some numbers, or another number where there are none."""
  return float(np.mean(values)) if len(values) else otherwise
