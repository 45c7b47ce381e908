"""The stage of a run, its progress and the time that is left.

On a terminal a live table of stages; elsewhere (logs of a CI job, a file) plain
lines at most every `interval_s` seconds.

    with Progress(["agents", "train"]) as progress:
      with progress.stage("agents"):
        progress.update(0, num_steps)
        for step in range(num_steps):
          ...
          progress.update(step + 1, num_steps, f"loss {loss:.2f}")
      progress.skip("train", "finished before")

Time left is measured: the average of the last updates, times what is left. It
is unknown until a unit is finished, and it grows while a unit takes longer than
those before it. Where other work follows in a stage, it is a lower bound (`>`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from rich import cells
from rich import console as rich_console
from rich import control as rich_control
from rich import live as rich_live
from rich import text as rich_text

from experiments.stop_signal import Stopped


class StageState(enum.StrEnum):
  """Where a stage stands."""

  WAITING = "waiting"
  RUNNING = "running"
  DONE = "done"
  SKIPPED = "skipped"
  STOPPED = "stopped"
  FAILED = "failed"


# Mark, mark where the terminal has ASCII alone, style.
_MARKS = {
  StageState.WAITING: ("·", ".", "dim"),
  StageState.RUNNING: ("▶", ">", "bold cyan"),
  StageState.DONE: ("✓", "+", "green"),
  StageState.SKIPPED: ("✓", "+", "dim green"),
  StageState.STOPPED: ("■", "#", "yellow"),
  StageState.FAILED: ("✗", "x", "bold red"),
}
# Updates that the average goes over.
_WINDOW = 16
# A unit that takes longer than those before it: how much longer it will take
# in all than it has taken.
_OVERDUE = 1.25
_REFRESH_S = 0.25
_BAR_WIDTHS = (6, 22)
_MESSAGE_LINES = 3
_UNKNOWN = "left unknown"


class Report(Protocol):
  """How a stage shows what is done of it."""

  def __call__(
    self,
    share: float,
    text: str,
    *,
    earlier: bool = False,
    until: float | None = None,
  ) -> None:
    """Shows it.

    Args:
      share: done, in [0, 1].
      text: on what was done last.
      earlier: as in `Progress.update`.
      until: share of the end of this kind of work; None for the whole.
    """


@dataclasses.dataclass
class _Stage:
  """One row of the display."""

  name: str
  state: StageState = StageState.WAITING
  done: float = 0
  total: float = 0
  until: float | None = None
  message: str = ""
  start_s: float = 0.0
  seconds: float = 0.0
  # (when, units done) of the last updates; the first one is no speed.
  recent: collections.deque[tuple[float, float]] = dataclasses.field(
    default_factory=lambda: collections.deque(maxlen=_WINDOW + 1)
  )

  @property
  def share(self) -> float:
    if self.state in (StageState.DONE, StageState.SKIPPED):
      return 1.0
    return min(self.done / self.total, 1.0) if self.total else 0.0

  @property
  def reached(self) -> str:
    """`3/20`, or `41 %` where units are finished in part."""
    if not self.total:
      return ""
    if float(self.done).is_integer():
      return f"{self.done:g}/{self.total:g}"
    return f"{100 * self.share:.0f} %"

  def advance(self, now: float, done: float, earlier: bool) -> None:
    """Keeps when a unit was finished, unless an earlier run did it."""
    if earlier:
      self.recent.clear()
    if len(self.recent) == 1 and done == self.recent[0][1]:
      # Nothing is done yet: what came before was preparation.
      self.recent.clear()
    if not self.recent or done > self.recent[-1][1]:
      self.recent.append((now, done))

  @property
  def is_bound(self) -> bool:
    """Whether other work, which has not been timed, follows in it."""
    return self.state is StageState.RUNNING and self._end < self.total

  @property
  def _end(self) -> float:
    return self.total if self.until is None else min(self.until, self.total)

  def left(self, now: float) -> float | None:
    """Seconds until it, or its kind of work, is done; None if unknown."""
    if self.state is StageState.WAITING:
      return None
    if self.state is not StageState.RUNNING:
      return 0.0
    if len(self.recent) < 2:
      return None
    first_s, first = self.recent[0]
    last_s, last = self.recent[-1]
    a_unit = (last_s - first_s) / (last - first)
    step = last - self.recent[-2][1]
    since = now - last_s
    if since > a_unit * step:
      a_unit = _OVERDUE * since / step
    return max((self._end - last) * a_unit - since, 0.0)


class Progress:
  """Live display of the stages of a run.

  Args:
    stages: names in the order in which they run.
    console: where to write; standard output by default.
    interval_s: least seconds between two plain lines of one stage.
    clock: seconds that never go back; replaced in tests.
  """

  def __init__(
    self,
    stages: Sequence[str],
    *,
    console: rich_console.Console | None = None,
    interval_s: float = 15.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._stages = {name: _Stage(name) for name in stages}
    if console is None:
      # FORCE_COLOR, which Jupyter and CI set, asks for colours. It makes no
      # terminal of a pipe, where a live table would be written again and again.
      terminal = None if sys.stdout.isatty() else False
      console = rich_console.Console(force_terminal=terminal)
    self._console = console
    self._interval_s = interval_s
    self._clock = clock
    self._start_s = clock()
    self._line_s = -float("inf")
    self._current: _Stage | None = None
    self._display: _Display | None = None

  def __enter__(self) -> Progress:
    self._start_s = self._clock()
    if self._console.is_terminal and not self._console.is_dumb_terminal:
      self._display = _Display(self._console, self.lines)
    return self

  def __exit__(self, *_: object) -> None:
    if self._display is not None:
      self._display.close()
      self._display = None

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Marks a stage as running, and as done or failed when the block ends."""
    stage = self._find(name)
    stage.state, stage.start_s = StageState.RUNNING, self._clock()
    self._current, self._line_s = stage, self._clock()
    self._line(stage, "started")
    state = StageState.FAILED
    try:
      yield
      state = StageState.DONE
    except (Stopped, KeyboardInterrupt):
      state = StageState.STOPPED
      raise
    finally:
      stage.seconds = self._clock() - stage.start_s
      stage.state, self._current = state, None
      word = {
        StageState.DONE: "done in",
        StageState.STOPPED: "stopped after",
        StageState.FAILED: "FAILED after",
      }[state]
      message = f" ({stage.message})" if stage.message else ""
      self._line(stage, f"{word} {_duration(stage.seconds)}{message}")

  def skip(self, name: str, message: str = "finished before") -> None:
    """Marks a stage that a resumed run need not repeat as done."""
    stage = self._find(name)
    stage.state, stage.message = StageState.SKIPPED, _one_line(message)
    self._line(stage, stage.message)

  def update(
    self,
    done: float,
    total: float,
    message: str = "",
    *,
    earlier: bool = False,
    until: float | None = None,
  ) -> None:
    """Reports the progress of the current stage.

    Call it once at the start of a stage. Then preparation does not count as
    speed.

    Args:
      done: units finished, those of earlier runs included.
      total: units of the whole stage.
      message: what the last unit gave, in a few words.
      earlier: the last of these units were finished by an earlier run, and say
        nothing of the speed.
      until: units up to which the work is like that of these units. How long
        the rest takes is not known from their speed. None for all.

    Raises:
      RuntimeError: outside a stage.
    """
    if self._current is None:
      raise RuntimeError(
        "Progress.update needs a running stage: call it inside `with"
        " progress.stage(name):`."
      )
    stage, now = self._current, self._clock()
    # Another kind of work has a speed of its own.
    stage.advance(now, done, earlier or until != stage.until)
    stage.done, stage.total, stage.until = done, total, until
    stage.message = _one_line(message)
    if now - self._line_s >= self._interval_s:
      self._line_s = now
      words = " ".join(filter(None, (stage.reached, stage.message)))
      gone = _duration(now - stage.start_s)
      self._line(stage, f"{words} | {gone} gone, {_stage_left(stage, now)}")

  def note(self, text: str) -> None:
    """Prints a line that stays, above the live display."""
    self._console.print(
      self._printable(text), markup=False, highlight=False, soft_wrap=True
    )

  def time_left(self) -> float | None:
    """Seconds until the last stage is done; None if unknown."""
    now = self._clock()
    left = [
      None if stage.is_bound else stage.left(now)
      for stage in self._stages.values()
    ]
    known = [seconds for seconds in left if seconds is not None]
    return sum(known) if len(known) == len(left) else None

  def lines(self, width: int) -> list[rich_text.Text]:
    """The live display, none of its lines wider than a terminal.

    Names and numbers stay whole. The rest of the width is for the bar; the
    message of the running stage is below, at most `_MESSAGE_LINES` lines.

    Args:
      width: columns of the terminal.
    """
    now = self._clock()
    rows = [self._cells(stage, now) for stage in self._stages.values()]
    gone = _duration(now - self._start_s)
    rows.append(("", "whole run", "", gone, self._whole_left(now)))
    columns = [
      max(map(cells.cell_len, column)) for column in zip(*rows, strict=True)
    ]
    # The last column stays free: some terminals wrap there.
    width -= 1
    gap = 2 if sum(columns) + 2 * (len(columns) - 1) <= width else 1
    fixed = sum(columns) + gap * (len(columns) - 1)
    smallest, largest = _BAR_WIDTHS
    bar = min(width - fixed - gap, largest)
    bar = bar if bar >= smallest else 0
    lines, below = [], []
    for stage, row in zip((*self._stages.values(), None), rows, strict=True):
      line = self._row(stage, row, columns, gap, bar)
      if stage is not None and stage.message:
        if stage.state is StageState.RUNNING:
          below = _wrapped(stage.message, width - 2, self._ellipsis)
        elif line.cell_len + gap + cells.cell_len(stage.message) <= width:
          line.append(" " * gap + stage.message, style="dim")
      line.truncate(width)
      lines.append(line)
    lines += [rich_text.Text(f"  {text}", style="dim") for text in below]
    for line in lines:
      line.plain = self._printable(line.plain)
    return lines

  @property
  def _ascii(self) -> bool:
    return not self._console.encoding.lower().startswith("utf")

  @property
  def _ellipsis(self) -> str:
    return "..." if self._ascii else "…"

  def _printable(self, text: str) -> str:
    """What the terminal's encoding has; `?` for the rest."""
    encoding = self._console.encoding
    return text.encode(encoding, "replace").decode(encoding)

  def _find(self, name: str) -> _Stage:
    if name not in self._stages:
      raise KeyError(
        f"no stage {name!r}: Progress was given {', '.join(self._stages)}."
      )
    return self._stages[name]

  def _whole_left(self, now: float) -> str:
    """Of all stages, or that it is more than the running one's."""
    if self._current is None:
      return ""
    left = self.time_left()
    if left is not None:
      return _left(left)
    running = self._current.left(now)
    return _UNKNOWN if running is None else f"> {_left(running)}"

  def _line(self, stage: _Stage, text: str) -> None:
    """One plain line, where there is no live display."""
    if self._display is None:
      number = list(self._stages).index(stage.name) + 1
      self.note(f"[{number}/{len(self._stages)}] {stage.name}: {text}")

  def _cells(self, stage: _Stage, now: float) -> tuple[str, ...]:
    """Mark, name, what is reached, seconds gone and left."""
    running = stage.state is StageState.RUNNING
    seconds = now - stage.start_s if running else stage.seconds
    return (
      _MARKS[stage.state][self._ascii],
      stage.name,
      stage.reached,
      _duration(seconds) if seconds else "",
      _stage_left(stage, now) if running else "",
    )

  def _row(
    self,
    stage: _Stage | None,
    row: Sequence[str],
    columns: Sequence[int],
    gap: int,
    bar: int,
  ) -> rich_text.Text:
    """One line of the table; the whole run has neither mark nor bar."""
    state = stage.state if stage is not None else StageState.WAITING
    bold = "bold" if stage is None or state is StageState.RUNNING else ""
    texts = [
      rich_text.Text(row[0].ljust(columns[0]), style=_MARKS[state][2]),
      rich_text.Text(row[1].ljust(columns[1]), style=bold),
    ]
    if bar:
      full = round(bar * stage.share) if stage is not None else 0
      empty = bar - full if stage is not None else 0
      mark = "=" if self._ascii else "━"
      texts.append(
        rich_text.Text.assemble(
          (mark * full, "green" if full == bar else "cyan"),
          (("-" if self._ascii else mark) * empty, "bright_black"),
          " " * (bar - full - empty),
        )
      )
    texts += [
      rich_text.Text(text.rjust(width), style="bold" if stage is None else "")
      for text, width in zip(row[2:], columns[2:], strict=True)
    ]
    line = rich_text.Text(" " * gap, no_wrap=True).join(texts)
    line.rstrip()
    return line


class _Display:
  """Keeps the lines of a progress display on a terminal up to date.

  Lines that are printed meanwhile come above it.

  Args:
    console: a terminal.
    lines: the display for a number of columns.
  """

  def __init__(
    self,
    console: rich_console.Console,
    lines: Callable[[int], list[rich_text.Text]],
  ):
    self._console = console
    self._lines = lines
    self._width = console.width
    self._shown: list[rich_text.Text] = []
    self._live = self._start()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._refresh, daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Shows the last state, which stays, and ends the display."""
    self._closed.set()
    self._thread.join()
    self._live.refresh()
    self._live.stop()

  def _start(self) -> rich_live.Live:
    live = rich_live.Live(
      get_renderable=self._render, console=self._console, auto_refresh=False
    )
    live.start()
    return live

  def _refresh(self) -> None:
    while not self._closed.wait(_REFRESH_S):
      if self._console.width < self._width:
        self._shrink()
      self._width = self._console.width
      self._live.refresh()

  def _shrink(self) -> None:
    """Removes a display that the terminal has wrapped, and begins anew."""
    width = self._console.width
    wrapped = sum(max(line.cell_len - 1, 0) // width for line in self._shown)
    self._live.transient = True
    self._live.stop()
    up = (
      (rich_control.ControlType.CURSOR_UP, 1),
      (rich_control.ControlType.ERASE_IN_LINE, 2),
    )
    self._console.control(rich_control.Control(*up * wrapped))
    self._live = self._start()

  def _render(self) -> rich_console.Group:
    self._shown = self._lines(self._console.width)
    return rich_console.Group(*self._shown)


def _wrapped(text: str, width: int, ellipsis: str) -> list[str]:
  """Whole words in at most `_MESSAGE_LINES` lines; what does not fit goes.

  A word is cut where it alone is wider than a line.
  """
  lines: list[str] = []
  for word in text.split():
    if lines and cells.cell_len(f"{lines[-1]} {word}") <= width:
      lines[-1] += f" {word}"
    elif len(lines) < _MESSAGE_LINES:
      lines.append(_cut(word, width, ellipsis))
    else:
      while lines[-1] and cells.cell_len(f"{lines[-1]} {ellipsis}") > width:
        lines[-1] = lines[-1].rpartition(" ")[0]
      lines[-1] = f"{lines[-1]} {ellipsis}"
      break
  return lines


def _cut(word: str, width: int, ellipsis: str) -> str:
  if cells.cell_len(word) <= width:
    return word
  room = max(width - cells.cell_len(ellipsis), 0)
  return cells.set_cell_size(word, room).rstrip() + ellipsis


def _one_line(text: str) -> str:
  """Without line breaks and control characters, which move the cursor."""
  return "".join(c for c in " ".join(text.split()) if c.isprintable())


def _left(seconds: float | None) -> str:
  return _UNKNOWN if seconds is None else f"{_duration(seconds)} left"


def _stage_left(stage: _Stage, now: float) -> str:
  left = stage.left(now)
  return (
    f"> {_left(left)}" if stage.is_bound and left is not None else _left(left)
  )


def _duration(seconds: float) -> str:
  """`45 s`, `3:07` (minutes) or `2:03:00` (hours)."""
  whole = max(round(seconds), 0)
  if whole < 60:
    return f"{whole} s"
  minutes, second = divmod(whole, 60)
  hours, minute = divmod(minutes, 60)
  return (
    f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
  )
