"""What rows of data sets hold, in whatever form: answers and questions.

Data sets keep one thing in many ways: as text, as a list, as a structure, or
as the JSON text of one. Each form is read here, once, or refused; no reader
guesses.
"""

from __future__ import annotations

import ast
import decimal
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rapo_jax import text_files
from rapo_jax.errors import InputError

ANSWER_KEYS = ("target", "ground_truth", "answer", "answers")
"""Under which of them a structure holds its answers."""
ALIAS_KEYS = ("aliases", "answer_aliases")
"""Under which of them a structure holds further spellings of its answer."""
_FORMS = (
  "a text, a number, a list of these, or a structure with one of "
  f"{', '.join(ANSWER_KEYS)}"
)
# How a structure begins that holds answers, whatever comes of the rest of it.
_STRUCTURE = re.compile(rf"\{{\s*(['\"]?)(?:{'|'.join(ANSWER_KEYS)})\1\s*:")
# What NumPy prints around a value: that it is an array, or its type.
_NUMPY = re.compile(r"(np\.|numpy\.)?(array|str_|bool_?|u?int\d+|float\d+)")
# How a text begins that may stand for a list or a structure.
_BEGINS = re.compile(r"[\[{]|(np\.|numpy\.)?array\(")


def accepted_answers(value: Any, where: str) -> tuple[str, ...]:
  """The accepted answers that a data set gives for a question.

  Search-R1's `{"target": [...]}`, lists within lists, arrays, numbers, and the
  text of a structure or of a list are read. That text is in JSON, Python or
  NumPy. Only a list of numbers, such as `[1, 2]`, is an answer when it is a
  text: an interval or a tuple. 42.0 becomes "42": a column of integers is one
  of floats as soon as one is missing. Blank aliases are dropped, and so is what
  stands twice.

  Args:
    value: what the row holds.
    where: file, row and column, for errors.

  Returns:
    The answers in order; none if all of them are blank.

  Raises:
    InputError: there is no answer, or it has another form.
  """
  answers = _answers(value, where)
  if not answers:
    raise InputError(
      f"{where} holds no answer, got {value!r:.80}; give it one."
    )
  return tuple(dict.fromkeys(text for text in answers if text.strip()))


def _answers(value: Any, where: str) -> list[str]:
  """All answers, blank ones too; missing values give none."""
  if isinstance(value, np.ndarray):
    # Not `tolist`: in 64 bits a float of 32 bits has other decimals.
    value = list(value) if value.ndim else value[()]
  if isinstance(value, np.generic) and not isinstance(value, np.floating):
    value = value.item()
  match value:
    case None:
      return []
    case str():
      unpacked = _unpacked_answers(value, where)
      return [value] if unpacked is None else _answers(unpacked, where)
    case bytes():
      try:
        return _answers(value.decode("utf-8"), where)
      except UnicodeDecodeError as error:
        raise InputError(f"{where} must be UTF-8 text: {error}.") from None
    case bool():
      raise InputError(
        f"{where} is {value}, which may be spelled True or yes: give a text."
      )
    case int() | float() | np.floating() | decimal.Decimal():
      return [_number(value, where)]
    case Mapping():
      found = _answers(_only_answer(value, where), where)
      aliases = [value[name] for name in ALIAS_KEYS if name in value]
      return [*found, *_answers(aliases, where)]
    case list() | tuple():
      return [text for item in value for text in _answers(item, where)]
  raise InputError(
    f"{where} must be {_FORMS}, got {type(value).__name__}: convert it."
  )


def _number(
  value: float | np.floating[Any] | decimal.Decimal, where: str
) -> str:
  if isinstance(value, int):
    return str(value)
  if not math.isfinite(value):
    raise InputError(
      f"{where} must be a finite number, got {value}: correct it."
    )
  if isinstance(value, float | np.floating):
    text = np.format_float_positional(value, trim="-")
    return "0" if text == "-0" else text
  return f"{value:f}"


def _only_answer(value: Mapping[str, Any], where: str) -> Any:
  """The part of a structure that holds the answers."""
  found = [name for name in ANSWER_KEYS if value.get(name) is not None]
  if len(found) == 1:
    return value[found[0]]
  raise InputError(
    f"{where} must hold its answers under exactly one of "
    f"{', '.join(ANSWER_KEYS)}; it has {sorted(map(str, value))}: rename it."
  )


def _unpacked_answers(text: str, where: str) -> Any:
  """The structure or the list that a text stands for, or None.

  Numbers in brackets are an answer of mathematics and no list.

  Raises:
    InputError: it begins as a structure of answers and cannot be read.
  """
  value = unpacked(text)
  if isinstance(value, Mapping):
    return value
  if isinstance(value, list) and not (value and _are_numbers(value)):
    return value
  if isinstance(value, set) and all(isinstance(item, str) for item in value):
    return sorted(value)
  if isinstance(value, str) and _STRUCTURE.match(text.strip()):
    raise InputError(
      f"{where} begins as a structure and cannot be read as one, got "
      f"{text!r:.80}: correct it."
    )
  return None


def _are_numbers(value: list[Any]) -> bool:
  return all(
    _are_numbers(item)
    if isinstance(item, list)
    else isinstance(item, int | float | complex) and not isinstance(item, bool)
    for item in value
  )


def unpacked(value: Any) -> Any:
  """What a JSON text stands for, or one of Python; other values as they are."""
  if not isinstance(value, str):
    return value
  text = value.strip().removeprefix("\ufeff")
  if not _BEGINS.match(text):
    return value
  for read in (json.loads, _python_value):
    try:
      return read(text)
    except (
      *(ValueError, SyntaxError, MemoryError, RecursionError, TypeError),
      tokenize.TokenError,
    ):
      continue
  return value


def _python_value(text: str) -> Any:
  """The value that Python, NumPy or pandas prints as this text.

  Raises:
    ValueError: it is none. Or another error of `ast.parse` and `tokenize`.
  """
  parsed = ast.parse(_with_commas(text), mode="eval")
  return ast.literal_eval(_Values().visit(parsed))


def _with_commas(text: str) -> str:
  """The text with the commas that NumPy leaves out between elements.

  Python reads `['Paris' 'Rome']` as one text.
  """
  parts: list[str] = []
  ended = False
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type in (tokenize.NL, tokenize.NEWLINE):
      continue
    value = token.type == tokenize.STRING or token.string in ("None", "nan")
    if ended and (value or token.string in ("[", "{")):
      parts.append(",")
    parts.append(token.string)
    ended = value or token.string in ("]", "}", ")")
  return " ".join(parts).strip()


class _Values(ast.NodeTransformer):
  """Puts the values themselves in place of how NumPy prints them."""

  def visit_Call(self, node: ast.Call) -> ast.AST:
    """`array(['Paris'], dtype=object)` and `np.str_('Paris')`."""
    if node.args and _NUMPY.fullmatch(ast.unparse(node.func)):
      return self.visit(node.args[0])
    return node

  def visit_Name(self, node: ast.Name) -> ast.AST:
    """`nan` is a missing value."""
    return ast.Constant(None) if node.id == "nan" else node


def verl_question(row: Mapping[str, Any], where: str) -> str:
  """The question of a row, see `row_question`.

  Raises:
    InputError: the row has none; names file and row.
  """
  question = row_question(row)
  if not isinstance(question, str) or not question.strip():
    raise InputError(
      f"{where}: no question in extra_info.question, in question or in a user "
      f"message of prompt, got {question!r:.80}: correct the row."
    )
  check_text(question, where)
  return question


def verl_answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
  """The accepted answers under `reward_model.ground_truth`, in any form.

  Returns:
    None of them if all are blank.

  Raises:
    InputError: the row has none, or another form; names file, row and column.
  """
  where = f"{where}: reward_model.ground_truth"
  model = unpacked(row.get("reward_model"))
  if not isinstance(model, Mapping):
    raise InputError(
      f"{where} is missing, as reward_model is {model!r:.80}: give it a "
      "structure, or the JSON text of one."
    )
  truths = accepted_answers(model.get("ground_truth"), where)
  for truth in truths:
    check_text(truth, where)
  return truths


def check_text(text: str, where: str) -> None:
  """Refuses what no log can hold, as an escape within a JSON text gives it.

  Raises:
    InputError: names file and row.
  """
  try:
    text_files.check_text(text)
  except text_files.TextError as error:
    raise InputError(f"{where}: {error}. Correct the row.") from error


def row_question(row: Mapping[str, Any]) -> Any:
  """The question of a row in the layouts of verl, Search-R1 and Tool-Star.

  It is the text under `extra_info.question` or `question`. Else it is the last
  message of the user in `prompt`, which may be a text itself. `extra_info` and
  `prompt` may be JSON texts, and a message may come in parts.

  Returns:
    What was found, no text if the row has no question.
  """
  extra = unpacked(row.get("extra_info"))
  if isinstance(extra, Mapping) and isinstance(extra.get("question"), str):
    return extra["question"]
  if isinstance(row.get("question"), str):
    return row["question"]
  return user_message(row.get("prompt"))


def user_message(prompt: Any) -> Any:
  """The last message of the user in a chat, or the prompt that is a text."""
  value = unpacked(prompt)
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, Mapping):
    value = [value]
  if not isinstance(value, list) or not _are_messages(value):
    return prompt
  said = [m.get("content") for m in value if m.get("role") == "user"]
  return _joined(said[-1]) if said else None


def _are_messages(value: Sequence[Any]) -> bool:
  return all(isinstance(item, Mapping) and "role" in item for item in value)


def _joined(content: Any) -> Any:
  """The text of a message, which may come in parts."""
  if not isinstance(content, list):
    return content
  texts = [
    text
    for part in content
    if isinstance(part, Mapping) and isinstance(text := part.get("text"), str)
  ]
  return "".join(texts) if len(texts) == len(content) else content
