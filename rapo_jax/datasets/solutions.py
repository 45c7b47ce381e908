"""A publisher's own solutions as steps in the agent's format.

A step is a thought and a call of the python tool with its result; the last one
is a thought and the answer. Results are what the tool would print. They are
computed here, from numbers and signs alone: no text of a data set is ever run.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence

from rapo_jax.rewards import RECIPE_TAGS

_CALCULATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
# The sign of equality before a calculation, with what its value is written
# with, and the value once more behind it.
_EQUALS = re.compile(r"\s*=\s*[$€£]?\s*\Z")
_VALUE = re.compile(r"[$€£]?\s*-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_LAST_WORD = re.compile(r"[^\W\d_]+\Z")
_ARITHMETIC = re.compile(r"[0-9 .+*/%()-]{1,200}")
_OPERATORS: Mapping[type[ast.AST], Callable[..., int | float]] = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
  ast.FloorDiv: operator.floordiv,
  ast.Mod: operator.mod,
  ast.Pow: operator.pow,
  ast.UAdd: operator.pos,
  ast.USub: operator.neg,
}
# What is larger is no calculation of a solution.
_MAX_EXPONENT = 64
_MAX_VALUE = 1e15
# Of a value that is written in whole: only rounding of floats is less.
_TOLERANCE = 1e-9


def annotated_steps(solution: str) -> tuple[str, ...] | None:
  r"""Steps of a solution with calculations like `<<48/2=24>>`, one a line.

  A line with a calculation is a step. Its thought is the line without the
  value: `She sold 48/2 = <<48/2=24>>24 clips.` becomes `She sold 48/2 clips.`
  The program prints the calculation. A line without one belongs to the thought
  that follows. The answer stands behind `####`.

  Args:
    solution: as GSM8K has it.

  Returns:
    Texts of the steps. None if there is no answer; if a line has several
    calculations, or text that could be read as a tag. Also None if a
    calculation cannot be computed, or has another value than the solution says.
  """
  body, found, answer = solution.rpartition("####")
  answer = answer.strip().replace(",", "")
  if not found or not answer:
    return None
  steps: list[str] = []
  thought: list[str] = []
  for line in filter(None, map(str.strip, body.splitlines())):
    calculations = list(_CALCULATION.finditer(line))
    bare = _CALCULATION.sub("", line)
    if len(calculations) > 1 or RECIPE_TAGS.escape(bare) != bare:
      return None
    if not calculations:
      thought.append(line)
      continue
    program, value = calculations[0].groups()
    printed = _printed(program, value)
    if printed is None:
      return None
    thought.append(_without_value(line, calculations[0]))
    steps.append(
      f"{_thought(thought)}<python> print({program.strip()}) </python>"
      f"<result> {printed} </result>"
    )
    thought = []
  thought = thought or [f"The answer is {answer}."]
  steps.append(f"{_thought(thought)}<answer> \\boxed{{{answer}}} </answer>")
  return tuple(steps)


def evaluate(expression: str) -> int | float | None:
  """Value of an expression of numbers, `+ - * / // % **` and brackets.

  It has the type and the rounding that Python's has.

  Args:
    expression: any text; nothing of it is run.

  Returns:
    None if it is anything else, cannot be computed, or is too large.
  """
  if not _ARITHMETIC.fullmatch(expression):
    return None
  try:
    value = _value(ast.parse(expression.strip(), mode="eval").body)
  except (SyntaxError, ValueError, ArithmeticError, RecursionError):
    return None
  return value


def _value(node: ast.AST) -> int | float:
  """Value of a part of an expression.

  Raises:
    ValueError: it is no arithmetic, or too large.
    ArithmeticError: it has no value, such as 1/0.
  """
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    value = node.value
  elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
    value = _OPERATORS[type(node.op)](_value(node.operand))
  elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    left, right = _value(node.left), _value(node.right)
    if isinstance(node.op, ast.Pow) and abs(right) > _MAX_EXPONENT:
      raise ValueError("the exponent is too large")
    value = _OPERATORS[type(node.op)](left, right)
  else:
    raise ValueError("no arithmetic")
  # A root of a negative number is complex.
  if not isinstance(value, int | float) or not abs(value) <= _MAX_VALUE:
    raise ValueError("no real number, or too large a one")
  return value


def _printed(program: str, value: str) -> str | None:
  """What `print(program)` shows; None if it is not the value."""
  computed = evaluate(program)
  try:
    wanted = float(value.replace(",", ""))
  except ValueError:
    return None
  if computed is None or not math.isclose(
    computed, wanted, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE
  ):
    return None
  return str(computed)


def _without_value(line: str, calculation: re.Match[str]) -> str:
  """The line with the calculation in words, and without its value.

  Where no formula stands before it, the calculation takes the value's place.
  """
  before, behind = line[: calculation.start()], line[calculation.end() :]
  value = _VALUE.match(behind)
  behind = behind[value.end() :] if value else behind
  equals = _EQUALS.search(before)
  if not equals:
    return f"{before}{calculation[1].strip()}{behind}"
  formula = before[: equals.start()]
  # Of "60 kg - 10 kg = 50 kg" one unit too many is left.
  unit = _LAST_WORD.search(formula)
  if unit and re.match(rf"\s*{unit[0]}\b", behind):
    formula = formula[: unit.start()].rstrip()
  return formula + behind


def _thought(lines: Sequence[str]) -> str:
  """The thought of a step: sentences in one line."""
  ended = [line if line[-1] in ".!?:;," else f"{line}." for line in lines[:-1]]
  return f"<think> {' '.join((*ended, lines[-1]))} </think>"
