"""Tests of the progress display, on a clock of its own."""

from __future__ import annotations

import io

import pytest
from rich import cells
from rich import console as rich_console

from experiments import progress as progress_lib
from experiments.stop_signal import Stopped
from tests.experiments import terminal

STAGES = ("agents", "buffer", "train", "evaluate", "report")
WIDTHS = (60, 80, 100, 120, 200)


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Latin1(io.StringIO):
  encoding = "latin-1"


def _progress(stages, clock, *, terminal=False, width=100, file=None):
  console = rich_console.Console(
    file=file or io.StringIO(),
    force_terminal=terminal,
    width=width,
    # A real terminal type, whatever the machine of the test says.
    _environ={"TERM": "xterm-256color" if terminal else "dumb"},
  )
  return progress_lib.Progress(
    stages, console=console, interval_s=10, clock=clock
  ), console.file


def _plain(progress, width):
  return [line.plain for line in progress.lines(width)]


def test_time_left_is_unknown_until_a_unit_is_finished():
  clock = Clock()
  progress, _ = _progress(["a"], clock)
  with progress:
    assert progress.time_left() is None
    with progress.stage("a"):
      progress.update(0, 10)
      clock.now += 60
      assert progress.time_left() is None
      progress.update(1, 10)
      # One unit took 60 s, nine are left.
      assert progress.time_left() == 540
    assert progress.time_left() == 0


def test_time_left_of_the_run_needs_that_of_every_stage():
  clock = Clock()
  progress, _ = _progress(["a", "b"], clock)
  with progress, progress.stage("a"):
    progress.update(0, 10)
    clock.now += 1
    progress.update(5, 10)
    assert progress.time_left() is None
    assert "> 1 s left" in _plain(progress, 80)[-1]
    progress.skip("b")
    assert progress.time_left() == 1


def test_preparation_and_what_was_there_before_are_no_speed():
  clock = Clock()
  progress, _ = _progress(["a"], clock)
  with progress, progress.stage("a"):
    progress.update(50, 100, "resumed")
    clock.now += 600
    progress.update(50, 100, "compiled")
    clock.now += 60
    progress.update(80, 100)
    # 30 units in 60 s, 20 to go.
    assert progress.time_left() == pytest.approx(40)


def test_what_an_earlier_run_has_done_is_no_speed():
  clock = Clock()
  progress, _ = _progress(["a"], clock)
  with progress, progress.stage("a"):
    # Only later is it known that there is a checkpoint.
    progress.update(0, 100)
    clock.now += 30
    progress.update(40, 100, "resumed", earlier=True)
    assert progress.time_left() is None
    clock.now += 20
    progress.update(41, 100)
    assert progress.time_left() == pytest.approx(59 * 20)


def test_time_left_follows_a_run_that_slows_down():
  clock = Clock()
  progress, _ = _progress(["a"], clock)
  with progress, progress.stage("a"):
    progress.update(0, 100)
    for unit in range(1, 21):
      clock.now += 1
      progress.update(unit, 100)
    assert progress.time_left() == pytest.approx(80)
    for unit in range(21, 21 + progress_lib._WINDOW):
      clock.now += 10
      progress.update(unit, 100)
    # The average has forgotten the fast ones: 64 units at 10 s.
    assert progress.time_left() == pytest.approx(640)


def test_time_left_grows_while_a_unit_takes_longer_than_those_before():
  clock = Clock()
  progress, _ = _progress(["a"], clock)
  with progress, progress.stage("a"):
    progress.update(0, 3)
    for unit in (1, 2):
      clock.now += 10
      progress.update(unit, 3)
    clock.now += 4
    assert progress.time_left() == pytest.approx(6)
    clock.now += 596
    # 600 s over a unit of 10 s: 1.25 times that in all.
    assert progress.time_left() == pytest.approx(150)


def test_what_follows_other_work_is_known_as_a_bound_alone():
  clock = Clock()
  progress, output = _progress(["a"], clock)
  with progress, progress.stage("a"):
    progress.update(0, 2, until=1)
    clock.now += 10
    progress.update(0.5, 2, until=1)
    # Half of the first kind took 10 s; of the second nothing is known.
    assert progress.time_left() is None
    row = _plain(progress, 80)[0]
    assert row.endswith("> 10 s left")
    clock.now += 10
    progress.update(1, 2, until=2)
    assert "left unknown" in _plain(progress, 80)[0]
    clock.now += 100
    progress.update(1.5, 2, until=2)
    # The second kind is slower, and its own speed counts.
    assert progress.time_left() == pytest.approx(100)
  assert "50 % | 20 s gone, > 10 s left" not in output.getvalue()
  assert "| 10 s gone, > 10 s left" in output.getvalue()


def test_plain_lines_are_throttled_and_tell_the_stage():
  clock = Clock()
  progress, output = _progress(["agents", "train"], clock)
  with progress:
    progress.skip("agents")
    with progress.stage("train"):
      progress.update(0, 60)
      for step in range(1, 31):
        clock.now += 1
        progress.update(step, 60, "loss [1.5]")
    progress.note("wrote report.html")
  assert output.getvalue().splitlines() == [
    "[1/2] agents: finished before",
    "[2/2] train: started",
    "[2/2] train: 10/60 loss [1.5] | 10 s gone, 50 s left",
    "[2/2] train: 20/60 loss [1.5] | 20 s gone, 40 s left",
    "[2/2] train: 30/60 loss [1.5] | 30 s gone, 30 s left",
    "[2/2] train: done in 30 s (loss [1.5])",
    "wrote report.html",
  ]


def test_colours_that_are_forced_make_no_terminal_of_a_pipe(
  monkeypatch, capsys
):
  monkeypatch.setenv("FORCE_COLOR", "1")
  monkeypatch.setenv("TERM", "xterm-256color")
  with progress_lib.Progress(["a"]) as progress, progress.stage("a"):
    progress.update(1, 2, "reward 0.5")
  written = capsys.readouterr().out
  assert "reward 0.5" in written
  assert "\x1b" not in written


def test_a_plain_line_is_one_line_whatever_the_message():
  clock = Clock()
  progress, output = _progress(["train"], clock, width=60)
  with progress, progress.stage("train"):
    clock.now += 30
    progress.update(1, 2, f"first\nsecond \x1b[2J{'long ' * 40}")
  lines = output.getvalue().splitlines()
  assert len(lines) == 3
  assert "first second [2J" in lines[1]
  assert lines[1].endswith("| 30 s gone, left unknown")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
  "message",
  [
    "",
    "multihop rapo-seed12 train accuracy 0.25, held-out 0.31",
    "compiled 41 programs (jit_update 112.4 s, jit_prefill 98.1 s) " * 5,
    "/a/path/without/a/space" * 20,
    "日本語の長い説明 " * 30,
  ],
)
def test_names_and_numbers_are_whole_at_every_width(width, message):
  clock = Clock()
  progress, _ = _progress(STAGES, clock, width=width)
  with progress:
    with progress.stage("agents"):
      clock.now += 7384
    progress.skip("buffer")
    with progress.stage("train"):
      progress.update(0, 6250)
      clock.now += 36_000
      progress.update(625, 6250, message)
      lines = _plain(progress, width)
  assert all(cells.cell_len(line) < width for line in lines)
  table, below = lines[:6], lines[6:]
  names = [line[1:].split()[0] for line in table[:5]]
  assert names == list(STAGES)
  assert "2:03:04" in table[0]
  assert "finished before" in table[1]
  # 5,625 updates are left, as 625 took ten hours.
  for whole in ("625/6250", "10:00:00", "90:00:00 left"):
    assert whole in table[2]
  assert "12:03:04" in table[5]
  assert "> 90:00:00 left" in table[5]
  assert len(below) <= progress_lib._MESSAGE_LINES
  words = " ".join(below).split()
  if words == message.split():
    return
  # Words are left out whole, and that is shown.
  assert len(message) > width - 3
  assert words[-1].endswith("…")
  assert set(words[:-1]) <= set(message.split())


def test_a_display_has_ascii_alone_where_the_terminal_has_no_more():
  clock = Clock()
  progress, _ = _progress(STAGES, clock, terminal=True, file=Latin1())
  with progress, progress.stage("agents"):
    progress.update(1, 2, "Łódź … done")
    lines = _plain(progress, 60)
  "".join(lines).encode("latin-1")
  assert lines[0].startswith(">  agents")
  assert lines[-1] == "  ?ód? ? done"


def test_a_terminal_shows_all_stages():
  clock = Clock()
  progress, output = _progress(
    ["agents", "train", "report"], clock, terminal=True
  )
  with progress:
    progress.skip("agents")
    with progress.stage("train"):
      clock.now += 30
      progress.update(3, 20, "reward 0.25")
      progress.note("a line that stays")
  text = output.getvalue()
  for part in ("agents", "train", "report", "3/20", "reward 0.25", "whole run"):
    assert part in text
  assert "a line that stays" in text


def test_units_done_in_part_are_shown_in_percent():
  clock = Clock()
  progress, output = _progress(["agents"], clock)
  with progress, progress.stage("agents"):
    clock.now += 20
    progress.update(1.2345, 3, "loss 2")
  assert "[1/1] agents: 41 % loss 2 |" in output.getvalue()


@pytest.mark.parametrize(
  ("error", "word"),
  [
    (ValueError("broken"), "FAILED after"),
    (Stopped("stopped", 2), "stopped after"),
    (KeyboardInterrupt(), "stopped after"),
  ],
)
def test_a_stage_that_did_not_end_says_so(error, word):
  progress, output = _progress(["train"], Clock())
  with pytest.raises(type(error)), progress, progress.stage("train"):
    raise error
  assert f"[1/1] train: {word} 0 s" in output.getvalue()


def test_wrong_use_is_named():
  progress, _ = _progress(["train"], Clock())
  with pytest.raises(KeyError, match="no stage 'tarin'"):
    progress.skip("tarin")
  with pytest.raises(RuntimeError, match="needs a running stage"):
    progress.update(1, 2)


@pytest.mark.parametrize(
  ("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00"), (3725, "1:02:05")]
)
def test_durations(seconds, text):
  assert progress_lib._duration(seconds) == text


ON_A_TERMINAL = """
import time
from experiments.progress import Progress

with Progress(["agents", "warm_start", "train", "evaluate"]) as progress:
  progress.skip("agents")
  with progress.stage("warm_start"):
    progress.update(1, 2, "multihop loss 0.123")
  progress.note("a note that is longer than the terminal is wide: " + "w " * 99)
  with progress.stage("train"):
    progress.update(0, 6250)
    for update in range(1, 4):
      message = "a_task_with_a_long_name a_method_with_a_long_name-seed12, "
      progress.update(update, 6250, (message + "long " * 60) * (update < 3))
      time.sleep(0.4)
"""


@pytest.mark.parametrize("columns", WIDTHS)
def test_columns_hold_on_a_real_terminal(columns):
  screen = terminal.run(["-c", ON_A_TERMINAL], columns)
  lines = screen.lines
  # The note stays above the table, and only it was ever wrapped.
  table = lines[next(i for i, x in enumerate(lines) if "agents" in x) :]
  assert all(line.lstrip()[:1] in ("w", "a") for line in screen.wrapped)
  assert lines[0].startswith("a note that is longer")
  # Lines of messages that are no longer there are empty.
  table, below = table[:5], table[5:]
  assert not any(below)
  names = [line.lstrip("✓▶·").split()[0] for line in table]
  assert names == ["agents", "warm_start", "train", "evaluate", "whole"]
  assert sum("warm_start" in line for line in lines) == 1
  starts = {line.index(name) for line, name in zip(table, names, strict=False)}
  assert len(starts) == 1
  ends = {line.index(" s") for line in (table[2], table[4]) if " s" in line}
  assert len(ends) == 1
