"""What counts as right in an evaluation, and what is left out."""

from __future__ import annotations

import types

import numpy as np
import pytest

from experiments.stages import evaluate
from rapo_jax import rewards
from rapo_jax.errors import InputError
from rapo_jax.trajectory import FinishReason, Trajectory
from tests.rollout import tag_world

TOKENIZER = tag_world.make_tokenizer()
QUERIES = tag_world.make_queries()[:2]
TASK = types.SimpleNamespace(
  held_out=QUERIES,
  evaluation={"held_out": QUERIES},
  tokenizer=TOKENIZER,
  reward=rewards.OUTCOME,
  tag_set=rewards.RECIPE_TAGS,
)


def made(group: int, answer: str, reason=FinishReason.ANSWER) -> Trajectory:
  ids = TOKENIZER.encode(f"<answer>\\boxed{{{answer}}}</answer>")
  zeros = np.zeros(len(ids), np.float32)
  return Trajectory(
    tokens=np.array(ids, np.int32),
    kinds=np.ones(len(ids), np.int8),
    step_ids=np.zeros(len(ids), np.int32),
    log_probs=zeros,
    entropies=zeros,
    query_id=f"q{group}",
    group_id=group,
    index=0,
    hybrid=False,
    policy_version=0,
    finish_reason=reason,
  )


def correct(*trajectories: Trajectory):
  return evaluate.correct(TASK, evaluate.counted(TASK, trajectories))


def test_right_and_wrong_answers():
  assert correct(made(0, "a"), made(0, "b"), made(1, "\\text{A}")) == {
    "q0": [1, 0],
    "q1": [1],
  }


def test_what_the_system_cut_is_left_out_and_said(caplog):
  cut = made(0, "", FinishReason.TIMEOUT)
  assert correct(cut, made(0, "a"), made(1, "b")) == {"q0": [1], "q1": [0]}
  assert "1 of 3 trajectories of this evaluation were cut" in caplog.text
  # A question without any other sample is no wrong answer.
  assert correct(cut, made(1, "b")) == {"q1": [0]}
  with pytest.raises(InputError, match="cut all 2 trajectories"):
    correct(cut, cut)


@pytest.mark.parametrize(
  ("evaluation", "expected"),
  [
    # Of three trajectories one is right.
    ({"held_out": QUERIES}, {"eval/accuracy": 1 / 3}),
    # Each set weighs the same, and each is shown.
    (
      {"easy": QUERIES[:1], "hard": QUERIES[1:]},
      {
        "eval/accuracy": 0.25,
        "eval/easy/accuracy": 0.5,
        "eval/hard/accuracy": 0.0,
      },
    ),
  ],
)
def test_a_point_of_the_curve(evaluation, expected, monkeypatch):
  task = types.SimpleNamespace(**{**vars(TASK), "evaluation": evaluation})
  rolled = [made(0, "a"), made(0, "b"), made(1, "b")]
  monkeypatch.setattr(evaluate, "roll_out", lambda *_, **__: rolled)
  point = evaluate.curve_point(None, task, None, samples=1)
  assert point == pytest.approx({**expected, "eval/format_whole": 1.0})
