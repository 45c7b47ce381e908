"""Tests of the progress display, on a clock of its own."""

from __future__ import annotations

import io

import pytest
from rich import console as rich_console

from experiments import progress as progress_lib


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def _progress(stages, clock, *, terminal=False, width=100):
  console = rich_console.Console(
    file=io.StringIO(),
    force_terminal=terminal,
    width=width,
    # A real terminal type, whatever the machine of the test says.
    _environ={"TERM": "xterm-256color" if terminal else "dumb"},
  )
  return progress_lib.Progress(
    stages, console=console, interval_s=10, clock=clock
  ), console.file


def test_time_left_starts_at_the_estimates():
  progress, _ = _progress([("a", 60), ("b", 40)], Clock())
  with progress:
    assert progress.time_left() == 100
    progress.skip("a")
    assert progress.time_left() == 40


def test_time_left_moves_from_the_estimate_to_the_measured_rate():
  clock = Clock()
  progress, _ = _progress([("a", 100)], clock)
  with progress, progress.stage("a"):
    progress.update(0, 100)
    clock.now += 15
    progress.update(15, 100)
    # Estimate and rate agree: 85 units at 1 s.
    assert progress.time_left() == pytest.approx(85)
    clock.now += 35
    progress.update(25, 100)
    # Half way to trust .25/.3 = 5/6: rate 75 * 2 s = 150, estimate 75.
    assert progress.time_left() == pytest.approx(150 * 5 / 6 + 75 / 6)
    clock.now += 30
    progress.update(40, 100)
    # Fully measured: 80 s for 40 units, 60 units to go.
    assert progress.time_left() == pytest.approx(120)


def test_a_resumed_stage_is_not_thought_fast():
  clock = Clock()
  progress, _ = _progress([("a", 1000)], clock)
  with progress, progress.stage("a"):
    progress.update(50, 100)
    clock.now += 60
    progress.update(80, 100)
    # 30 units in 60 s, 20 to go; the 50 of the first run count for nothing.
    assert progress.time_left() == pytest.approx(40)


def test_a_slow_machine_stretches_the_stages_to_come():
  clock = Clock()
  progress, _ = _progress([("a", 10), ("b", 50)], clock)
  with progress:
    with progress.stage("a"):
      clock.now += 20
    assert progress.time_left() == pytest.approx(100)


def test_an_overdue_silent_stage_is_not_said_to_end_now():
  clock = Clock()
  progress, _ = _progress([("a", 10)], clock)
  with progress, progress.stage("a"):
    clock.now += 50
    assert progress.time_left() == pytest.approx(5)


def test_plain_lines_are_throttled_and_tell_the_stage():
  clock = Clock()
  progress, output = _progress([("agents", 60), ("train", 60)], clock)
  with progress:
    progress.skip("agents")
    with progress.stage("train"):
      for step in range(1, 31):
        clock.now += 1
        progress.update(step, 60, "loss [1.5]")
    progress.note("wrote report.html")
  lines = output.getvalue().splitlines()
  assert lines[0] == "[1/2] agents: finished before"
  assert lines[1] == "[2/2] train: started, about 1:00"
  assert lines[2].startswith("[2/2] train: 10/60 loss [1.5] | 10 s gone, ")
  assert lines[2].endswith("left; whole run 50 s left")
  assert lines[-2] == "[2/2] train: done in 30 s (loss [1.5])"
  assert lines[-1] == "wrote report.html"
  assert len(lines) == 7


def test_a_terminal_shows_all_stages():
  clock = Clock()
  progress, output = _progress(
    [("agents", 60), ("train", 60), ("report", 5)], clock, terminal=True
  )
  with progress:
    progress.skip("agents")
    with progress.stage("train"):
      clock.now += 30
      progress.update(3, 20, "reward 0.25")
  text = output.getvalue()
  for part in ("agents", "train", "report", "3/20", "reward 0.25", "whole run"):
    assert part in text


def test_units_done_in_part_are_shown_in_percent():
  clock = Clock()
  progress, output = _progress([("agents", 60)], clock)
  with progress, progress.stage("agents"):
    clock.now += 20
    progress.update(1.2345, 3, "loss 2")
  assert "[1/1] agents: 41 % loss 2 |" in output.getvalue()


def test_a_failed_stage_says_so():
  progress, output = _progress([("train", 60)], Clock())
  with (
    pytest.raises(ValueError, match="broken"),
    progress,
    progress.stage("train"),
  ):
    raise ValueError("broken")
  assert "[1/1] train: FAILED after 0 s" in output.getvalue()


def test_wrong_use_is_named():
  progress, _ = _progress([("train", 60)], Clock())
  with pytest.raises(KeyError, match="no stage 'tarin'"):
    progress.skip("tarin")
  with pytest.raises(RuntimeError, match="needs a running stage"):
    progress.update(1, 2)


@pytest.mark.parametrize(
  ("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00"), (3725, "1:02:05")]
)
def test_durations(seconds, text):
  assert progress_lib._duration(seconds) == text
