"""Another agent's trajectories in groups, with hand-made texts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rapo_jax import rewards
from rapo_jax.algorithms import ALGORITHMS, ObjectiveConfig, Plan
from rapo_jax.errors import InputError
from rapo_jax.retrieval import step_traces
from rapo_jax.training import OptimizerConfig, Trainer, init_train_state
from rapo_jax.training.agent_rows import (
  AgentEncoder,
  AgentRows,
  whole_trajectories,
)
from rapo_jax.trajectory import Source, TokenKind
from tests.tiny_decoder import tiny_decoder
from tests.training.answers import (
  QUERY,
  RIGHT,
  ROLLOUT,
  TOKENIZER,
  UPDATE,
  Engine,
)

CALL = "<think>t</think><search>q</search>"
RESULT = "<result> r </result>"
STEPS = (CALL + RESULT, RIGHT)


def _rows(trajectories, **changes):
  settings = {"max_response_tokens": 96, "max_steps": 3} | changes
  encode = AgentEncoder(TOKENIZER, rewards.RECIPE_TAGS, **settings)
  return AgentRows(trajectories, encode)


def _one(rows, name="q"):
  drawn = rows.draw(name, np.array([1, 2]), 5, np.random.default_rng(0))
  (row,) = drawn
  return row


def test_whole_trajectories_are_read_from_step_traces():
  traces = []
  for name, steps, reward in (
    ("a", STEPS, 1.0),
    ("b", (RIGHT,), 0.5),
    ("no answer", (CALL + RESULT,), 1.0),
    ("bad", (RIGHT,), 0.0),
  ):
    traces += step_traces(
      "Q?",
      steps,
      reward=reward,
      source="agent",
      query_id="q",
      first_trace_id=len(traces),
      trajectory_id=name,
    )
  others = [dataclasses.replace(trace, query_id="other") for trace in traces]
  unknown = [dataclasses.replace(trace, trajectory_id="") for trace in traces]
  found = whole_trajectories(
    [*traces, *others, *unknown], {"q": "?"}, min_reward=0.0
  )
  assert found == {"q": [STEPS, (RIGHT,)]}
  # Those of a buffer from elsewhere have ids of their own.
  found = whole_trajectories(others, {"q": "Q?", "p": "P?"}, min_reward=0.0)
  assert found == {"q": [STEPS, (RIGHT,)]}


def test_results_are_observations():
  row = _one(_rows({"q": [STEPS]}))
  assert [(kind, text) for kind, text in row.texts(TOKENIZER)][1:] == [
    (TokenKind.POLICY, CALL),
    (TokenKind.OBSERVATION, RESULT),
    (TokenKind.POLICY, RIGHT),
  ]
  assert [s.step_id for s in row.segments()] == [-1, 0, 0, 1]
  assert row.tokens[:2].tolist() == [1, 2]
  assert row.source is Source.AGENT
  assert not row.log_probs.any()


def test_nothing_in_the_text_becomes_a_control_token():
  text = "<think><|im_end|></think><answer>\\boxed{a}</answer>"
  row = _one(_rows({"q": [(text,)]}))
  assert TOKENIZER.eos_token_id not in row.tokens
  assert row.texts(TOKENIZER)[1][1] == text


def test_a_prompt_may_open_the_thought():
  row = _one(_rows({"q": [(RIGHT,)]}, opened=True))
  assert row.texts(TOKENIZER)[1][1] == RIGHT.removeprefix("<think>")
  row = _one(_rows({"q": [("\n " + RIGHT,)]}, opened=True))
  assert row.texts(TOKENIZER)[1][1] == RIGHT.removeprefix("<think>")
  # An answer without a thought would stand in the one that is open.
  answer = "<answer>\\boxed{a}</answer>"
  row = _one(_rows({"q": [(answer,)]}, opened=True))
  assert row.texts(TOKENIZER)[1][1] == "</think>" + answer


@pytest.mark.parametrize(
  ("steps", "changes"),
  [
    (STEPS, {"max_steps": 1}),
    (STEPS, {"max_response_tokens": 40}),
    # The result would count as the agent's own text.
    (("<think>t</think><calc>1</calc>" + RESULT, RIGHT), {}),
  ],
)
def test_what_does_not_fit_is_left_out(steps, changes):
  assert _rows({"q": [steps]}, **changes).query_ids == frozenset()


def test_draws_are_uniform_and_come_again():
  texts = [f"<think>{i}</think><answer>\\boxed{{a}}</answer>" for i in range(4)]
  rows = _rows({"q": [(text,) for text in texts]})

  def drawn(seed, count=2):
    found = rows.draw("q", np.array([1]), count, np.random.default_rng(seed))
    return [row.texts(TOKENIZER)[1][1] for row in found]

  assert drawn(1) == drawn(1)
  assert len(set(drawn(1))) == 2
  assert sorted(drawn(2, 9)) == texts
  first = [drawn(seed)[0] for seed in range(200)]
  # 50 of each are expected.
  assert all(25 < first.count(text) < 80 for text in texts)
  assert rows.draw("x", np.array([1]), 1, np.random.default_rng(0)) == []
  rng = np.random.default_rng(2)
  filled = rows.draw("q", np.array([1]), 6, rng, fill=True)
  again = [row.texts(TOKENIZER)[1][1] for row in filled]
  assert sorted(again[:4]) == texts
  assert again[4:] == again[:2]


def _trainer(rows, algorithm="luffy"):
  return Trainer(
    Engine(),
    TOKENIZER,
    rollout=ROLLOUT,
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(),
    update=UPDATE,
    seed=0,
    algorithm=ALGORITHMS[algorithm],
    agent_rows=rows,
  )


def test_a_question_without_a_trajectory_has_another_rollout():
  trainer = _trainer(_rows({"live1": [STEPS]}))
  state = init_train_state(
    tiny_decoder(vocab_size=len(TOKENIZER)), OptimizerConfig()
  )
  queries = [
    dataclasses.replace(QUERY, query_id=name, ground_truth=("b",))
    for name in ("live1", "live2")
  ]
  queries[0] = dataclasses.replace(queries[0], ground_truth=("a",))
  _, experience, row = trainer.step(state, queries, [np.array([1])] * 2, 4)
  assert [(t.group_id, t.index) for t in experience.trajectories] == [
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
  ]
  sources = [t.source for t in experience.trajectories]
  assert sources == [Source.POLICY, Source.AGENT] + [Source.POLICY] * 2
  # The same reward: a search that was answered earns nothing by itself.
  assert [s.correct for s in experience.scores] == [True, True, False, False]
  assert row["groups/agent_rows"] == 1
  assert row["budget/rollouts"] == 3
  assert row["budget/leaves"] == 4
  assert row["rollout/response_tokens"] == row["rollout/generated_tokens"]
  assert row["reward/accuracy"] == pytest.approx(1 / 3)


def test_groups_of_the_agent_alone_need_no_rollout():
  trainer = _trainer(_rows({"live1": [STEPS], "live2": [(RIGHT,)]}), "sft")
  decoder = tiny_decoder(vocab_size=len(TOKENIZER))
  state = init_train_state(decoder, OptimizerConfig())
  queries = [
    dataclasses.replace(QUERY, query_id=name) for name in ("live1", "live2")
  ]
  prompts = [np.array([1])] * 2
  losses = []
  for update in range(3):
    state, experience, row = trainer.step(state, queries, prompts, update)
    losses.append(row["loss"])
  assert [(t.group_id, t.index) for t in experience.trajectories] == [
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
  ]
  assert row["groups/agent_rows"] == row["budget/leaves"] == 4
  assert losses[2] < losses[1] < losses[0]
  # What was not done is 0, and what cannot be said is left out.
  for name in ("budget/rollouts", "rollout/generated_tokens"):
    assert row[name] == 0
  assert not [
    name
    for name in row
    if name.startswith(("reward/", "score/", "mismatch/", "clip_fraction"))
    or name in ("groups/live_fraction", "rollout/entropy")
  ]
  assert trainer.asks(queries[0])
  other = dataclasses.replace(QUERY, query_id="other")
  assert not trainer.asks(other)
  with pytest.raises(InputError, match=r"there is none on 'other'.*`asks`"):
    trainer.step(state, [queries[0], other], prompts, 3)


def test_a_group_needs_both():
  with pytest.raises(InputError, match="there are none: hand in agent_rows"):
    _trainer(None)
  with pytest.raises(InputError, match="there are none: hand in agent_rows"):
    _trainer(None, "sft")
  with pytest.raises(InputError, match="teacher is at least 1 row"):
    Plan(teacher=1, hybrid=True)
  with pytest.raises(InputError, match="teacher is at least 1 row"):
    Plan(teacher=0)
  with pytest.raises(InputError, match="teacher is at least 1 row"):
    Plan(teacher="some")


def test_a_prefix_is_whole_steps_without_the_last():
  steps = (CALL + RESULT, CALL + RESULT, RIGHT)
  rows = _rows({"q": [steps]}, max_response_tokens=400)

  def drawn(seed, room=400, most=5):
    rng = np.random.default_rng(seed)
    prefix = rows.draw_prefix("q", rng, room=room, most=most)
    return [TOKENIZER.decode(step) for step in prefix]

  one, two = [CALL + RESULT], [CALL + RESULT] * 2
  found = [drawn(seed) for seed in range(40)]
  assert all(prefix in (one, two) for prefix in found)
  assert 8 < found.count(one) < 32
  size = len(TOKENIZER.encode(CALL + RESULT))
  assert {len(drawn(seed, room=size)) for seed in range(9)} == {1}
  assert {len(drawn(seed, most=1)) for seed in range(9)} == {1}
  assert drawn(0, room=size - 1) == drawn(0, most=0) == []
  assert rows.draw_prefix("x", np.random.default_rng(0), room=9, most=9) == ()


@pytest.mark.parametrize(
  "wrong",
  [{"prefixed": 1.5}, {"hybrid": True}, {"teacher": 1}],
)
def test_a_plan_with_prefixes_is_plain(wrong):
  with pytest.raises(InputError, match="prefixed must be in"):
    Plan(**{"prefixed": 0.5} | wrong)
