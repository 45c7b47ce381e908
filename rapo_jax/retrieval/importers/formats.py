"""Which importer reads a file."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Literal

from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.agent_trajectory import AgentTrajectory
from rapo_jax.retrieval.importers.authors import read_authors
from rapo_jax.retrieval.importers.lines import ImportReport, JsonLines, OnError
from rapo_jax.retrieval.importers.logged import read_logged
from rapo_jax.retrieval.importers.messages import Reward, read_messages

Format = Literal["authors", "messages", "trajectories"]
_FORMATS: tuple[tuple[Format, frozenset[str]], ...] = (
  ("authors", frozenset({"key", "value"})),
  ("trajectories", frozenset({"segments"})),
  ("messages", frozenset({"messages"})),
  ("messages", frozenset({"conversations"})),
)
_MAX_LINES = 100


def detect_format(path: pathlib.Path) -> Format:
  """Tells a file's format from its first line that holds an object.

  Raises:
    InputError: no format is known by it.
  """
  report = ImportReport()
  for line in JsonLines(path, report, "skip"):
    for name, fields in _FORMATS:
      if fields <= line.content.keys():
        return name
    if report.num_lines >= _MAX_LINES:
      break
  known = "; ".join(
    f"{name} by {' and '.join(sorted(fields))}" for name, fields in _FORMATS
  )
  first = next(iter(report.problems), None)
  broken = "" if first is None else f" The first broken line is {first}."
  raise InputError(
    f"{path} is in no format that is known ({known}): name its format "
    f"(--format), or convert it.{broken}"
  )


def read_trajectories(
  path: pathlib.Path,
  source: str,
  *,
  report: ImportReport,
  file_format: Format | None = None,
  on_error: OnError = "stop",
  reward: Reward | None = None,
) -> Iterator[tuple[AgentTrajectory, int]]:
  """Reads the trajectories of a file, whichever of the formats it has.

  Args:
    path: the JSONL file.
    source: name of the agent that wrote the trajectories.
    report: counts what is read.
    file_format: its format; None to tell it from the file.
    on_error: "stop" raises at the first broken line; "skip" leaves it out.
    reward: of conversations that have none; see `read_messages`.

  Yields:
    Each trajectory, and the bytes of the file read until then.

  Raises:
    InputError: the format is not known, or a broken line is to stop.
    MissingInputError: there is no such file.
  """
  file_format = file_format or detect_format(path)
  if file_format == "messages":
    yield from read_messages(
      path, source, report=report, on_error=on_error, reward=reward
    )
  else:
    read = read_authors if file_format == "authors" else read_logged
    yield from read(path, source, report=report, on_error=on_error)
