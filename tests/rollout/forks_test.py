"""Rollouts that fork: what is copied, and that no delay changes a token."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import models
from rapo_jax.algorithms.forks import EntropyForks, TreeForks
from rapo_jax.errors import InputError
from rapo_jax.rollout.forks import Family, Fork, Group
from rapo_jax.trajectory import TokenKind, Trajectory
from tests.closeness import assert_close
from tests.rollout import tag_world

_CONFIG = dataclasses.replace(
  tag_world.CONFIG, num_generations=6, num_hybrid=0, num_slots=18
)
RULES = {
  "entropy": EntropyForks(initial=2, probability=0.7),
  "tree": TreeForks(trees=2, rounds=1),
  "deep tree": TreeForks(trees=1, rounds=5),
}


@pytest.fixture(scope="module")
def roll(policy, tag_tokenizer, queries, prompts, echo_tool):
  """Rolls out six trajectories a question, or those of some questions."""

  def run(rule, delay=None, chosen=slice(None), **changes):
    config = dataclasses.replace(_CONFIG, **changes)
    engine = tag_world.make_engine(
      config, tag_tokenizer, echo_tool(delay=delay), forks=rule
    )
    requests = tag_world.make_requests(config, queries, prompts)
    return engine.rollout(policy, requests[chosen], seed=4, update=1)

  return run


@pytest.fixture(scope="module")
def rolled(roll):
  return {name: roll(rule) for name, rule in RULES.items()}


def shared(trajectory: Trajectory) -> int:
  """Tokens up to the end of the last step that was copied."""
  own = (trajectory.step_ids >= trajectory.shared_steps) & (
    trajectory.kinds != TokenKind.PROMPT
  )
  return int(np.argmax(own))


def parents(trajectories):
  by_index = {(t.group_id, t.index): t for t in trajectories}
  return [
    (t, by_index[t.group_id, t.parent])
    for t in trajectories
    if t.parent is not None
  ]


@pytest.mark.parametrize("name", RULES)
def test_a_fork_begins_as_its_parent(rolled, name):
  trajectories, stats = rolled[name]
  assert [(t.group_id, t.index) for t in trajectories] == [
    (group, index) for group in range(3) for index in range(6)
  ]
  pairs = parents(trajectories)
  assert len(pairs) > 3
  assert stats.forks == len(trajectories) - 3 * RULES[name].roots(6)
  deep = [child for child, _ in pairs if child.shared_steps > 0]
  assert deep
  for child, parent in pairs:
    at = shared(child)
    assert child.index > parent.index
    for field in ("tokens", "kinds", "step_ids", "log_probs", "entropies"):
      mine, theirs = getattr(child, field), getattr(parent, field)
      np.testing.assert_array_equal(mine[:at], theirs[:at])
    # From there on it has a random stream of its own.
    assert (
      child.tool_events[: child.shared_steps]
      == (parent.tool_events[: child.shared_steps])
    )
    assert child.kinds[at] == TokenKind.POLICY
  different = [
    (child, parent)
    for child, parent in pairs
    if not np.array_equal(child.tokens, parent.tokens)
  ]
  assert len(different) > len(pairs) // 2


@pytest.mark.parametrize("name", RULES)
def test_stored_log_probs_equal_the_trainers(rolled, policy, name):
  """So the cache that was copied is that of the tokens that were."""
  trajectories, _ = rolled[name]
  length = max(len(t.tokens) for t in trajectories)
  tokens = np.zeros((len(trajectories), length), np.int32)
  where = np.zeros(tokens.shape, bool)
  for row, trajectory in enumerate(trajectories):
    tokens[row, : len(trajectory.tokens)] = trajectory.tokens
    where[row, : len(trajectory.tokens)] = trajectory.policy_mask
  log_probs, entropies = models.token_log_probs(
    policy, jnp.asarray(tokens), where=jnp.asarray(where)
  )
  for row, trajectory in enumerate(trajectories):
    size = len(trajectory.tokens)
    assert_close(trajectory.log_probs, log_probs[row, :size])
    assert_close(trajectory.entropies, entropies[row, :size])


@pytest.mark.parametrize("name", RULES)
def test_nothing_runs_through_the_model_twice(rolled, prompts, name):
  trajectories, stats = rolled[name]
  sampled = observed = copied = 0
  for trajectory in trajectories:
    own = np.arange(len(trajectory.tokens)) >= shared(trajectory)
    if trajectory.parent is None:
      own[:] = True
    else:
      copied += int(np.sum(trajectory.response_mask & ~own))
    sampled += int(np.sum(own & (trajectory.kinds == TokenKind.POLICY)))
    observed += int(np.sum(own & (trajectory.kinds == TokenKind.OBSERVATION)))
  assert stats.sampled_tokens == sampled
  assert stats.shared_tokens == copied > 0
  # Each prompt once, without its last token.
  once = sum(len(prompt) - 1 for prompt in prompts)
  assert stats.cached_tokens == observed + once


def same(first, second):
  return all(
    np.array_equal(getattr(first, field), getattr(second, field))
    for field in ("tokens", "kinds", "step_ids", "log_probs", "entropies")
  ) and (first.parent, first.shared_steps, first.finish_reason) == (
    second.parent,
    second.shared_steps,
    second.finish_reason,
  )


@pytest.mark.parametrize("name", RULES)
def test_slow_tools_change_no_bit(roll, rolled, name):
  def delay(argument):
    return 0.02 * (len(argument) % 3)

  again, _ = roll(RULES[name], delay, gather_s=0.0, decode_chunk=3)
  for first, second in zip(again, rolled[name][0], strict=True):
    assert same(first, second)


@pytest.mark.parametrize("name", RULES)
def test_other_questions_change_no_bit(roll, rolled, name):
  again, _ = roll(RULES[name], chosen=slice(6, 12))
  for first, second in zip(again, rolled[name][0][6:12], strict=True):
    assert same(first, second)


@pytest.mark.parametrize("name", RULES)
def test_questions_beyond_the_slots_wait(roll, name):
  """With slots for one question they come one after another."""
  slots = RULES[name].slots(6)
  few, stats = roll(RULES[name], num_slots=slots)
  assert len(few) == 18
  assert all(t.finish_reason is not None for t in few)
  assert stats.forks == 18 - 3 * RULES[name].roots(6)
  for child, parent in parents(few):
    at = shared(child)
    np.testing.assert_array_equal(child.tokens[:at], parent.tokens[:at])


def test_what_cannot_fork_is_refused(
  roll, policy, tag_tokenizer, queries, prompts, echo_tool, buffer
):
  with pytest.raises(InputError, match="needs 6 slots"):
    roll(RULES["entropy"], num_slots=4)
  with pytest.raises(InputError, match="choose another"):
    roll(RULES["tree"], num_generations=5)
  with pytest.raises(InputError, match="number them"):
    roll(RULES["entropy"], chosen=slice(1, 6))
  with pytest.raises(InputError, match="do not retrieve"):
    roll(RULES["entropy"], num_hybrid=1)
  with pytest.raises(InputError, match="do not retrieve"):
    tag_world.make_engine(
      _CONFIG, tag_tokenizer, echo_tool(), buffer, forks=RULES["tree"]
    )


@dataclasses.dataclass
class Branch:
  """A rollout as a family sees it."""

  ended: bool = False
  parent: int | None = None
  shared_steps: int = 0
  num_cuts: int = 1
  uncertainties: tuple[float, ...] = (1.0,)


@dataclasses.dataclass(frozen=True)
class Rule:
  """Forks as it is told."""

  wanted: tuple[Fork, ...] = ()

  def roots(self, leaves):
    return 2

  def slots(self, leaves):
    return leaves

  def forks(self, group: Group, draw):
    return list(self.wanted)


def test_a_family_is_due_once_all_stand_or_have_ended():
  family = Family(Rule(), [Branch(), Branch(ended=True), Branch()], (1, 2, 3))
  assert not family.is_due
  first, _ = family.begin_roots()
  assert not family.is_due
  family.stand(first)
  assert family.is_due
  assert family.grow() == ([first], [])
  first.ended = True
  # Nobody goes on, and the rule says nothing.
  released, added = family.grow()
  assert released == []
  assert [fork for _, fork in added] == [Fork(None)]
  assert family.room == 0
  assert not family.is_due


@pytest.mark.parametrize(
  ("forks", "message"),
  [
    ((Fork(0, 2),), "behind an observation"),
    ((Fork(5, 1),), "behind an observation"),
    ((Fork(0, 1), Fork(1, 1)), "at most 1 rollouts"),
  ],
)
def test_rules_that_ask_for_what_is_not_there(forks, message):
  family = Family(Rule(forks), [Branch(), Branch(), Branch()], (1,))
  for member in family.begin_roots():
    family.stand(member)
  with pytest.raises(InputError, match=message):
    family.grow()
