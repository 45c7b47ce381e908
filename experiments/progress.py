"""What a run is doing, what it has reached and how long it still takes.

On a terminal a live table of stages; elsewhere (logs of a CI job, a file) plain
lines at most every `interval_s` seconds.

    with Progress([("agents", 240), ("train", 300)]) as progress:
      with progress.stage("agents"):
        for step in range(num_steps):
          ...
          progress.update(step + 1, num_steps, f"loss {loss:.2f}")
      progress.skip("train", "finished before")

Time left blends the estimate that a stage comes with and the rate measured so
far, and scales the stages to come by how wrong the estimates were until now.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import time
from collections.abc import Callable, Iterator, Sequence

from rich import console as rich_console
from rich import live as rich_live
from rich import progress_bar as rich_bar
from rich import table as rich_table
from rich import text as rich_text


class StageState(enum.StrEnum):
  """Where a stage stands."""

  WAITING = "waiting"
  RUNNING = "running"
  DONE = "done"
  SKIPPED = "skipped"
  FAILED = "failed"


_MARKS = {
  StageState.WAITING: ("·", "dim"),
  StageState.RUNNING: ("▶", "bold cyan"),
  StageState.DONE: ("✓", "green"),
  StageState.SKIPPED: ("✓", "dim green"),
  StageState.FAILED: ("✗", "bold red"),
}
# Measured rate counts fully once this share of the stage has been seen.
_TRUSTED_SHARE = 0.3


@dataclasses.dataclass
class _Stage:
  """One row of the display."""

  name: str
  estimate_s: float
  state: StageState = StageState.WAITING
  done: float = 0
  total: float = 0
  message: str = ""
  start_s: float = 0.0
  seconds: float = 0.0
  # First update in this process: a resumed stage does not start at 0.
  first_done: float | None = None
  first_s: float = 0.0

  @property
  def share(self) -> float:
    return min(self.done / self.total, 1.0) if self.total else 0.0

  @property
  def reached(self) -> str:
    """`3/20`, or `41 %` where units are finished in part."""
    if not self.total:
      return ""
    if float(self.done).is_integer():
      return f"{self.done:g}/{self.total:g}"
    return f"{100 * self.share:.0f} %"


class Progress:
  """Live display of the stages of a run.

  Args:
    stages: (name, estimated seconds) in the order in which they run.
    console: where to write; standard output by default.
    interval_s: least seconds between two plain lines of one stage.
    clock: seconds that never go back; replaced in tests.
  """

  def __init__(
    self,
    stages: Sequence[tuple[str, float]],
    *,
    console: rich_console.Console | None = None,
    interval_s: float = 15.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._stages = {name: _Stage(name, float(s)) for name, s in stages}
    self._console = console or rich_console.Console()
    self._interval_s = interval_s
    self._clock = clock
    self._start_s = clock()
    self._line_s = -float("inf")
    self._current: _Stage | None = None
    self._live: rich_live.Live | None = None

  def __enter__(self) -> Progress:
    self._start_s = self._clock()
    if self._console.is_terminal and not self._console.is_dumb_terminal:
      self._live = rich_live.Live(
        get_renderable=self._render,
        console=self._console,
        refresh_per_second=4,
      )
      self._live.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._live is not None:
      self._live.stop()
      self._live = None

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Marks a stage as running, and as done or failed when the block ends."""
    stage = self._find(name)
    stage.state, stage.start_s = StageState.RUNNING, self._clock()
    self._current, self._line_s = stage, self._clock()
    self._line(stage, f"started, about {_duration(self._stage_left(stage))}")
    state = StageState.FAILED
    try:
      yield
      state = StageState.DONE
    finally:
      stage.state, stage.seconds = state, self._clock() - stage.start_s
      self._current = None
      word = "done in" if state is StageState.DONE else "FAILED after"
      message = f" ({stage.message})" if stage.message else ""
      self._line(stage, f"{word} {_duration(stage.seconds)}{message}")

  def skip(self, name: str, message: str = "finished before") -> None:
    """Marks a stage that a resumed run need not repeat as done."""
    stage = self._find(name)
    stage.state, stage.message = StageState.SKIPPED, message
    self._line(stage, message)

  def update(self, done: float, total: float, message: str = "") -> None:
    """Says what the current stage has reached.

    Call it once at the start of a stage that resumes, so that what was there
    before does not count as speed.

    Args:
      done: units finished, those of earlier runs included.
      total: units of the whole stage.
      message: what the last unit gave, in a few words.

    Raises:
      RuntimeError: outside a stage.
    """
    if self._current is None:
      raise RuntimeError(
        "Progress.update needs a running stage: call it inside `with"
        " progress.stage(name):`."
      )
    stage, now = self._current, self._clock()
    if stage.first_done is None:
      stage.first_done, stage.first_s = done, now
    stage.done, stage.total, stage.message = done, total, message
    if now - self._line_s >= self._interval_s:
      self._line_s = now
      self._line(
        stage,
        f"{stage.reached} {message} | {_duration(now - stage.start_s)}"
        f" gone, {_duration(self._stage_left(stage))} left;"
        f" whole run {_duration(self.time_left())} left",
      )

  def note(self, text: str) -> None:
    """Prints a line that stays, above the live display."""
    self._console.print(text, markup=False, highlight=False)

  def time_left(self) -> float:
    """Estimated seconds until the last stage is done."""
    return sum(self._stage_left(stage) for stage in self._stages.values())

  def _find(self, name: str) -> _Stage:
    if name not in self._stages:
      raise KeyError(
        f"no stage {name!r}: Progress was given {', '.join(self._stages)}."
      )
    return self._stages[name]

  def _slowness(self) -> float:
    """Seconds taken per second estimated, over the stages that have run."""
    ran = [s for s in self._stages.values() if s.state is StageState.DONE]
    estimated = sum(stage.estimate_s for stage in ran)
    if estimated <= 0:
      return 1.0
    taken = sum(stage.seconds for stage in ran)
    return min(max(taken / estimated, 0.2), 5.0)

  def _stage_left(self, stage: _Stage) -> float:
    estimate = stage.estimate_s * self._slowness()
    if stage.state is StageState.WAITING:
      return estimate
    if stage.state is not StageState.RUNNING:
      return 0.0
    now = self._clock()
    gone = now - stage.start_s
    if not stage.total:
      # Over its estimate and silent: it will take a little longer yet.
      return max(estimate - gone, 0.1 * gone)
    prior = estimate * (1 - stage.share)
    first = stage.first_done or 0
    advanced = stage.done - first
    seconds = now - stage.first_s
    if advanced <= 0 or seconds <= 0:
      return prior
    measured = (stage.total - stage.done) * seconds / advanced
    trust = min(advanced / stage.total / _TRUSTED_SHARE, 1.0)
    return max(trust * measured + (1 - trust) * prior, 0.0)

  def _line(self, stage: _Stage, text: str) -> None:
    """One plain line, where there is no live display."""
    if self._live is None:
      number = list(self._stages).index(stage.name) + 1
      self._console.print(
        f"[{number}/{len(self._stages)}] {stage.name}: {text}",
        markup=False,
        highlight=False,
        soft_wrap=True,
      )

  def _render(self) -> rich_table.Table:
    table = rich_table.Table.grid(padding=(0, 2))
    for justify in ("left", "left", "left", "right", "right", "right"):
      table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for stage in self._stages.values():
      table.add_row(*self._row(stage))
    gone = _duration(self._clock() - self._start_s)
    table.add_row(
      "",
      rich_text.Text("whole run", style="bold"),
      "",
      "",
      rich_text.Text(gone, style="bold"),
      rich_text.Text(f"{_duration(self.time_left())} left", style="bold"),
      "",
    )
    return table

  def _row(self, stage: _Stage) -> tuple[rich_console.RenderableType, ...]:
    mark, style = _MARKS[stage.state]
    running = stage.state is StageState.RUNNING
    finished = stage.state in (StageState.DONE, StageState.SKIPPED)
    seconds = self._clock() - stage.start_s if running else stage.seconds
    left = self._stage_left(stage)
    return (
      rich_text.Text(mark, style=style),
      rich_text.Text(stage.name, style="bold" if running else ""),
      rich_bar.ProgressBar(
        total=1.0,
        completed=1.0 if finished else stage.share,
        width=22,
        pulse=running and not stage.total,
        animation_time=self._clock(),
      ),
      stage.reached,
      _duration(seconds) if seconds else "",
      f"{_duration(left)} left" if left else "",
      rich_text.Text(stage.message, style="dim"),
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
