"""Reading a JSONL file on from where it was left, while a run appends to it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

_TAIL_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Place:
  """How far a file was read.

  Attributes:
    position: bytes of the whole lines that were read.
    tail: the last of these bytes, which tell whether the file is still the
      one that was read. A run that is resumed cuts its logs.
  """

  position: int = 0
  tail: bytes = b""


START = Place()


def place_behind(start: int, line: bytes) -> Place:
  """The place behind a line that begins at `start`."""
  return Place(start + len(line), line[-_TAIL_BYTES:])


def is_continued(path: pathlib.Path, place: Place) -> bool:
  """Whether a file still begins with what was read of it.

  Args:
    path: file that exists.
    place: how far it was read.
  """
  with path.open("rb") as file:
    file.seek(place.position - len(place.tail))
    return file.read(len(place.tail)) == place.tail


def lines_from(
  path: pathlib.Path, place: Place
) -> Iterator[tuple[int, bytes, Place]]:
  """The whole lines behind a place; one that is being written is left out.

  Args:
    path: file that exists.
    place: how far it was read.

  Yields:
    Offset in bytes of the line, the line, and the place behind it.
  """
  position = place.position
  with path.open("rb") as file:
    file.seek(position)
    for line in file:
      if not line.endswith(b"\n"):
        return
      place = place_behind(position, line)
      yield position, line, place
      position = place.position
