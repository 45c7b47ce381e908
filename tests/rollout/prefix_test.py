"""Rollouts that begin with another agent's steps."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rapo_jax import models
from rapo_jax.errors import InputError
from rapo_jax.trajectory import TokenKind
from tests.closeness import assert_close
from tests.rollout import tag_world

CONFIG = dataclasses.replace(tag_world.CONFIG, num_hybrid=0)


def _steps(tokenizer, count):
  text = "<think>a b</think><search>a</search><result>b</result>"
  return tuple(np.array(tokenizer.encode(text)) for _ in range(count))


@pytest.fixture(scope="module")
def rolled(policy, tag_tokenizer, queries, prompts, echo_tool):
  """Trajectories without a prefix, and with one of two steps on some."""

  def roll(steps, delay=None):
    engine = tag_world.make_engine(
      CONFIG, tag_tokenizer, echo_tool(delay=delay)
    )
    requests = [
      dataclasses.replace(r, prefix=steps) if r.group_id % 2 == 0 else r
      for r in tag_world.make_requests(CONFIG, queries, prompts)
    ]
    return engine.rollout(policy, requests, seed=1, update=3)[0]

  return roll


def test_rollouts_go_on_behind_the_steps(rolled, tag_tokenizer, policy):
  steps = _steps(tag_tokenizer, 2)
  plain, prefixed = rolled(()), rolled(steps)
  width = max(len(t.tokens) for t in prefixed)
  tokens = np.zeros((len(prefixed), width), np.int32)
  where = np.zeros(tokens.shape, bool)
  for row, (got, without) in enumerate(zip(prefixed, plain, strict=True)):
    tokens[row, : len(got.tokens)] = got.tokens
    where[row, : len(got.tokens)] = got.policy_mask
    if got.group_id % 2:
      np.testing.assert_array_equal(got.tokens, without.tokens)
      np.testing.assert_array_equal(got.log_probs, without.log_probs)
      continue
    start = int(np.sum(got.kinds == TokenKind.PROMPT))
    end = start + sum(map(len, steps))
    np.testing.assert_array_equal(got.tokens[start:end], np.concatenate(steps))
    assert (got.kinds[start:end] == TokenKind.RETRIEVED).all()
    np.testing.assert_array_equal(
      got.step_ids[start:end], np.repeat([0, 1], [len(s) for s in steps])
    )
    assert got.kinds[end] == TokenKind.POLICY
    assert got.step_ids[end] == 2
    # They count in the budget.
    assert len(got.tokens) - start <= CONFIG.max_response_tokens
    assert [e.step_id for e in got.retrieval_events] == [0, 1]
  # The cache behind the prefix is whole: scoring the row anew agrees.
  log_probs, _ = models.token_log_probs(
    policy,
    jnp.asarray(tokens),
    where=jnp.asarray(where),
    temperature=CONFIG.temperature,
  )
  for row, got in enumerate(prefixed):
    assert_close(got.log_probs, log_probs[row, : len(got.tokens)])


def test_slow_tools_change_no_bit(rolled, tag_tokenizer):
  steps = _steps(tag_tokenizer, 1)
  quick = rolled(steps)
  slow = rolled(steps, delay=lambda *_: 0.02)
  for a, b in zip(quick, slow, strict=True):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.log_probs, b.log_probs)


def test_steps_that_leave_no_room_are_refused(rolled, tag_tokenizer):
  with pytest.raises(InputError, match="begins with at most"):
    rolled(_steps(tag_tokenizer, CONFIG.max_tool_calls + 1))
  with pytest.raises(InputError, match="begins with at most"):
    rolled((np.array([], np.int64),))
