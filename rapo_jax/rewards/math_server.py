"""Compares answers by math-verify: a program, one line in, one line out.

It runs in a process of its own. A comparison may take any time and memory, and
Python cannot interrupt it from within: who asks ends the process instead. It
imports nothing of this project, so that it starts within a second.
"""

from __future__ import annotations

import decimal
import json
import logging
import re
import resource
import sys
from fractions import Fraction

_MEMORY_BYTES = 4 * 2**30
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod|and|inf"
_SCALES = {
  "hundred": 2,
  "thousand": 3,
  "million": 6,
  "billion": 9,
  "trillion": 12,
}
_TEXT = r"\\(?:text|mathrm|textrm|mbox) *\{"
# Words that change a number; a unit does not.
_QUANTITY = re.compile(
  rf"\b(?:{'|'.join(_SCALES)}|squared|cubed|factorial|dozen|half|halves"
  r"|thirds?|quarters?|negative|minus|plus"
  r"|am|pm|increase|decrease)\b"
)
# 2.5 million and 2.5 \text{ million}; of 1/2 million the 2 alone is no number.
_SCALED = re.compile(
  r"(?<![\d.,/^}])(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
  rf"(?P<between>(?:[ ~-]|\\[ ,;:!])*(?:{_TEXT} *)?)"
  rf"(?P<scale>{'|'.join(_SCALES)})\b",
  re.IGNORECASE,
)
# A number with words behind it, such as 12 apples or 3.5 \text{ cm}. A letter
# may be a variable; some words are functions.
_UNIT = re.compile(
  r"(?P<number>\\?[$€£¥]? ?[-+]?[\d.,]*\d(?:/\d+)?)"
  rf"(?:\\[ ,;:!])*(?: *{_TEXT}[A-Za-z .]+\}}(?:\^\d)?"
  rf"|(?: +(?!(?:{_FUNCTIONS})\b)[A-Za-z]{{3,}})+"
  r"|(?: +[A-Za-z]{3,})* +(?:[kcdm]m|in|ft|yd|mi|[A-Za-z]{3,})\^\{?[23]\}?)\.?"
)
# Letters, dates and ratios, whose parts the library would multiply.
_LETTERS = re.compile(rf"\s*(?:{_TEXT})?([A-Za-z]+)\}}?\s*")
_DATE = re.compile(r"\s*[0-9]{4}-[0-9]{2}-[0-9]{2}\s*")
_BASE = re.compile(r"_ *\{?([0-9]+)\}?\s*\Z")
_PARTS = re.compile(r" *(?::| to ) *")
_PART = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?(?:/[0-9]{1,20})?")


def equal(answer: str, truth: str) -> bool:
  """Whether two answers are the same mathematics, units apart."""
  import math_verify

  answer, truth = (_SCALED.sub(_times_scale, t) for t in (answer, truth))
  quantities = [_QUANTITY.findall(text.lower()) for text in (answer, truth)]
  if quantities[0] != quantities[1] or _differ(answer, truth):
    return False
  ratios = _ratio(answer), _ratio(truth)
  if ratios[0] and ratios[1]:
    return ratios[0] == ratios[1]

  def same(first: str, second: str) -> bool:
    # Time limits of the library work by signals; ours is the process.
    wanted, given = (
      math_verify.parse(
        f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=False
      )
      for text in (first, second)
    )
    return bool(
      wanted
      and given
      and math_verify.verify(
        wanted, given, timeout_seconds=None, raise_on_error=False
      )
    )

  if same(truth, answer):
    return True
  numbers = [_without_unit(truth), _without_unit(answer)]
  return numbers != [truth, answer] and same(*numbers)


def _differ(first: str, second: str) -> bool:
  """Whether two texts differ in what the library does not look at.

  Words of the same letters in another order, days, and bases of numbers.
  """
  letters = [_LETTERS.fullmatch(text) for text in (first, second)]
  if letters[0] and letters[1]:
    one, other = letters[0][1].casefold(), letters[1][1].casefold()
    return one != other and sorted(one) == sorted(other)
  bases = [_BASE.search(text) for text in (first, second)]
  if bases[0] and bases[1] and bases[0][1] != bases[1][1]:
    return True
  dates = all(_DATE.fullmatch(text) for text in (first, second))
  return dates and first.strip() != second.strip()


def _ratio(text: str) -> list[Fraction]:
  """Shares of the parts of `3:4` or `3 to 4`; none of anything else."""
  parts = _PARTS.split(text.strip())
  if len(parts) < 2 or not all(map(_PART.fullmatch, parts)):
    return []
  pairs = [part.partition("/") for part in parts]
  fractions = [(Fraction(over), int(under or 1)) for over, _, under in pairs]
  if not all(under for _, under in fractions):
    return []
  sizes = [over / under for over, under in fractions]
  total = sum(sizes) or 1  # Parts of 0 alone stay as they are.
  return [size / total for size in sizes]


def _times_scale(found: re.Match[str]) -> str:
  """The number of `2.5 million`; what stands between the two stays."""
  number = decimal.Decimal(found["number"].replace(",", ""))
  scaled = number.scaleb(_SCALES[found["scale"].lower()])
  return f"{scaled:f}{found['between']} "


def _without_unit(text: str) -> str:
  match = _UNIT.fullmatch(text.strip())
  return match["number"] if match else text


def main() -> None:
  """Answers each line of pairs by whether the two of one are equal."""
  resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
  # Integers of any length are mathematics; the deadline bounds their time.
  sys.set_int_max_str_digits(0)
  logging.disable(logging.CRITICAL)
  # What a library prints must not be read as an answer.
  replies, sys.stdout = sys.stdout, sys.stderr
  equal("1", "1")
  replies.write("ready\n")
  replies.flush()
  for line in sys.stdin:
    try:
      found = any(equal(answer, truth) for answer, truth in json.loads(line))
    except (Exception, RecursionError):
      # What cannot be read as mathematics equals nothing.
      found = False
    replies.write(f"{json.dumps(found)}\n")
    replies.flush()


if __name__ == "__main__":
  main()
