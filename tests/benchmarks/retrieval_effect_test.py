"""Correlations with the effects of retrievals, by hand."""

import json

import numpy as np
import pytest

from benchmarks import retrieval_effect
from benchmarks.retrieval_effect import Retrieval
from rapo_jax.records import SegmentRecord, TrainingRecord, TrajectoryRecord


def one(effect, z, group=0, *, task="t", live=True, update=1):
  return Retrieval(task, group, live, update, effect, z, 0.5, 2 * z, 0.9, 10)


def test_ranks_are_shared_by_equals():
  values = np.array([3.0, -1.0, 3.0, 7.0])
  assert retrieval_effect.ranks(values).tolist() == [1.5, 0.0, 1.5, 3.0]


def test_a_correlation_has_an_interval_over_questions():
  x = np.arange(40.0)
  groups = np.repeat(np.arange(10), 4)
  straight = retrieval_effect.correlation(x, 1 - 3 * x, groups)
  assert straight == {"value": -1.0, "interval": [-1.0, -1.0]}
  noisy = x + 30 * np.random.default_rng(0).standard_normal(40)
  found = retrieval_effect.correlation(x, noisy, groups)
  assert found["value"] == pytest.approx(np.corrcoef(x, noisy)[0, 1], abs=1e-3)
  low, high = found["interval"]
  assert low < found["value"] < high
  assert retrieval_effect.correlation(x, np.ones(40), groups) is None


def test_figures_are_split_by_task_group_and_update():
  rows = [
    one(1.0, 0.5, 0),
    one(0.0, 0.1, 0),
    one(-1.0, -0.3, 1, task="u", update=7),
    one(0.0, 0.2, 2, task="u", live=False, update=8),
  ]
  figures = retrieval_effect.report(rows, 5)
  assert figures["all"]["retrievals"] == 4
  assert figures["all"]["positive"] == figures["all"]["negative"] == 0.25
  assert figures["all"]["z"]["mean_where_zero"] == 0.15
  assert figures["all"]["z"]["pearson"]["value"] > 0.8
  counts = {
    name: {key: part["retrievals"] for key, part in figures[name].items()}
    for name in ("by_task", "by_group", "by_updates")
  }
  assert counts["by_task"] == {"t": 2, "u": 2}
  assert counts["by_group"] == {"live": 3, "dead": 1}
  assert counts["by_updates"] == {"1-5": 2, "6-10": 2}
  # Only the first question has two, and they lie on a line.
  assert figures["within_questions"]["retrievals"] == 2


def test_retrievals_are_read_from_records(tmp_path):
  def record(index, value, effect):
    event = {
      "type": "retrieval",
      "step_id": 1,
      "outcome": "hit",
      "similarity": 0.9,
    } | ({} if effect is None else {"effect": effect})
    return TrajectoryRecord(
      "q",
      "?",
      ("a",),
      index,
      "answer",
      {"value": value},
      (
        SegmentRecord("prompt", -1, "p", 3),
        SegmentRecord("policy", 0, "a", 7, entropy=1.0),
        SegmentRecord("retrieved", 1, "b", 5),
        SegmentRecord("policy", 2, "c", 2, entropy=0.5),
      ),
      (event,),
      training=TrainingRecord(4, True, 3, 1, False, 0.5, 0.7, 0.4),
    )

  lines = [record(0, 1.0, 0.5), record(1, 1.0, None), record(2, 0.0, 0.0)]
  (tmp_path / "trajectories.jsonl").write_text(
    "".join(json.dumps(line.to_json()) + "\n" for line in lines),
    encoding="utf-8",
  )
  run = type("Run", (), {"path": tmp_path, "task": "t"})
  found = retrieval_effect.read_retrievals([run])
  # tanh(2 * 0.5) * 1 nat.
  expected = Retrieval("t", 0, True, 4, 0.5, 0.7616, 0.7616, 1.0, 0.9, 7)
  assert found == [expected, expected._replace(effect=0.0)]
