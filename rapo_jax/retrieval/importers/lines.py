"""JSON lines of foreign files: read one by one, and none is lost in silence."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from rapo_jax import text_files
from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.agent_trajectory import AgentTrajectory

OnError = Literal["stop", "skip"]

_MAX_PROBLEMS = 20
_SHOWN_BYTES = 80


@dataclasses.dataclass(frozen=True)
class Problem:
  """A line that could not be used.

  Attributes:
    path: of the file.
    line: its number, from 1.
    reason: what is wrong with it.
    start: its first bytes, as text.
  """

  path: str
  line: int
  reason: str
  start: str

  def __str__(self) -> str:
    return f"{self.path}:{self.line}: {self.reason}"


@dataclasses.dataclass
class ImportReport:
  """What became of every line of the files that were read.

  Attributes:
    num_lines: lines read, blank ones included.
    num_used: lines whose content is in a trajectory.
    num_blank: lines with white space alone.
    num_number_lists: lines that hold a list of numbers alone.
    num_broken: lines left out because they could not be read.
    num_trajectories: trajectories given on.
    num_steps: steps of these.
    problems: the first of the broken lines.
  """

  num_lines: int = 0
  num_used: int = 0
  num_blank: int = 0
  num_number_lists: int = 0
  num_broken: int = 0
  num_trajectories: int = 0
  num_steps: int = 0
  problems: list[Problem] = dataclasses.field(default_factory=list)

  def broken(self, problem: Problem, on_error: OnError) -> None:
    """Counts a broken line.

    Raises:
      InputError: `on_error` is "stop". The message names the remedy.
    """
    if on_error == "stop":
      raise InputError(
        f"{problem}. It begins {problem.start!a}. Fix or remove the line, or "
        "import with --on_error skip, which leaves such lines out and counts "
        "them."
      )
    self.num_broken += 1
    if len(self.problems) < _MAX_PROBLEMS:
      self.problems.append(problem)


@dataclasses.dataclass(frozen=True)
class Line:
  """The object of one line.

  Attributes:
    number: of the line, from 1.
    content: the object.
    num_bytes: of the file, up to the end of the line.
  """

  number: int
  content: dict[str, Any]
  num_bytes: int


class JsonLines:
  """Reads a JSONL file object by object, one line in memory at a time.

  Lists of numbers between the objects, as the authors' code writes them, are
  counted and passed over.

  Args:
    path: the file.
    report: counts the lines.
    on_error: "stop" raises at the first broken line; "skip" counts it.
  """

  def __init__(
    self, path: pathlib.Path, report: ImportReport, on_error: OnError
  ):
    self._path = path
    self.report = report
    self._on_error = on_error

  def __iter__(self) -> Iterator[Line]:
    """Reads the objects.

    Raises:
      InputError: a broken line is to stop the import, or the file is not text.
    """
    at = 0
    for number, raw in text_files.raw_lines(self._path):
      at += len(raw)
      self.report.num_lines += 1
      if not raw.strip():
        self.report.num_blank += 1
        continue
      try:
        content = text_files.parse_json(raw)
      except text_files.TextError as error:
        self.broken(number, str(error), raw)
        continue
      if isinstance(content, dict):
        yield Line(number, content, at)
      elif _is_number_list(content):
        self.report.num_number_lists += 1
      else:
        kind = type(content).__name__
        self.broken(number, f"expected an object, got {kind}", raw)

  def broken(self, number: int, reason: str, start: bytes | str) -> None:
    """Counts a line that holds an object, but not one that can be used."""
    if isinstance(start, bytes):
      start = start[:_SHOWN_BYTES].decode("utf-8", "replace")
    problem = Problem(str(self._path), number, reason, start[:_SHOWN_BYTES])
    self.report.broken(problem, self._on_error)


def one_a_line(
  lines: JsonLines, make: Callable[[Line], AgentTrajectory]
) -> Iterator[tuple[AgentTrajectory, int]]:
  """Reads a file whose lines are a trajectory each.

  Args:
    lines: of the file.
    make: what a line holds; raises ValueError, with the reason, for one that
      cannot be used.

  Yields:
    Each trajectory, and the bytes of the file read until then.

  Raises:
    InputError: for a broken line, named by its number, if it is to stop.
  """
  for line in lines:
    try:
      trajectory = make(line)
    except ValueError as error:
      lines.broken(line.number, str(error), str(line.content))
      continue
    lines.report.num_used += 1
    lines.report.num_trajectories += 1
    lines.report.num_steps += len(trajectory.steps)
    yield trajectory, line.num_bytes


def _is_number_list(content: Any) -> bool:
  return isinstance(content, list) and all(
    isinstance(item, int | float) for item in content
  )
