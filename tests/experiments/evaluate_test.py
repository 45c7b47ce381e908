"""What counts as right in an evaluation, and what is left out."""

from __future__ import annotations

import contextlib
import dataclasses
import types

import numpy as np
import pytest

from experiments import tasks
from experiments.config import EvaluationConfig, ExperimentConfig
from experiments.stages import evaluate
from rapo_jax import rewards
from rapo_jax.errors import InputError
from rapo_jax.rollout import RolloutConfig
from rapo_jax.rollout.stats import RolloutStats
from rapo_jax.trajectory import FinishReason, Trajectory
from tests.rollout import tag_world

TOKENIZER = tag_world.make_tokenizer()
QUERIES = tag_world.make_queries()[:2]
TASK = types.SimpleNamespace(
  name="t",
  evaluation={"held_out": QUERIES},
  tokenizer=TOKENIZER,
  agent="base",
  equipment=tasks.Equipment(
    {
      "search": types.SimpleNamespace(numbers=lambda: {"cost": 2}),
      "open": types.SimpleNamespace(),
    },
    {"base": TOKENIZER},
    contextlib.ExitStack(),
  ),
  reported_reward=rewards.OUTCOME,
  tag_set=rewards.RECIPE_TAGS,
  prompt=lambda query: np.array([1]),
)


def made(
  group: int, answer: str, index: int = 0, reason=FinishReason.ANSWER
) -> Trajectory:
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
    index=index,
    hybrid=False,
    policy_version=0,
    finish_reason=reason,
  )


class Engine:
  """Gives the trajectories of the questions that it is asked."""

  def __init__(self, *trajectories: Trajectory):
    self.trajectories = trajectories
    self.asked: list[str] = []

  def rollout(self, model, requests, *, seed, update, greedy):
    wanted = [(r.query.query_id, r.index) for r in requests]
    groups = {r.query.query_id: r.group_id for r in requests}
    self.asked += [query_id for query_id, _ in wanted]
    found = [
      dataclasses.replace(t, group_id=groups[t.query_id])
      for t in self.trajectories
      if (t.query_id, t.index) in wanted
    ]
    return found, RolloutStats()


CONFIG = ExperimentConfig(
  name="t",
  evaluation=EvaluationConfig(num_samples=2),
  rollout=RolloutConfig(num_slots=16),
)


CURVE = dataclasses.replace(
  CONFIG, evaluation=EvaluationConfig(num_samples=2, curve_samples=2)
)


@pytest.fixture
def engine(monkeypatch):
  def use(*trajectories):
    engine = Engine(*trajectories)
    monkeypatch.setattr(evaluate, "_engine", lambda *_: engine)
    return engine

  return use


def test_right_and_wrong_answers(engine):
  engine(made(0, "a"), made(0, "b", 1), made(1, "\\text{A}"), made(1, "a", 1))
  result = evaluate.evaluate(CONFIG, TASK, None)
  assert result["sampled"] == {"q0": [1, 0], "q1": [1, 1]}
  assert result["greedy"] == {"q0": 1, "q1": 1}
  assert result["sets"] == {"held_out": ["q0", "q1"]}
  assert result["figures"]["held_out"]["pass@1"]["mean"] == 0.75
  assert result["figures"]["held_out"]["pass@2"] == 1.0
  assert result["format_whole"] == 4
  assert result["tools"] == {"search": {"cost": 2.0}}


def test_what_the_system_cut_is_left_out_and_said(engine, caplog):
  cut = made(0, "", 1, FinishReason.TIMEOUT)
  engine(made(0, "a"), cut, made(1, "b"), made(1, "b", 1))
  result = evaluate.evaluate(CONFIG, TASK, None)
  assert result["sampled"] == {"q0": [1], "q1": [0, 0]}
  assert result["left_out"] == 1
  assert "1 of 4 trajectories of this evaluation were cut" in caplog.text


def test_a_question_without_any_other_sample_is_no_wrong_answer(engine):
  cuts = [made(0, "", n, FinishReason.TIMEOUT) for n in range(2)]
  engine(*cuts, made(1, "b"), made(1, "b", 1))
  assert evaluate.evaluate(CONFIG, TASK, None)["sampled"] == {"q1": [0, 0]}
  every = [made(1, "", n, FinishReason.TIMEOUT) for n in range(2)]
  engine(*cuts, *every)
  with pytest.raises(InputError, match="cut all 4 trajectories"):
    evaluate.evaluate(CONFIG, TASK, None)


def test_an_interrupted_evaluation_goes_on_behind_its_last_answer(
  engine, tmp_path, caplog
):
  trajectories = [made(g, "a", n) for g in (0, 1) for n in (0, 1)]
  path = tmp_path / "answers.jsonl"
  first = engine(*trajectories)
  whole = evaluate.evaluate(CONFIG, TASK, None, path=path, made_with="x")
  assert first.asked == ["q0", "q1", "q0", "q0", "q1", "q1"]
  lines = path.read_bytes().splitlines(keepends=True)
  # A header, two greedy answers, one sampled one, and a torn line.
  path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
  again = engine(*trajectories)
  result = evaluate.evaluate(CONFIG, TASK, None, path=path, made_with="x")
  assert again.asked == ["q0", "q0", "q1", "q1"]
  assert result == whole
  assert path.read_bytes().splitlines() == [line.strip() for line in lines]
  # All of it is there, or it is of other settings.
  third = engine(*trajectories)
  evaluate.evaluate(CONFIG, TASK, None, path=path, made_with="x")
  assert third.asked == []
  assert not caplog.records
  before = path.read_bytes()
  evaluate.evaluate(CONFIG, TASK, None, path=path, made_with="y")
  assert len(third.asked) == 6
  assert (tmp_path / "answers.jsonl.old").read_bytes() == before
  assert "it is now answers.jsonl.old" in caplog.text


def test_answers_that_were_changed_are_named(engine, tmp_path):
  path = tmp_path / "answers.jsonl"
  path.write_text('{"made_with": "x"}\n{"correct": true}\n', encoding="utf-8")
  engine()
  with pytest.raises(InputError, match=r"answers\.jsonl must hold the answers"):
    evaluate.evaluate(CONFIG, TASK, None, path=path, made_with="x")


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
def test_a_point_of_the_curve(evaluation, expected, engine):
  task = types.SimpleNamespace(**{**vars(TASK), "evaluation": evaluation})
  engine(made(0, "a"), made(0, "b", 1), made(1, "b"))
  point = evaluate.curve_point(CURVE, task, None)
  assert point == pytest.approx({**expected, "eval/format_whole": 1.0})


def test_a_curve_of_the_first_questions(engine):
  asked = engine(made(0, "a"), made(0, "b", 1))
  evaluation = dataclasses.replace(CURVE.evaluation, curve_questions=1)
  config = dataclasses.replace(CURVE, evaluation=evaluation)
  point = evaluate.curve_point(config, TASK, None)
  assert point["eval/accuracy"] == 0.5
  assert asked.asked == ["q0", "q0"]
