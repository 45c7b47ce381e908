"""What a trajectory depends on, and what it must not depend on."""

import copy
import dataclasses
import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import models
from rapo_jax.trajectory import TokenKind
from tests.closeness import assert_close
from tests.rollout import tag_world

_CONFIG = dataclasses.replace(
  tag_world.CONFIG,
  num_generations=6,
  max_response_tokens=96,
  max_tool_calls=3,
  gather_s=0.0,
)
_ARRAYS = ("tokens", "kinds", "step_ids", "log_probs", "entropies")


@pytest.fixture(scope="module")
def requests(queries, prompts):
  return tag_world.make_requests(_CONFIG, queries, prompts)


@pytest.fixture(scope="module")
def make_engine(tag_tokenizer, buffer, echo_tool):
  def make(tool=None, **changes):
    tool = tool or echo_tool()
    return tag_world.make_engine(
      dataclasses.replace(_CONFIG, **changes), tag_tokenizer, tool, buffer
    )

  return make


def _roll(engine, policy, requests):
  trajectories, _ = engine.rollout(policy, requests, seed=1, update=3)
  return trajectories


@pytest.fixture(scope="module")
def rolled(make_engine, policy, requests):
  trajectories = _roll(make_engine(), policy, requests)
  # The tests say little unless trajectories of several steps were inserted to.
  kinds = [t.kinds for t in trajectories]
  assert sum((k == TokenKind.RETRIEVED).any() for k in kinds) > 3
  assert sum((k == TokenKind.OBSERVATION).any() for k in kinds) > 10
  assert max(t.step_ids.max() for t in trajectories) >= 3
  return trajectories


def _assert_same(got, expected):
  for name in _ARRAYS:
    np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
  assert got.finish_reason == expected.finish_reason


@pytest.mark.parametrize(
  "chosen",
  [[0], [16], [*range(17, -1, -1)], [11, 2, 17, 5, 9, 14, 0, 8, 3, 12]],
  ids=["alone", "alone in another slot", "backwards", "shuffled"],
)
def test_neighbours_and_slots_change_no_bit(
  chosen, rolled, make_engine, policy, requests
):
  again = _roll(make_engine(), policy, [requests[i] for i in chosen])
  for index, trajectory in zip(chosen, again, strict=True):
    _assert_same(trajectory, rolled[index])


@pytest.mark.parametrize("seed", [0, 1])
def test_when_tools_and_searches_answer_changes_no_bit(
  seed, rolled, make_engine, policy, requests, buffer, echo_tool, monkeypatch
):
  rng = np.random.default_rng(seed)
  retrieve = buffer.retrieve

  def late(*arguments, **options):
    time.sleep(0.02 * rng.random())
    return retrieve(*arguments, **options)

  monkeypatch.setattr(buffer, "retrieve", late)
  tool = echo_tool(delay=lambda argument: 0.03 * rng.random())
  order = rng.permutation(len(requests))
  again = _roll(make_engine(tool), policy, [requests[i] for i in order])
  for index, trajectory in zip(order, again, strict=True):
    _assert_same(trajectory, rolled[index])


def test_a_longer_cache_changes_no_bit(rolled, make_engine, policy, requests):
  # Two blocks of the cache become four, and one of the prompts' two.
  engine = make_engine(max_prompt_tokens=120)
  assert engine.max_length > make_engine().max_length
  for got, expected in zip(
    _roll(engine, policy, requests), rolled, strict=True
  ):
    _assert_same(got, expected)


def test_other_numbers_of_slots_give_the_same_but_for_rounding(
  rolled, make_engine, policy, requests
):
  compared = 0
  for got, expected in zip(
    _roll(make_engine(num_slots=5), policy, requests), rolled, strict=True
  ):
    size = min(len(got.tokens), len(expected.tokens))
    differs = got.tokens[:size] != expected.tokens[:size]
    size = np.argmax(differs) if differs.any() else size
    for name in ("log_probs", "entropies"):
      assert_close(getattr(got, name)[:size], getattr(expected, name)[:size])
    compared += size / len(expected.tokens)
  # A draw lies on such an edge once in some ten thousand tokens.
  assert compared > 0.9 * len(rolled)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_of_packed_trajectories_are_the_stored_ones(
  temperature, make_engine, policy, requests
):
  trajectories = _roll(make_engine(temperature=temperature), policy, requests)

  def packed(name):
    return jnp.asarray(np.concatenate([getattr(t, name) for t in trajectories]))

  segments = np.repeat(
    np.arange(len(trajectories)), [len(t.tokens) for t in trajectories]
  )
  log_probs, entropies = models.token_log_probs(
    policy,
    packed("tokens")[None],
    where=packed("policy_mask")[None],
    temperature=temperature,
    segment_ids=jnp.asarray(segments + 1, jnp.int32)[None],
  )
  assert_close(packed("log_probs"), log_probs[0])
  assert_close(packed("entropies"), entropies[0])


def test_nothing_of_the_policy_before_an_update_is_used_after_it(
  rolled, make_engine, policy, requests
):
  updated = jax.tree.map(lambda x: x * 1.01, policy)
  engine = make_engine()
  _roll(engine, policy, requests)
  warm = _roll(engine, updated, requests)
  cold = _roll(make_engine(), updated, requests)
  for got, expected, before in zip(warm, cold, rolled, strict=True):
    _assert_same(got, expected)
    assert not np.array_equal(got.log_probs, before.log_probs)


class _Counting(models.Decoder):
  """A decoder that writes down which positions run through it."""

  ran: ClassVar[list] = []  # of (starts, counts)

  def extend(self, cache, tokens, starts, counts, **options):
    jax.debug.callback(
      lambda *call: self.ran.append([np.array(x) for x in call]),
      starts,
      counts,
    )
    return super().extend(cache, tokens, starts, counts, **options)


def test_no_position_runs_through_the_model_twice(
  rolled, make_engine, policy, requests
):
  counting = copy.copy(policy)
  counting.__class__ = _Counting
  _Counting.ran.clear()
  trajectories = _roll(make_engine(), counting, requests)
  jax.effects_barrier()
  for got, expected in zip(trajectories, rolled, strict=True):
    _assert_same(got, expected)
  # How many sequences ran the token at each place: all but a sequence's last
  # one has to, and a group's prompt up to its last token runs once.
  ran = np.zeros(_CONFIG.max_prompt_tokens + _CONFIG.max_response_tokens, int)
  for starts, counts in _Counting.ran:
    for start, count in zip(starts, counts, strict=True):
      ran[start : start + count] += 1
  prompts = {t.query_id: (t.kinds == TokenKind.PROMPT).sum() for t in rolled}
  expected = np.zeros_like(ran)
  for size in prompts.values():
    expected[: size - 1] += 1
  for trajectory in rolled:
    expected[prompts[trajectory.query_id] - 1 : len(trajectory.tokens) - 1] += 1
  np.testing.assert_array_equal(ran, expected)
