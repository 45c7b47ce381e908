"""Tests of the diversity of rollouts, by hand."""

import json

import numpy as np
import pytest

from experiments import diversity
from rapo_jax.records import SegmentRecord, TrainingRecord, TrajectoryRecord

EAST, NORTH = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def test_measures_by_hand():
  vectors = {"a b a": EAST, "c": NORTH}
  found = diversity.measure([["a b a", "c"], ["a b a"]], vectors)
  # Words: a b a, c, a b a. Three of seven are distinct.
  assert found["distinct_1"] == pytest.approx(3 / 7)
  # "a b" and "b a", each twice.
  assert found["distinct_2"] == pytest.approx(2 / 4)
  assert found["distinct_4"] == 0
  assert found["distinct_steps"] == pytest.approx(2 / 3)
  # Pairs of different rollouts: cosines 1 and 0.
  assert found["spread"] == pytest.approx(0.5)


def test_one_rollout_has_no_spread():
  assert diversity.measure([["c"]], {"c": NORTH})["spread"] == 0


def _record(index, *, hybrid, steps, left_out=False):
  kinds = ("policy", "retrieved") if hybrid else ("policy", "policy")
  segments = [SegmentRecord("prompt", -1, "what?")]
  for step, (kind, text) in enumerate(zip(kinds, steps, strict=True)):
    segments.append(SegmentRecord(kind, step, text))
    segments.append(SegmentRecord("observation", step, "never counted"))
  training = TrainingRecord(
    update=1,
    hybrid=hybrid,
    policy_version=0,
    buffer_version=None,
    left_out=left_out,
    advantage=0.0,
    retrieval_reward=0.0,
    retrieved_fraction=0.0,
  )
  return TrajectoryRecord(
    "q", "what?", ("x",), index, "answer", {"value": 1.0}, tuple(segments),
    training=training,
  )  # fmt: skip


class _Encoder:
  def encode(self, texts):
    return np.stack([EAST if "e" in text else NORTH for text in texts])


def _write(folder, records):
  (folder / "trajectories.jsonl").write_text(
    "".join(json.dumps(r.to_json()) + "\n" for r in records), encoding="utf-8"
  )


def test_as_many_rollouts_of_each_kind_are_compared(tmp_path):
  _write(
    tmp_path,
    [
      _record(0, hybrid=False, steps=("one", "one")),
      _record(1, hybrid=False, steps=("one", "one")),
      # A third plain one has no partner; one is left out.
      _record(2, hybrid=False, steps=("other", "words")),
      _record(3, hybrid=True, steps=("one", "two")),
      _record(4, hybrid=True, steps=("three", "for")),
      _record(5, hybrid=True, steps=("so", "so"), left_out=True),
    ],
  )
  diversity.measure_run(tmp_path, _Encoder())
  found = diversity.read_diversity(tmp_path)
  assert found["num_groups"] == 1
  assert found["plain"]["distinct_steps"] == 1 / 4
  assert found["hybrid"]["distinct_steps"] == 1
  # one, two against three, for: cosines 1, 0, 0, 1.
  assert found["plain"]["spread"] == 0
  assert found["hybrid"]["spread"] == pytest.approx(0.5)


def test_a_run_without_hybrid_rollouts_has_nothing_to_compare(tmp_path):
  _write(tmp_path, [_record(0, hybrid=False, steps=("one", "two"))])
  assert not diversity.is_measured(tmp_path)
  diversity.measure_run(tmp_path, _Encoder())
  assert diversity.is_measured(tmp_path)
  assert diversity.read_diversity(tmp_path) is None
