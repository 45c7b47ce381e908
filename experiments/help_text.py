"""How the programs write their help: within the columns of the terminal."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence

from experiments import layout

_WIDEST = 80
_DEEPER = "    "
# Words of a command; what is in quotation marks is one.
_WORDS = re.compile(r"""(?:"[^"]*"|\S)+""")
# Parts of a usage: what is in brackets, an option with what it takes, a word.
_PARTS = re.compile(r"\(.*?\)+(?=\s|$)|\[.*?\]+(?=\s|$)|-\S+(?: [A-Z]\S*)?|\S+")
_COMMANDS = ("python ", "rapo ")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
  """Wraps the paragraphs of a description, and breaks its commands.

  Lines that are indented stay as they are, but for commands that are wider than
  the terminal: they go on behind a backslash, so that a shell still takes them.
  """

  def _format_usage(
    self,
    usage: str | None,
    actions: Iterable[argparse.Action],
    groups: Iterable[argparse._MutuallyExclusiveGroup],
    prefix: str | None,
  ) -> str:
    text = super()._format_usage(usage, actions, groups, prefix)
    if all(len(line) <= self._width for line in text.split("\n")):
      return text
    # Behind a long name of the program there is too little room.
    head, _, rest = " ".join(text.split()).partition(" [-h]")
    rows = [head]
    for part in _PARTS.findall(f"[-h]{rest}"):
      if len(rows[-1]) + 1 + len(part) <= self._width:
        rows[-1] += f" {part}"
      else:
        rows.append(_DEEPER + part)
    return "\n".join(rows) + "\n\n"

  def _fill_text(self, text: str, width: int, indent: str) -> str:
    width = min(width, _WIDEST) - len(indent)
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
      lines += [*_block(block.split("\n"), width), ""]
    return "\n".join(f"{indent}{line}".rstrip() for line in lines[:-1])


def _block(lines: Sequence[str], width: int) -> Iterator[str]:
  """A paragraph, or examples, in lines that are no wider."""
  if not any(line.startswith(" ") for line in lines):
    yield from layout.wrapped([" ".join(lines)], width).split("\n")
    return
  within = False
  for line in lines:
    deeper = "" if within else _DEEPER
    within = within or line.strip().startswith(_COMMANDS)
    if within and len(line) > width:
      yield from _broken(line, width, deeper)
    else:
      yield line
    within = within and line.endswith("\\")


def _broken(line: str, width: int, deeper: str) -> Iterator[str]:
  """A command in several lines; options stay with what they take."""
  words = _WORDS.findall(line)
  goes_on = words[-1] == "\\"
  parts: list[str] = []
  for word in words[:-1] if goes_on else words:
    if parts and not word.startswith("-"):
      parts[-1] += f" {word}"
    else:
      parts.append(word)
  indent = line[: len(line) - len(line.lstrip())]
  # An indent, a backslash and the space before it.
  room = width - len(indent) - len(deeper) - 2
  parts = [
    piece
    for part in parts
    for piece in ([part] if len(part) <= room else _WORDS.findall(part))
  ]
  rows = [parts[0]]
  for part in parts[1:]:
    if len(rows[-1]) + 1 + len(part) <= room:
      rows[-1] += f" {part}"
    else:
      rows.append(part)
  for number, row in enumerate(rows):
    last = number == len(rows) - 1 and not goes_on
    start = indent + deeper if number else indent
    yield start + row + ("" if last else " \\")
