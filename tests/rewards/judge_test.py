"""The judge, against an endpoint on this machine."""

from __future__ import annotations

import pytest

from rapo_jax import rewards
from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.rewards.judge import JudgeReward
from rapo_jax.trajectory import FinishReason, TokenKind
from tests.fake_endpoint import FakeServer

QUERY = Query(
  "q",
  "Who designed the tower?",
  ("Stephen Sauvestre",),
  ({"role": "user", "content": "?"},),
  "t",
)


def sample(answer: str) -> rewards.Sample:
  text = f"<answer> \\boxed{{{answer}}} </answer>" if answer else "none"
  return rewards.Sample(QUERY, ((TokenKind.POLICY, text),), FinishReason.ANSWER)


def reply(messages):
  """Grades by the answer; some get no grade."""
  text = messages[0]["content"]
  assert "Reference answer: Stephen Sauvestre" in text
  answer = text.partition("Answer to grade: ")[2].partition("\n")[0]
  if "Sauvestre" in answer:
    return "<think> INCORRECT? No. </think>\nCORRECT"
  return {"?": "NOT_ATTEMPTED", "hm": "I cannot say."}.get(answer, "INCORRECT")


def test_grades_and_agreement():
  server = FakeServer(reply)
  with server.serve() as url:
    judge = JudgeReward(url, "m", grades="attempted")
    answers = ("M. Sauvestre", "Eiffel", "?", "hm", "")
    scores = rewards.score_all(judge, [sample(text) for text in answers])
  assert [s.value for s in scores] == [1.0, 0.0, 0.0, 0.0, -1.0]
  assert [s.status for s in scores] == [
    "correct", "incorrect", "not_attempted", "ungraded", "answer_missing"
  ]  # fmt: skip
  # F1 does not call "M. Sauvestre" right.
  assert scores[0].correct
  assert scores[0].parts["local"] == 0.0
  assert [s.parts.get("agreement") for s in scores] == [0, 1, 1, None, None]
  # Without an answer nobody is asked, and without a grade twice.
  assert len(server.requests) == 5
  assert all(request["temperature"] == 0 for request in server.requests)


def test_a_grade_is_asked_for_once(tmp_path):
  cache = tmp_path / "grades" / "m.jsonl"
  server = FakeServer(reply)
  with server.serve() as url:
    judge = JudgeReward(url, "m", cache=str(cache))
    for _ in range(2):
      (score,) = rewards.score_all(judge, [sample("Eiffel")])
      assert score.status == "incorrect"
    assert len(server.requests) == 1
    # A torn line is asked for again.
    cache.write_bytes(cache.read_bytes()[:20])
    rewards.score_all(judge, [sample("Eiffel")])
    assert len(server.requests) == 2
    other = JudgeReward(url, "another", cache=str(cache))
    rewards.score_all(other, [sample("Eiffel")])
    assert len(server.requests) == 3


def test_what_fails_for_a_while_is_asked_again():
  failures = iter([503, 429])
  server = FakeServer(lambda messages: next(failures, "CORRECT"))
  with server.serve() as url:
    (score,) = rewards.score_all(JudgeReward(url, "m"), [sample("Eiffel")])
  assert score.correct
  assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "name"), [(401, "Auth"), (404, "NotFound")])
def test_an_endpoint_that_refuses_is_named(status, name):
  server = FakeServer(lambda messages: status)
  with server.serve() as url:
    judge = JudgeReward(url, "m", max_retries=0)
    with pytest.raises(InputError, match=f"the judge m at {url} .*{name}"):
      rewards.score_all(judge, [sample("Eiffel")])


def test_an_endpoint_that_is_down_is_named():
  judge = JudgeReward("http://127.0.0.1:9/v1", "m", max_retries=0)
  with pytest.raises(InputError, match=r"127\.0\.0\.1:9/v1 must answer"):
    rewards.score_all(judge, [sample("Eiffel")])


@pytest.mark.parametrize(
  "answer",
  [
    None,
    "<html>",
    [1],
    {"error": {"message": "overloaded"}},
    {"choices": [{"index": 0}]},
  ],
)
def test_an_answer_of_another_kind_is_named(answer, monkeypatch):
  server = FakeServer(reply)
  monkeypatch.setattr(server, "answer", lambda body: (200, answer))
  with server.serve() as url:
    judge = JudgeReward(url, "m", max_retries=0)
    with pytest.raises(InputError, match="must answer with a chat completion"):
      rewards.score_all(judge, [sample("Eiffel")])


def test_a_cache_that_is_no_file_is_named(tmp_path):
  judge = JudgeReward("http://x/v1", "m", cache=str(tmp_path))
  with pytest.raises(InputError, match="must be usable"):
    rewards.score_all(judge, [sample("Eiffel")])
  # Bytes that are no text are a torn line.
  path = tmp_path / "grades.jsonl"
  path.write_bytes(b"\xff\xfe\n")
  server = FakeServer(reply)
  with server.serve() as url:
    judge = JudgeReward(url, "m", cache=str(path))
    (score,) = rewards.score_all(judge, [sample("Eiffel")])
  assert score.status == "incorrect"


@pytest.mark.parametrize(
  "change",
  [
    {"url": "http://u:secret@x/v1"},
    {"concurrency": 0},
    {"timeout_s": 0},
    {"max_retries": -1},
  ],
)
def test_what_is_refused(change):
  with pytest.raises(InputError) as error:
    JudgeReward(**{"url": "http://x/v1", "model": "m", **change})
  assert "secret" not in str(error.value)
