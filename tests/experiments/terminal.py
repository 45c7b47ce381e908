"""A terminal as programs see it, and what it shows of their output.

A program that runs on a pseudo-terminal asks for its size and moves the cursor.
`Screen` knows the few movements that rich uses, and wraps lines as they do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence

from rich import cells

_TOKENS = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n])", re.S)
_ROWS = 50


class Screen:
  """Lines of a terminal that is as high as it has to be.

  Args:
    columns: its width.
  """

  def __init__(self, columns: int):
    self._columns = columns
    self._cells: list[list[str]] = [[]]
    self._row = self._column = 0
    self.wrapped: list[str] = []

  @property
  def lines(self) -> list[str]:
    """Text of the lines, without trailing spaces."""
    return ["".join(row).rstrip() for row in self._cells]

  def feed(self, text: str) -> None:
    """Takes output of a program.

    Raises:
      ValueError: it holds a movement that is not known here.
    """
    end = 0
    for token in _TOKENS.finditer(text):
      if token.start() != end:
        raise ValueError(f"unknown output {text[end : token.start()]!r}")
      end = token.end()
      numbers, command, control, character = token.groups()
      if command is not None:
        self._command(command, numbers)
      elif control == "\r":
        self._column = 0
      elif control == "\n":
        self._down()
      else:
        self._put(character)

  def _down(self) -> None:
    self._row += 1
    while len(self._cells) <= self._row:
      self._cells.append([])

  def _put(self, character: str) -> None:
    width = cells.cell_len(character)
    if self._column + width > self._columns:
      self.wrapped.append("".join(self._cells[self._row]))
      self._down()
      self._column = 0
    row = self._cells[self._row]
    row += [" "] * (self._column + width - len(row))
    # A wide character leaves its second cell empty.
    row[self._column : self._column + width] = [character, *[""] * (width - 1)]
    self._column += width

  def _command(self, command: str, numbers: str) -> None:
    count = int(numbers) if numbers.isdigit() else 1
    if command == "A":
      self._row = max(self._row - count, 0)
    elif command == "K" and numbers == "2":
      self._cells[self._row] = []
    elif command == "K":
      del self._cells[self._row][self._column :]
    # Colours, and whether the cursor is shown, change no text.
    elif command not in "mhl":
      raise ValueError(f"unknown command {numbers}{command}")


def run(
  arguments: Sequence[str],
  columns: int,
  environment: Mapping[str, str] | None = None,
) -> Screen:
  """Runs Python on a pseudo-terminal; what is on it in the end.

  Args:
    arguments: of the interpreter.
    columns: width of the terminal.
    environment: beside that of this process.

  Raises:
    AssertionError: the program ends with another status than 0.
  """
  ours, theirs = pty.openpty()
  size = struct.pack("HHHH", _ROWS, columns, 0, 0)
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
  own = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
  own |= {"TERM": "xterm-256color", "PYTHONUTF8": "1", **(environment or {})}
  with subprocess.Popen(
    [sys.executable, *arguments],
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
    env=own,
  ) as process:
    os.close(theirs)
    output = b""
    # Linux says so where the other end is closed.
    with contextlib.suppress(OSError):
      while chunk := os.read(ours, 65_536):
        output += chunk
  os.close(ours)
  text = output.decode()
  assert process.returncode == 0, text
  screen = Screen(columns)
  screen.feed(text)
  return screen
