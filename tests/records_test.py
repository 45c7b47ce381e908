"""The JSON form of a trajectory: round trips, versions, what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from rapo_jax import records
from rapo_jax.errors import InputError
from rapo_jax.records import (
  SegmentRecord,
  TrainingRecord,
  TrajectoryRecord,
  record_of,
)
from rapo_jax.trajectory import (
  Candidate,
  FinishReason,
  RetrievalEvent,
  Source,
  TokenKind,
  ToolEvent,
  Trajectory,
)
from tests.letters import Letters


def sampled() -> Trajectory:
  """Prompt a; step 0 writes bc and reads d; e is retrieved; step 2 writes f."""
  kinds = np.asarray([0, 1, 1, 2, 3, 1], np.int8)
  return Trajectory(
    tokens=np.arange(6, dtype=np.int32),
    kinds=kinds,
    step_ids=np.asarray([-1, 0, 0, 0, 1, 2], np.int32),
    log_probs=np.asarray([0, -1, -2, 0, 0, -0.123456789], np.float32),
    entropies=np.asarray([0, 0.25, 0.75, 0, 0, 0.5], np.float32),
    query_id="q",
    group_id=0,
    index=3,
    hybrid=True,
    policy_version=4,
    finish_reason=FinishReason.ANSWER,
    events=(
      ToolEvent(0, "search", "bc", "d", "ok", 0.1234567),
      RetrievalEvent(1, "hit", 0.5, 1.0, 7, "teacher"),
    ),
    buffer_version=2,
  )


TRAINING = TrainingRecord(
  5, True, 4, 2, False, 0.5, 0.25, 1 / 3, origin="replay"
)


def record() -> TrajectoryRecord:
  return record_of(
    sampled(),
    Letters(),
    question="Why?",
    ground_truth=("so", "thus"),
    score={"value": 1.1, "status": "ok", "correct": True},
    training=TRAINING,
  )


def test_segments_hold_the_means_of_policy_tokens_alone():
  assert record().segments[:3] == (
    SegmentRecord("prompt", -1, "a", 1),
    SegmentRecord("policy", 0, "bc", 2, entropy=0.5, log_prob=-1.5),
    SegmentRecord("observation", 0, "d", 1),
  )
  assert [s.kind for s in record().segments[3:]] == ["retrieved", "policy"]


def test_what_is_written_is_read_again():
  written = record().to_json()
  line = json.dumps(written, allow_nan=False)
  again = TrajectoryRecord.from_json(json.loads(line))
  # Figures are rounded once, and then stay.
  assert again.to_json() == written
  assert again.ground_truth == ("so", "thus")
  assert again.training.retrieved_fraction == 0.33333
  assert again.segments[-1].log_prob == -0.12346
  assert again.events[0]["seconds"] == 0.12346
  assert again.events[1] == {
    "type": "retrieval",
    "step_id": 1,
    "outcome": "hit",
    "similarity": 0.5,
    "reward": 1.0,
    "trace_id": 7,
    "source": "teacher",
    "answers": False,
  }


def test_figures_of_tokens_are_written_and_read_again():
  trainer = np.asarray([np.nan, -1.1, np.nan, np.nan, np.nan, -2], np.float32)
  for advantages in (None, np.asarray([0, 1, -1, 0, 0, 0.5], np.float32)):
    found = record_of(
      sampled(),
      Letters(),
      question="Why?",
      ground_truth=(),
      score={"value": 1.0},
      training=TRAINING,
      figures=records.TokenFigures(trainer, advantages),
    )
    assert found.segments[1].tokens == records.TokensRecord(
      lengths=(1, 1),
      entropy=(0.25, 0.75),
      log_prob=(-1.0, -2.0),
      trainer_log_prob=(-1.1, None),
      advantage=None if advantages is None else (1.0, -1.0),
    )
    assert found.segments[0].tokens is found.segments[2].tokens is None
    line = json.dumps(found.to_json(), allow_nan=False)
    assert TrajectoryRecord.from_json(json.loads(line)).segments == (
      *found.segments[:-1],
      dataclasses.replace(found.segments[-1], log_prob=-0.12346),
    )


def test_candidates_that_were_not_chosen_are_written_and_read_again():
  event = RetrievalEvent(
    1, "hit", 0.5, others=(Candidate(4, 0.25, 1.0), Candidate(2, 0.125, 0.0))
  )
  content = records.event_to_json(event)
  assert content["others"][0] == {
    "trace_id": 4,
    "similarity": 0.25,
    "reward": 1.0,
  }
  again = json.loads(json.dumps(content))
  assert records.event_from_json(again) == event


def test_what_another_agent_wrote_has_no_probabilities():
  agent = dataclasses.replace(sampled(), source=Source.AGENT)
  found = record_of(
    agent, Letters(), question="", ground_truth=(), score={"value": 1.0}
  )
  assert found.segments[1] == SegmentRecord("policy", 0, "bc", 2)


def test_the_effect_of_a_retrieval_is_written_where_it_was_measured():
  for effect in (-0.5, 0.0, None):
    event = RetrievalEvent(1, "hit", 0.5, effect=effect)
    content = records.event_to_json(event)
    assert content.get("effect", "none") == (
      "none" if effect is None else effect
    )
    assert records.event_from_json(content) == event


def test_a_line_says_its_version_first():
  assert next(iter(record().to_json().items())) == ("version", records.VERSION)


def test_numbers_that_are_not_finite_are_left_empty():
  event = {"type": "tool", "step_id": 0, "seconds": float("inf")}
  bad = TrajectoryRecord("q", "?", ("a",), 0, "eos", {"value": 0}, (), (event,))
  assert json.loads(json.dumps(bad.to_json(), allow_nan=False))["events"] == [
    {"type": "tool", "step_id": 0, "seconds": None}
  ]


def test_a_record_from_before_versions_is_read():
  old = record().to_json()
  for name in ("version", "left_out", "buffer_version", "origin"):
    del old[name]
  old["ground_truth"] = "so"
  old["score"] = {"value": 1.1, "status": "ok", "f1": 1.0, "answer": "so"}
  again = TrajectoryRecord.from_json(old)
  assert records.check_version(old) == 0
  assert again.ground_truth == ("so",)
  assert again.score == {
    "value": 1.1,
    "status": "ok",
    "answer": "so",
    "correct": True,
    "whole": True,
    "parts": {"f1": 1.0},
  }
  assert again.training.left_out is False
  assert again.training.buffer_version is None
  assert again.training.origin == "policy"


def test_a_journal_says_its_agent_and_no_training():
  journal = TrajectoryRecord(
    "q",
    "?",
    ("a",),
    1,
    "answer",
    {"value": 1.0},
    (SegmentRecord("policy", 0, "text"),),
    source="teacher",
  )
  again = TrajectoryRecord.from_json(json.loads(json.dumps(journal.to_json())))
  assert again == journal
  assert again.training is None


def without(name):
  content = record().to_json()
  del content[name]
  return content


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (
      {**record().to_json(), "version": 99},
      "up to version 1, this one",
    ),
    ({**record().to_json(), "version": "1"}, "whole number from 0 on, got '1'"),
    ({**record().to_json(), "version": True}, "got True"),
    ([], "a record must be a JSON object"),
    ({**record().to_json(), "index": "0"}, "index must be a whole number"),
    (without("score"), r"score\.value must be a number"),
    ({**record().to_json(), "score": {"value": True}}, r"score\.value must be"),
    (without("question"), "question must be a text"),
    ({**record().to_json(), "query_id": 3}, "query_id must be a text"),
    ({**record().to_json(), "source": 3}, "source must be a text, got 3"),
    ({**record().to_json(), "segments": {}}, "segments must be a list"),
    ({**record().to_json(), "ground_truth": None}, "list of texts, got None"),
    (
      {**record().to_json(), "ground_truth": [5]},
      "ground_truth must be a list",
    ),
    ({**record().to_json(), "events": "x"}, "events must be a list of objects"),
    ({**record().to_json(), "events": [5]}, "events must be a list of objects"),
    (
      {"score": {"value": 1, "f1": "x"}, "question": "?", "query_id": "q"}
      | {"segments": []},
      r"score\.f1 must be a number, got 'x'",
    ),
    (
      {**record().to_json(), "segments": [{"step_id": True, "text": "t"}]},
      "a segment must have a step_id",
    ),
    (
      {**record().to_json()}
      | {"segments": [{"step_id": 0, "text": "t", "tokens": {"lengths": 5}}]},
      r"tokens\.lengths must be a list of numbers, got 5",
    ),
    ({**record().to_json(), "segments": ["text"]}, "a step_id and a text"),
    (
      {
        **record().to_json(),
        "segments": [{"kind": "speech", "step_id": 0, "text": ""}],
      },
      "must be one of prompt, policy, observation, retrieved, got 'speech'",
    ),
    (without("hybrid"), "must have hybrid"),
  ],
)
def test_what_cannot_be_read_is_refused(content, message):
  with pytest.raises(InputError, match=message):
    TrajectoryRecord.from_json(content)


def test_every_kind_of_token_has_a_name():
  for kind in TokenKind:
    segment = SegmentRecord(kind.name.lower(), 0, "")
    one = TrajectoryRecord("q", "?", ("a",), 0, "", {"value": 0}, (segment,))
    assert TrajectoryRecord.from_json(one.to_json()).segments == (segment,)
