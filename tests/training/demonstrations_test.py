"""Demonstrations of a warm start: what a rollout would have, token by token."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest

from rapo_jax.errors import InputError
from rapo_jax.rollout import RolloutConfig, retrieved_text
from rapo_jax.tools import TagSet
from rapo_jax.training import pack_examples
from rapo_jax.training.agent_rows import AgentEncoder
from rapo_jax.training.demonstrations import Demonstrations, with_retrieved
from rapo_jax.trajectory import TokenKind, decode
from tests.rollout import tag_world

TOKENIZER = tag_world.make_tokenizer()
TAGS = TagSet(("search",))
PROMPT = np.array([4, 5], np.int32)
ROLLOUT = RolloutConfig(
  max_response_tokens=96,
  max_step_tokens=24,
  max_tool_tokens=24,
  max_tool_calls=3,
)


def step(name):
  return f"<search>{name}</search><result> {name} </result>"


ANSWER = "<answer>a</answer>"
THREE = (step("a"), step("b"), ANSWER)


def encoder(**changes):
  settings = {"max_response_tokens": 96, "max_steps": 7} | changes
  return AgentEncoder(TOKENIZER, TAGS, **settings)


def demonstrations(trajectories, rollout=ROLLOUT, **settings):
  settings = {"row_length": 128} | settings
  return Demonstrations(
    trajectories, lambda _: PROMPT, encoder(), rollout, **settings
  )


def drawn(found, count):
  return list(itertools.islice(found.examples(), count))


def test_tokens_are_those_of_a_rollout_retrieved_steps_too():
  queries = tag_world.make_queries()
  # Among the likeliest two tokens there are few bytes that are no text.
  config = dataclasses.replace(tag_world.CONFIG, top_k=2, retrieval_prob=1.0)
  engine = tag_world.make_engine(
    config,
    TOKENIZER,
    tag_world.EchoTool(),
    tag_world.make_buffer(queries),
  )
  requests = tag_world.make_requests(
    config, queries, tag_world.make_prompts(queries, TOKENIZER)
  )
  policy = tag_world.make_policy(len(TOKENIZER))
  trajectories, _ = engine.rollout(policy, requests, seed=1, update=0)
  encode = encoder(max_response_tokens=112, max_steps=9)
  num_retrieved = 0
  for trajectory in trajectories:
    texts = trajectory.step_texts(TOKENIZER)
    # Bytes that are no text, and control tokens, are never encoded again.
    bad = [re.search("\ufffd|<.im_end", text) is not None for text in texts]
    count = bad.index(True) if any(bad) else len(texts)
    where = (trajectory.step_ids >= 0) & (trajectory.step_ids < count)
    kinds, numbers = trajectory.kinds[where], trajectory.step_ids[where]
    retrieved = set(numbers[kinds == TokenKind.RETRIEVED].tolist())
    num_retrieved += len(retrieved)
    steps = [
      text.removeprefix("<retrieve>").removesuffix("</retrieve>")
      if number in retrieved
      else text
      for number, text in enumerate(texts[:count])
    ]
    if steps:
      response = encode(steps, retrieved)
      assert response.tokens.tolist() == trajectory.tokens[where].tolist()
      assert response.kinds.tolist() == kinds.tolist()
      assert response.step_ids.tolist() == numbers.tolist()
  assert num_retrieved > 3


def test_the_agent_s_own_tokens_are_in_the_loss():
  (example,) = drawn(demonstrations({"q": [THREE]}), 1)
  assert example.tokens[:2].tolist() == PROMPT.tolist()
  assert decode(TOKENIZER, example.tokens[2:]) == "".join(THREE)
  assert decode(TOKENIZER, example.tokens[example.where]) == (
    "<search>a</search><search>b</search><answer>a</answer>"
  )


def test_what_is_retrieved_is_not_in_the_loss_and_not_written_again():
  found = demonstrations(
    {"q": [THREE]}, retrieved_share=1.0, retrieved_prob=1.0
  )
  (example,) = drawn(found, 1)
  inserted = retrieved_text(step("b"))
  assert decode(TOKENIZER, example.tokens[2:]) == step("a") + inserted + ANSWER
  assert decode(TOKENIZER, example.tokens[example.where]) == (
    "<search>a</search>" + ANSWER
  )
  # Kept apart, none is retrieved.
  found = demonstrations(
    {"q": [THREE]}, retrieved_share=1.0, retrieved_prob=1.0, held_out=1
  )
  (example,) = found.held_out_examples()
  assert decode(TOKENIZER, example.tokens[2:]) == "".join(THREE)
  with pytest.raises(InputError, match="at least one to learn from"):
    drawn(found, 1)


def test_an_answer_that_was_retrieved_is_written_all_the_same():
  rng = np.random.default_rng(0)
  steps = (step("a"), ANSWER)
  assert with_retrieved(steps, [steps], 1.0, rng) == (
    (step("a"), ANSWER, ANSWER),
    frozenset({1}),
  )


def test_another_trajectory_that_goes_on_otherwise_is_followed():
  other = (step("a"), step("c"), step("d"), ANSWER)
  # Another beginning, and a copy, are none.
  every = [THREE, other, (step("x"), step("y"), ANSWER), THREE]
  rng = np.random.default_rng(0)
  assert with_retrieved(THREE, every, 1.0, rng) == (
    (step("a"), step("c"), step("d"), ANSWER, ANSWER),
    frozenset({1, 3}),
  )
  assert with_retrieved(THREE, every, 0.0, rng) == (THREE, frozenset())


def test_shares_and_probabilities_hold():
  trajectories = {f"q{i}": [THREE] for i in range(400)}
  found = demonstrations(trajectories, retrieved_share=0.5, retrieved_prob=0.4)
  texts = [decode(TOKENIZER, e.tokens) for e in drawn(found, 400)]
  # At the first boundary; or at the second, whose answer is retrieved.
  expected = 0.5 * (0.4 + 0.6 * 0.4)
  share = np.mean(["<retrieve>" in text for text in texts])
  # Four standard deviations.
  assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 400)


def test_every_epoch_has_all_and_draws_anew():
  found = demonstrations(
    {f"q{i}": [THREE, (ANSWER,)] for i in range(8)},
    retrieved_share=0.5,
    retrieved_prob=0.5,
  )
  texts = [decode(TOKENIZER, e.tokens[2:]) for e in drawn(found, 32)]
  epochs = texts[:16], texts[16:]
  assert [own.count(ANSWER) for own in epochs] == [8, 8]
  assert epochs[0] != epochs[1]
  again = [decode(TOKENIZER, e.tokens[2:]) for e in drawn(found, 32)]
  assert again == texts


def test_held_out_questions_have_none_of_their_trajectories_in_training():
  found = demonstrations(
    {f"q{i}": [THREE, (ANSWER,)] for i in range(6)}, held_out=2
  )
  apart = {worked.query_id for worked in found.held_out}
  assert len(apart) == 2
  assert len(found.held_out) == 4
  assert len(found.train) == 8
  assert not apart & {worked.query_id for worked in found.train}


@pytest.mark.parametrize(
  ("steps", "settings", "rollout"),
  [
    (THREE, {"row_length": 40}, {}),
    ((step("aaa"), ANSWER), {}, {"max_step_tokens": 4}),
    (THREE, {}, {"max_tool_tokens": 5}),
    (THREE, {}, {"max_tool_calls": 1}),
    ((step("a"),) * 7 + (ANSWER,), {}, {"max_tool_calls": 9}),
    (("<python>1</python><result> 1 </result>", ANSWER), {}, {}),
  ],
)
def test_what_does_not_fit_is_left_out_and_counted(steps, settings, rollout):
  found = demonstrations(
    {"q": [steps, (ANSWER,)]},
    dataclasses.replace(ROLLOUT, **rollout),
    **settings,
  )
  assert [worked.steps for worked in found.train] == [(ANSWER,)]
  assert found.num_left_out == 1


def test_a_retrieved_step_without_room_is_left_out():
  (plain,) = drawn(demonstrations({"q": [THREE]}), 1)
  found = demonstrations(
    {"q": [THREE]},
    row_length=len(plain.tokens),
    retrieved_share=1.0,
    retrieved_prob=1.0,
  )
  examples = drawn(found, 3)
  assert all(e.tokens.tolist() == plain.tokens.tolist() for e in examples)
  next(pack_examples(examples, rows=3, row_length=len(plain.tokens)))
