"""Text files that other programs wrote: JSON, JSON lines and plain lines.

Such a file may have a byte order mark or another encoding than UTF-8. It may
also have values that only Python's parser accepts. The readers here accept text
and finite numbers. An error names the path, the line and the reason.
"""

from __future__ import annotations

import codecs
import collections
import json
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from rapo_jax.errors import InputError, accessing

MAX_DEPTH = 100
"""Lists and objects inside one another. Python's parser and writer both stop
at a depth that depends on their caller; this one does not."""

_REMEDY = "Fix or remove the line."
_UTF8 = "Save the file as UTF-8."
_FIRST_BYTES: tuple[tuple[bytes, str, str], ...] = (
  (b"\x1f\x8b", "compressed (gzip)", "Unpack it: `gunzip FILE`."),
  (b"PK\x03\x04", "an archive (zip)", "Unpack it: `unzip FILE`."),
  (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "Unpack it: `zstd -d FILE`."),
  (b"\xfd7zXZ\x00", "compressed (xz)", "Unpack it: `xz -d FILE`."),
  (b"BZh", "compressed (bzip2)", "Unpack it: `bzip2 -d FILE`."),
  (b"PAR1", "a Parquet file", "Name it .parquet, or convert it to text."),
  (codecs.BOM_UTF32_LE, "UTF-32", _UTF8),
  (codecs.BOM_UTF16_LE, "UTF-16", _UTF8),
  (codecs.BOM_UTF16_BE, "UTF-16", _UTF8),
)


class TextError(InputError):
  """A text that cannot be used; its message is the reason."""


class SyntaxTextError(TextError):
  """A text that is not JSON at all."""


def decode(raw: bytes) -> str:
  """Decodes UTF-8; a byte order mark in front is left out.

  Raises:
    TextError: it is not UTF-8, or holds NUL bytes as UTF-16 does.
  """
  if b"\0" in raw:
    raise TextError("no UTF-8 text: it holds NUL bytes, as UTF-16 does")
  try:
    return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
  except UnicodeDecodeError as error:
    raise TextError(
      f"no UTF-8: {error.reason} at byte {error.start}"
    ) from error


def parse_json(text: bytes | str, *, allow_nul: bool = False) -> Any:
  """Parses JSON whose values every other reader of JSON takes too.

  Args:
    text: one JSON value; bytes are UTF-8, with a byte order mark or without.
    allow_nul: take texts that hold U+0000, as what a policy writes may.

  Returns:
    The value. Its numbers are finite, as float64 too, and its texts can be
    encoded.

  Raises:
    SyntaxTextError: it is not JSON.
    TextError: it is not UTF-8, or nested more than `MAX_DEPTH` deep. Or it has
      a number that is not finite, half a character (a lone surrogate) or
      U+0000. Or it has two values of one name, of which readers take different
      ones.
  """
  if isinstance(text, bytes):
    text = decode(text)
  try:
    value = json.loads(
      text,
      parse_constant=_refuse_constant,
      object_pairs_hook=_object_of_pairs,
    )
  except json.JSONDecodeError as error:
    reason = error.msg.removesuffix(" at")
    raise SyntaxTextError(f"no JSON: {reason} at {_position(error)}") from error
  except TextError:
    raise
  except RecursionError as error:
    raise TextError(_too_deep()) from error
  # An integer of more digits than Python converts.
  except ValueError as error:
    raise TextError("it holds a number that is too large") from error
  _check_values(value, allow_nul)
  return value


def _position(error: json.JSONDecodeError) -> str:
  if error.lineno == 1:
    return f"character {error.pos}"
  return f"line {error.lineno}, character {error.colno}"


def _refuse_constant(name: str) -> NoReturn:
  raise TextError(f"no JSON: {name} is not a number of JSON")


def _too_deep() -> str:
  return f"it is nested too deeply: lists and objects may be {MAX_DEPTH} deep"


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) < len(pairs):
    (name, _), *_ = collections.Counter(n for n, _ in pairs).most_common(1)
    raise TextError(f"an object holds the name {name!a:.60} twice")
  return value


def _check_values(value: Any, allow_nul: bool) -> None:
  check = check_unicode if allow_nul else check_text
  level, depth = [value], 0
  while level:
    inner: list[Any] = []
    for item in level:
      if isinstance(item, str):
        check(item)
      elif isinstance(item, dict | list):
        if depth == MAX_DEPTH:
          raise TextError(_too_deep())
        if isinstance(item, dict):
          for name in item:
            check(name)
          inner += item.values()
        else:
          inner += item
      elif isinstance(item, int | float) and not _is_finite(item):
        raise TextError("it holds a number that is too large")
    level, depth = inner, depth + 1


def _is_finite(value: float) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # An integer beyond float64.
    return False


def check_text(text: str) -> None:
  """Refuses a text that cannot be written as UTF-8, or holds U+0000.

  Raises:
    TextError: with the first such character.
  """
  if "\0" in text:
    raise TextError(
      f"a text holds the character U+0000: {_around(text, text.index(chr(0)))}"
    )
  check_unicode(text)


def check_unicode(text: str) -> None:
  """Refuses a text that cannot be written as UTF-8.

  Raises:
    TextError: with the first such character.
  """
  if text.isascii():
    return
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise TextError(
      "a text holds half a character (the lone surrogate"
      f" U+{ord(text[error.start]):04X}): {_around(text, error.start)}"
    ) from error


def _around(text: str, at: int) -> str:
  return ascii(text[max(at - 20, 0) : at + 20])


def refuse_other_kinds(path: pathlib.Path) -> None:
  """Refuses a file that is not UTF-8 text by its first bytes.

  Raises:
    InputError: it is compressed, Parquet or UTF-16; says what to do.
  """
  with accessing(path), path.open("rb") as file:
    start = file.read(8)
  for first, kind, remedy in _FIRST_BYTES:
    if start.startswith(first):
      raise InputError(f"{path} must be text in UTF-8, it is {kind}. {remedy}")


def raw_lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Number, from 1, and bytes of each line; only a line feed ends one.

  Raises:
    InputError: the file is not text; see `refuse_other_kinds`.
  """
  refuse_other_kinds(path)
  with path.open("rb") as file:
    yield from enumerate(file, 1)


def text_lines(path: pathlib.Path) -> Iterator[str]:
  """The lines of a file with their ends.

  Raises:
    InputError: a line is not UTF-8; names it.
  """
  for number, raw in raw_lines(path):
    try:
      yield decode(raw)
    except TextError as error:
      raise InputError(f"{path}:{number}: {error}. {_UTF8}") from error


def whole_text(path: pathlib.Path) -> str:
  """A whole text.

  Raises:
    InputError: the file is missing or not UTF-8; names the line.
  """
  return "".join(text_lines(path))


def json_lines(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
  """Number and value of each line that is not blank.

  Raises:
    InputError: a line cannot be used; names it, the reason and a remedy.
  """
  yield from parsed_lines(path, raw_lines(path))


def parsed_lines(
  path: pathlib.Path, lines: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, Any]]:
  """Number and value of each line that is not blank.

  Args:
    path: their file, for messages.
    lines: number and bytes of each.

  Raises:
    InputError: see `json_lines`.
  """
  for number, raw in lines:
    if not raw.strip():
      continue
    try:
      yield number, parse_json(raw)
    except TextError as error:
      raise InputError(f"{path}:{number}: {error}. {_REMEDY}") from error


def read_json(path: pathlib.Path) -> Any:
  """The value of a file that holds one.

  Raises:
    InputError: it cannot be used; names the place, the reason and a remedy.
  """
  refuse_other_kinds(path)
  try:
    return parse_json(path.read_bytes())
  except TextError as error:
    raise InputError(
      f"{path} must be JSON: {error}. Fix the file, or copy it again."
    ) from error


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Parses a JSON file that holds an object.

  Raises:
    InputError: it is not JSON, or another value; names the file.
  """
  content = read_json(path)
  if not isinstance(content, dict):
    raise InputError(
      f"{path} must hold a JSON object, and holds a "
      f"{type(content).__name__}; copy or download it again."
    )
  return content
