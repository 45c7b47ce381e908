import threading

import pytest

from rapo_jax import rewards
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.trajectory import FinishReason, TokenKind


def sample(answer="42", query_id="q1"):
  query = Query(
    query_id, "What?", ("42",), ({"role": "user", "content": "What?"},), "t"
  )
  text = rf"<think>t</think><answer>\boxed{{{answer}}}</answer>"
  segments = ((TokenKind.PROMPT, "What?"), (TokenKind.POLICY, text))
  return rewards.Sample(query, segments, FinishReason.ANSWER)


class Returns:
  def __init__(self, value):
    self.value = value

  def score(self, batch):
    if isinstance(self.value, Exception):
      raise self.value
    return self.value


def test_the_recipe_scores_samples():
  right, wrong = rewards.score_all(
    rewards.OutcomeReward(), [sample(), sample("43")]
  )
  assert (right.value, right.correct, right.status) == (1.0, True, "ok")
  assert (wrong.value, wrong.correct, wrong.whole) == (0.0, False, True)
  assert right.record() == {
    "value": 1.0,
    "status": "ok",
    "answer": "42",
    "correct": True,
    "whole": True,
    "parts": {"f1": 1.0},
  }


@pytest.mark.parametrize(
  ("given", "value", "status", "correct"),
  [
    (True, 1.0, "right", True),
    (False, 0.0, "wrong", False),
    (0.5, 0.5, "partly", False),
    (-1, -1.0, "wrong", False),
    (rewards.Score(0.2, "near", correct=True), 0.2, "near", True),
  ],
)
def test_a_function_is_a_reward(given, value, status, correct):
  @rewards.reward
  def judge(one):
    assert one.query.query_id == "q1"
    return given

  (score,) = rewards.score_all(judge, [sample()])
  assert (score.value, score.status, score.correct) == (value, status, correct)
  assert judge(sample()) == given


def test_a_reward_runs_off_the_callers_thread():
  seen = []

  @rewards.reward
  def judge(one):
    seen.append(threading.current_thread())
    return True

  rewards.score_all(judge, [sample()])
  assert seen[0] is not threading.current_thread()


def test_an_empty_batch_asks_no_reward():
  assert rewards.score_all(Returns(ValueError("asked")), []) == []


OK = rewards.Score(1.0, "ok")


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ([OK], ("one score a sample, got 1 for 2", "'a', 'b'", "return them all")),
    (None, ("list of scores, got NoneType", "'a'")),
    ([OK, "good"], ("must return a Score", "'b'", "got str")),
    ([OK, rewards.Score(float("nan"), "x")], ("value = nan", "'b'")),
    ([rewards.Score(1.0, "x", parts={"f1": float("inf")}), OK], ("f1 = inf",)),
    ([OK, rewards.Score(1.0, "")], ("status that is a text, got ''", "'b'")),
    (KeyError("gone"), ("must not raise, got KeyError", "base_test.py, line")),
  ],
)
def test_what_breaks_the_protocol_is_refused(given, words):
  batch = [sample(query_id="a"), sample(query_id="b")]
  with pytest.raises(InputError) as e:
    rewards.score_all(Returns(given), batch)
  for word in ("the reward Returns", *words):
    assert word in str(e.value)


def test_an_input_error_of_the_reward_stays():
  with pytest.raises(InputError, match=r"^drop the question$"):
    rewards.score_all(Returns(InputError("drop the question")), [sample()])


@pytest.mark.parametrize("thing", [len, Returns, object()])
def test_what_has_no_score_is_no_reward(thing):
  with pytest.raises(InputError, match=r"@rewards\.reward"):
    rewards.check_reward(thing)
