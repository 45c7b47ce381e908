"""Twins: a trajectory once more without one retrieved step, and nothing else.

A twin is compared with a rollout of its own, from the prompt on, whose hook
leaves that one boundary out.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest

from rapo_jax import models
from rapo_jax.retrieval import RetrievalConfig
from rapo_jax.rollout import RolloutEngine
from rapo_jax.rollout.retriever import RetrievalHook
from rapo_jax.trajectory import TokenKind
from tests.rollout import tag_world

CONFIG = dataclasses.replace(
  tag_world.CONFIG,
  num_generations=6,
  num_hybrid=5,
  retrieval_prob=0.7,
  max_response_tokens=160,
  gather_s=0.0,
)
ARRAYS = ("tokens", "kinds", "step_ids", "log_probs", "entropies")
ALL = RetrievalConfig(min_similarity=-1.0, probe_share=1.0)


class Without:
  """Retrieval that leaves out some boundaries: (query, index, step)."""

  def __init__(self, buffer, retrieval, left_out=()):
    self.hook = RetrievalHook(buffer, retrieval, CONFIG.retrieval_prob)
    self.left_out = set(left_out)

  def session(self, changed):
    session = self.hook.session(changed)
    wants = session.wants

    def but(boundary):
      request = boundary.request
      here = (request.query.query_id, request.index, boundary.step_id)
      return here not in self.left_out and wants(boundary)

    session.wants = but
    return session


@pytest.fixture(scope="module")
def requests(queries, prompts):
  return tag_world.make_requests(CONFIG, queries, prompts)


@pytest.fixture(scope="module")
def roll(policy, tag_tokenizer, requests, buffer, echo_tool):
  def run(
    retrieval,
    left_out=(),
    *,
    delay=None,
    model=policy,
    chosen=requests,
    seed=1,
    **changes,
  ):
    tool = echo_tool(delay=delay)
    engine = RolloutEngine(
      dataclasses.replace(CONFIG, **changes),
      tag_tokenizer,
      vocab_size=len(tag_tokenizer),
      tools={tool.name: tool},
      between_steps=Without(buffer, retrieval, left_out),
    )
    return engine.rollout(model, chosen, seed=seed, update=3)

  return run


@pytest.fixture(scope="module")
def probed(roll):
  trajectories, stats = roll(ALL)
  # The tests say little unless trajectories retrieve, some of them twice, and
  # twins retrieve too.
  assert max(len(t.twins) for t in trajectories) > 1
  assert sum(len(t.twins) for t in trajectories) > 6
  assert any(hits(twin) for t in trajectories for twin in t.twins)
  return trajectories, stats


def hits(trajectory):
  return [e for e in trajectory.retrieval_events if e.outcome == "hit"]


def assert_same(got, expected):
  for name in ARRAYS:
    np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
  assert got.finish_reason == expected.finish_reason
  assert untimed(got.events) == untimed(expected.events)


def untimed(events):
  return [
    dataclasses.replace(e, seconds=0.0) if hasattr(e, "seconds") else e
    for e in events
  ]


def test_probes_change_no_bit_of_the_trajectories(probed, roll):
  plain, _ = roll(dataclasses.replace(ALL, probe_share=0.0))
  for got, expected in zip(probed[0], plain, strict=True):
    assert_same(got, expected)
    assert not expected.twins


def assert_begins_as_its_trajectory(twin, trajectory):
  """All that is before the step that the twin does without."""
  size = int(np.argmax(trajectory.step_ids == twin.shared_steps))
  for name in ARRAYS:
    np.testing.assert_array_equal(
      getattr(twin, name)[:size], getattr(trajectory, name)[:size]
    )


def test_each_retrieved_step_has_a_twin_without_it(probed):
  for trajectory in probed[0]:
    steps = [event.step_id for event in hits(trajectory)]
    assert [twin.shared_steps for twin in trajectory.twins] == steps
    for twin in trajectory.twins:
      step = twin.shared_steps
      size = int(np.argmax(trajectory.step_ids == step))
      assert_begins_as_its_trajectory(twin, trajectory)
      # The policy writes the step itself.
      assert twin.kinds[size] == TokenKind.POLICY
      assert twin.step_ids[size] == step
      assert twin.parent == trajectory.index == twin.index
      assert (twin.group_id, twin.hybrid) == (trajectory.group_id, True)
      assert not twin.twins
      before = [e for e in trajectory.events if e.step_id < step]
      assert [e for e in twin.events if e.step_id < step] == before


def test_a_twin_is_the_rollout_that_leaves_one_boundary_out(
  probed, roll, requests
):
  number = 0
  while True:
    left_out, twins = [], {}
    for row, trajectory in enumerate(probed[0]):
      if number < len(trajectory.twins):
        twins[row] = trajectory.twins[number]
        step = twins[row].shared_steps
        left_out.append((trajectory.query_id, trajectory.index, step))
    if not twins:
      break
    alone, _ = roll(dataclasses.replace(ALL, probe_share=0.0), left_out)
    for row, trajectory in enumerate(alone):
      assert_same(twins.get(row, probed[0][row]), trajectory)
    number += 1
  assert number > 1


def test_when_tools_answer_changes_no_bit(probed, roll):
  rng = np.random.default_rng(0)
  again, _ = roll(ALL, delay=lambda argument: 0.03 * rng.random())
  for got, expected in zip(again, probed[0], strict=True):
    assert_same(got, expected)
    for twin, same in zip(got.twins, expected.twins, strict=True):
      assert_same(twin, same)


def test_a_share_of_the_retrievals_is_probed_whatever_runs_beside(probed, roll):
  every = {(t.query_id, t.index, e.step_id) for t in probed[0] for e in hits(t)}

  def chosen(**changes):
    trajectories, _ = roll(dataclasses.replace(ALL, probe_share=0.5), **changes)
    return {
      (t.query_id, t.index, twin.shared_steps)
      for t in trajectories
      for twin in t.twins
    }

  some = chosen()
  assert set() < some < every
  assert chosen(decode_chunk=3, delay=lambda argument: 0.01) == some


class Counting(models.Decoder):
  """A decoder that writes down how many positions run through it."""

  ran: ClassVar[list] = []

  def extend(self, cache, tokens, starts, counts, **options):
    jax.debug.callback(lambda x: self.ran.append(int(np.sum(x))), counts)
    return super().extend(cache, tokens, starts, counts, **options)


def test_what_a_twin_shares_does_not_run_through_the_model_again(
  probed, roll, policy
):
  counting = copy.copy(policy)
  counting.__class__ = Counting
  totals = []
  for share in (0.0, 1.0):
    Counting.ran.clear()
    trajectories, stats = roll(
      dataclasses.replace(ALL, probe_share=share), model=counting
    )
    jax.effects_barrier()
    totals.append(sum(Counting.ran))
  own = 0
  written = 0
  for trajectory in trajectories:
    for twin in trajectory.twins:
      new = twin.step_ids >= twin.shared_steps
      own += int(np.sum(new))
      written += int(np.sum(new & twin.policy_mask))
  # The last token of a prefix runs once for each that goes on from it.
  assert totals[1] - totals[0] == own
  assert stats.twins == sum(len(t.twins) for t in trajectories)
  assert stats.twin_tokens == written
  assert 0 < stats.twin_seconds < stats.decode_seconds
  assert stats.forks == stats.shared_tokens == 0


def test_several_requests_wait_while_twins_run_in_few_slots(probed, roll):
  # Rounding differs with the number of slots; what is sampled rarely does.
  few, _ = roll(ALL, num_slots=3)
  assert [len(t.twins) for t in few] == [len(hits(t)) for t in few]
  same = [
    np.array_equal(a.tokens, b.tokens)
    for a, b in zip(few, probed[0], strict=True)
  ]
  assert sum(same) >= len(same) - 1


def test_a_later_twin_is_not_copied_from_an_earlier_one(roll, requests):
  # In two slots the first twin runs beside its trajectory, and ends before it.
  for number, seed in ((1, 2), (2, 2), (2, 3), (5, 10)):
    (trajectory,), _ = roll(
      ALL,
      chosen=[requests[number]],
      seed=seed,
      num_slots=2,
      max_response_tokens=400,
      max_tool_calls=12,
    )
    assert len(trajectory.twins) == len(hits(trajectory)) > 3
    for twin in trajectory.twins:
      assert_begins_as_its_trajectory(twin, trajectory)


def test_whole_trajectories_and_noise_are_probed_too(roll):
  for changes in ({"granularity": "trajectory"}, {"noise_prob": 1.0}):
    trajectories, _ = roll(dataclasses.replace(ALL, **changes))
    counted = collections.Counter(len(t.twins) for t in trajectories)
    assert counted[0] < len(trajectories)
    for trajectory in trajectories:
      assert len(trajectory.twins) == len(hits(trajectory))


def test_what_had_no_room_is_not_probed(roll, buffer, monkeypatch):
  retrieve = buffer.retrieve

  def long(*arguments, **options):
    return [
      dataclasses.replace(found, text="ab" * CONFIG.max_response_tokens)
      for found in retrieve(*arguments, **options)
    ]

  monkeypatch.setattr(buffer, "retrieve", long)
  trajectories, stats = roll(ALL)
  outcomes = {e.outcome for t in trajectories for e in t.retrieval_events}
  assert outcomes == {"no_room"}
  assert stats.twins == 0
