"""Finds the program in what a policy wrote as the argument of a python tool.

A program that Python reads as it stands is never changed. The server of
programs loads this behind the wall, so it needs the standard library alone.
"""

import ast
import re
import warnings
from typing import NamedTuple

EMPTY = "The program is empty."
# Expressions try nothing twice: time grows with the length of an argument, and
# not with its square.
# White space, and characters that nobody sees.
_FRONT = re.compile(r"[\s\ufeff\u200b-\u200f\u2060]*+")
_FENCE = re.compile(r"[^\S\n]*+(`{3,}+|~{3,}+)([^\n]*+)")
_PROMPTS = (">>>", "...")
_NAME = "<argument>"


class _Block(NamedTuple):
  """What stands in a fence, and the language that the fence names."""

  language: str
  lines: list[str]


def ignore_warnings() -> None:
  """Hides what Python warns of in a text that is only looked at.

  The program itself may warn again.
  """
  warnings.filterwarnings("ignore", module=_NAME)


def read(argument: str) -> str:
  """The program in an argument; an empty text where there is none.

  The program may be indented as a whole, or begin beside its tag and go on
  indented. It may stand in fences of Markdown, or after the prompts of an
  interactive session. Fences of one language make one program. Where nothing is
  Python, the text comes back whose error says most.
  """
  argument = argument.replace("\r\n", "\n").replace("\r", "\n").rstrip()
  text = _without_front(argument)
  begins = _FENCE.match(text) is not None
  beside = argument.endswith(text) and "\n" not in argument[: -len(text)]
  program = None if begins else _repaired(text, beside_tag=beside)
  if program is not None:
    return program
  fenced = _fenced(text)
  attempts = [*fenced, [text]] if begins else fenced
  for parts in attempts:
    programs = [_repaired(part) for part in parts]
    if None not in programs:
      return "\n".join(program or "" for program in programs)
  if begins and not fenced:
    return ""
  return "\n".join(_broken(part) for part in (fenced or [[text]])[0])


def _without_front(text: str) -> str:
  """A text without blank lines before it; its first line stays indented."""
  front = _FRONT.match(text)
  assert front is not None
  margin = front[0][len(front[0].rstrip(" \t")) :]
  return margin + text[front.end() :]


def _fenced(text: str) -> list[list[str]]:
  """Programs that fences may hold, the likeliest first; each in parts."""
  before, blocks, closed = _blocks(text)
  if any(before.count(quotes) % 2 for quotes in ('"""', "'''")):
    return []  # The fence stands in a string.
  parts: dict[str, list[str]] = {}
  for language, lines in blocks:
    part = _without_front("\n".join(lines).rstrip())
    if part:
      parts.setdefault(language, []).append(part)
  found = list(parts.values())
  # A closing fence may stand alone.
  if not closed and not blocks[0].language and before:
    found.append([before])
  return found


def _blocks(text: str) -> tuple[str, list[_Block], bool]:
  """The text before the first fence, all fences, and whether all are closed."""
  before: list[str] = []
  blocks: list[_Block] = []
  fence = ""
  for line in text.split("\n"):
    found = _FENCE.match(line)
    info = found[2].strip() if found else ""
    if fence and found and found[1].startswith(fence) and not info:
      fence = ""
    elif fence:
      blocks[-1].lines.append(line)
    elif found and info.endswith(found[1]):
      blocks.append(_one_line(info.removesuffix(found[1])))
    elif found and not ("`" in info and "`" in found[1]):
      fence = found[1]
      blocks.append(_Block(_language(info), []))
    elif not blocks:
      before.append(line)
  if fence and blocks[-1].lines:
    last = blocks[-1].lines[-1]
    blocks[-1].lines[-1] = last.removesuffix(fence)
    if last.endswith(fence):
      fence = ""
  return "\n".join(before).rstrip(), blocks, not fence


def _one_line(content: str) -> _Block:
  """A fence on one line, which may name its language before the program."""
  word, _, rest = content.strip().partition(" ")
  if rest and _error(content.strip()):
    return _Block(_language(word), [rest])
  return _Block("", [content])


def _language(info: str) -> str:
  """The language that a fence names: `python` of `{.python title="a.py"}`."""
  word = re.match(r"[{.\s]*+([^\s{}]*+)", info)
  assert word is not None
  return word[1].lower()


def _repaired(text: str, *, beside_tag: bool = False) -> str | None:
  """A text as Python that means the same; None where there is no such thing.

  Args:
    text: it.
    beside_tag: whether its first line stands beside the tag, and its own
      indentation means nothing.
  """
  if text.lstrip().startswith(_PROMPTS[0]):
    text = _without_prompts(text)
  error = _error(text)
  if error is None:
    return text
  margin = _margin(text, error)
  program = text.lstrip(" \t")
  if beside_tag and program == text:
    return _dedented(margin + program, margin)
  even = _dedented(text, margin)
  if even is not None or not beside_tag:
    return even
  error = _error(program)
  if error is None:
    return program
  margin = _margin(program, error)
  return _dedented(margin + program, margin)


def _margin(text: str, error: Exception) -> str:
  """The indentation at which Python stumbled; empty where it was not that."""
  if not isinstance(error, SyntaxError) or error.msg != "unexpected indent":
    return ""
  line = text.split("\n")[(error.lineno or 1) - 1]
  return line[: len(line) - len(line.lstrip(" \t"))]


def _without_prompts(text: str) -> str:
  """The lines of an interactive session that were typed."""
  lines = [line.lstrip() for line in text.split("\n")]
  typed = [line[3:] for line in lines if line.startswith(_PROMPTS)]
  return "\n".join(line.removeprefix(" ") for line in typed)


def _dedented(text: str, margin: str) -> str | None:
  """A program without its margin; None if its statements do not all have it.

  What Python lets begin anywhere may do so: comments, lines in parentheses. The
  lines within a string stay as they are.
  """
  if not margin:
    return None
  tree = _parse(f"if True:\n{text}\n")
  if isinstance(tree, Exception):
    return None
  block = tree.body[0]
  if len(tree.body) > 1 or not isinstance(block, ast.If) or block.orelse:
    return None  # Some of it stands before the margin.
  kept: set[int] = set()
  for node in ast.walk(block):
    if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno:
      # The text's lines are numbered from 2 on here.
      kept.update(range(node.lineno, node.end_lineno))
  program = "\n".join(
    line if number in kept else line.removeprefix(margin)
    for number, line in enumerate(text.split("\n"), 1)
  )
  return None if _error(program) else program


def _broken(text: str) -> str:
  """A text that is no Python, such that its error says most."""
  beside = text.lstrip(" \t")
  margin = text[: len(text) - len(beside)]
  lines = [line.removeprefix(margin) for line in text.split("\n")]
  # Where it is Python without its margin, that would be another program.
  tried = ("\n".join(lines), beside)
  return next((program for program in tried if _error(program)), text)


def _error(program: str) -> Exception | None:
  """Why Python does not read a program."""
  tree = _parse(program)
  return tree if isinstance(tree, Exception) else None


def _parse(program: str) -> ast.Module | Exception:
  """A program's tree, or why it has none."""
  try:
    return ast.parse(program, _NAME)
  except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
    return error
