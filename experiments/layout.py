"""Tables and sentences that keep to the columns of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import cells

_GAP = "  "
_LEAST_CELL = 12


def table(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
  """Columns of equal width; words to the left, numbers to the right.

  Args:
    rows: of text, the header first.
    width: columns of the terminal. In a table that is wider, the widest words
      are cut in their middle; None cuts nothing.

  Returns:
    A line a row.
  """
  words = word_columns(rows)
  if width is not None:
    rows = _narrowed(rows, words, width)
  widths = _widths(rows)
  return "\n".join(
    _GAP.join(
      _padded(cell, column, left=i < words)
      for i, (cell, column) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def fits(rows: Sequence[Sequence[str]], width: int) -> bool:
  """Whether a table is no wider than a terminal."""
  return _total(_widths(rows)) <= width


def word_columns(rows: Sequence[Sequence[str]]) -> int:
  """Columns of words at the left, which the header tells."""
  return 2 if rows[0][1] == "method" else 1


def wrapped(sentences: Sequence[str], width: int) -> str:
  """Sentences, each in lines of whole words.

  A word that is wider than a line, such as a path, stays whole.

  Args:
    sentences: without line breaks.
    width: columns of the terminal.
  """
  return "\n".join(line for text in sentences for line in _lines(text, width))


def shortened(text: str, width: int) -> str:
  """A text with its middle left out, so that both ends tell it apart.

  Args:
    text: a name.
    width: columns that it may take, at least 1.
  """
  if cells.cell_len(text) <= width:
    return text
  tail = (width - 1) // 2
  end = text
  while cells.cell_len(end) > tail:
    end = end[1:]
  return cells.set_cell_size(text, width - 1 - tail).rstrip() + "…" + end


def _lines(text: str, width: int) -> list[str]:
  lines = [""]
  for word in text.split(" "):
    longer = f"{lines[-1]} {word}" if lines[-1] else word
    if lines[-1] and cells.cell_len(longer) > width:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines


def _narrowed(
  rows: Sequence[Sequence[str]], words: int, width: int
) -> list[list[str]]:
  """Rows whose words are cut until they fit, the widest column first."""
  widths = _widths(rows)
  while _total(widths) > width:
    widest = max(range(words), key=lambda i: widths[i])
    if widths[widest] <= _LEAST_CELL:
      break
    widths[widest] -= 1
  return [
    [
      shortened(cell, column) if i < words else cell
      for i, (cell, column) in enumerate(zip(row, widths, strict=True))
    ]
    for row in rows
  ]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
  return [
    max(map(cells.cell_len, column)) for column in zip(*rows, strict=True)
  ]


def _total(widths: Sequence[int]) -> int:
  return sum(widths) + len(_GAP) * (len(widths) - 1)


def _padded(cell: str, width: int, *, left: bool) -> str:
  room = " " * (width - cells.cell_len(cell))
  return cell + room if left else room + cell
