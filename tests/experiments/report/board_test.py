"""Tests of the leader board, by hand."""

import pytest

from experiments.report import board, tables
from experiments.report import results as results_lib
from experiments.report.folders import Source
from experiments.report.sources import Run

_SPENT = {
  "budget/generated_tokens": 50.0,
  "budget/leaves": 8,
  "rollout/decode_seconds": 1.0,
  "update/seconds": 2.0,
}


def _run(tmp_path, method, seed, rows, task="t", *, finished=True):
  """Rows are (update, cumulative tokens, accuracy)."""
  content = [
    {"update": update, "eval/accuracy": accuracy}
    | ({"generated_tokens": tokens} if update else {})
    | (_SPENT if update else {})
    for update, tokens, accuracy in rows
  ]
  return Run(
    task, method, seed, tmp_path / method, finished, content, Source(tmp_path)
  )


def test_accuracy_is_read_where_the_reference_ended(tmp_path):
  runs = [
    _run(tmp_path, "grpo", 0, [(0, 0, 0.0), (5, 100, 0.4)]),
    # 100 tokens lie half-way between 50 and 150.
    _run(tmp_path, "dapo", 0, [(0, 0, 0.0), (5, 50, 0.2), (10, 150, 0.6)]),
    # Half of the tokens: it stands at its end.
    _run(tmp_path, "replay", 0, [(0, 0, 0.0), (5, 50, 0.3)]),
  ]
  rows = board.make_board(runs, "grpo")["t"]
  assert rows["grpo"]["at_tokens"]["mean"] == 0.4
  assert rows["dapo"]["at_tokens"]["mean"] == pytest.approx(0.4)
  assert rows["dapo"]["at_tokens"]["reached"] == 1
  assert rows["replay"]["at_tokens"]["mean"] == 0.3
  assert rows["replay"]["at_tokens"]["reached"] == 0
  assert rows["replay"]["difference"]["mean"] == pytest.approx(-0.1)
  # One pair has no interval.
  assert rows["replay"]["difference"]["interval"] is None
  assert rows["dapo"]["budget"] == {
    "leaves": 8,
    "generated tokens": 50,
    "device seconds": 3,
  }


def test_seeds_are_paired_and_tasks_averaged(tmp_path):
  runs = []
  for task, shift in (("a", 0.0), ("b", 0.2)):
    for seed in (0, 1):
      base = 0.1 * seed + shift
      runs.append(
        _run(tmp_path, "grpo", seed, [(0, 0, 0), (5, 10, base)], task)
      )
      runs.append(
        _run(tmp_path, "x", seed, [(0, 0, 0), (5, 10, base + 0.1)], task)
      )
  # A seed without its partner, and a method that one task lacks.
  runs.append(_run(tmp_path, "x", 2, [(0, 0, 0), (5, 10, 0.9)], "a"))
  runs.append(_run(tmp_path, "y", 0, [(0, 0, 0), (5, 10, 0.9)], "a"))
  found = board.make_board(runs, "grpo")
  mean = found[board.MEAN]["x"]
  assert mean["at_tokens"]["seeds"] == pytest.approx({"0": 0.2, "1": 0.3})
  assert mean["difference"]["mean"] == pytest.approx(0.1)
  assert mean["difference"]["interval"] == pytest.approx((0.1, 0.1))
  assert "y" not in found[board.MEAN]
  assert "y" in found["a"]


def test_an_unfinished_run_has_no_accuracy_at_equal_tokens(tmp_path):
  runs = [
    _run(tmp_path, "grpo", 0, [(0, 0, 0.0), (5, 100, 0.4)]),
    _run(tmp_path, "x", 0, [(0, 0, 0.0), (5, 50, 0.2)], finished=False),
  ]
  row = board.make_board(runs, "grpo")["t"]["x"]
  assert "at_tokens" not in row
  assert row["budget"]


def test_the_table_keeps_to_the_width_and_marks_fewer_tokens(tmp_path):
  runs = [
    _run(tmp_path, "grpo", 0, [(0, 0, 0.0), (5, 100, 0.4)]),
    _run(tmp_path, "rollout_replay", 0, [(0, 0, 0.0), (5, 50, 0.3)]),
  ]
  results = results_lib.compute_results(tmp_path) | {
    "tasks": ["t"],
    "methods": ["grpo", "rollout_replay"],
    "reference": "grpo",
    "labels": {"grpo": "GRPO", "rollout_replay": "RolloutReplay"},
    "board": board.make_board(runs, "grpo"),
  }
  wide = tables.format_board(results, 160)
  assert "30.0*" in wide
  assert "generated tokens" in wide
  narrow = tables.format_board(results, 60)
  assert max(map(len, narrow.splitlines())) <= 60
  # The best comes first.
  assert narrow.index("\nGRPO") < narrow.index("\nRolloutReplay")
  markdown = tables.format_board_markdown(results)
  assert "| RolloutReplay | – | – | – | 30.0* | −10.0 |" in markdown
