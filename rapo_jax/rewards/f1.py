"""Token F1 between two short answers, as SQuAD and HotpotQA define it."""

from __future__ import annotations

import collections
import re
import unicodedata

from rapo_jax.rewards.spelling import FUNCTIONS, respell

_ARTICLES = frozenset({"a", "an", "the"})
# Answers that overlap in part with nothing: "no" is no half of "no answer".
_EXACT = frozenset({"yes", "no", "noanswer"})
# An operator of a formula: a minus stands between its two sides, or in front
# of something that is no number. The F-16 and Marie-Anne are names.
_OPERATOR = re.compile(
  r"[\^_=<>/*+\\|π∞√∪∩∈∅±∓→≈⌊⌋⌈⌉]|(?<=[0-9)\]}])!|(?<=[A-Za-z])#"
  r"|(?<=[0-9a-z)\]}!]) ?- ?(?=[0-9a-z(\[{])|(?<![^\s(\[{,])-(?=[a-z(\[{])"
  r"|(?<=[0-9][A-Z])-(?=[0-9])|(?<=[A-Z]) - (?=[0-9a-z(\[{])"
  # A derivative, and a function of something.
  r"|(?<![A-Za-z'])[A-Za-z]'+(?![A-Za-z])"
  rf"|(?<![A-Za-z])(?:{FUNCTIONS})(?= ?[0-9(\[{{]| [^\W\d_](?![^\W\d_]))"
)
_COMMAND = re.compile(
  r"\\(?:begin|end) ?\{[a-z*]{1,20}\}|\\[A-Za-z]+"
  rf"|(?<![^\W\d_])(?:{FUNCTIONS}|mod)"
)
_WORD = re.compile(r"[^\W\d_π]{3,}")
_FORMULA_SPACE = re.compile(
  r" (?![0-9A-Za-z])|(?<![0-9A-Za-z]) |(?<=[0-9]) (?=[A-Za-z])"
  r"|(?<=[A-Za-z]) (?=[0-9])"
)
_EQUALS = re.compile(r"(?<![<>!])=")
_THOUSANDS = re.compile(
  r"(?<![0-9.])[0-9]{1,3}(?:(?:,[0-9]{3})+|(?:'[0-9]{3})+)(?![0-9])"
)
# A unit, but no end of an ordinal number. One letter may be a variable.
_UNIT = re.compile(
  r"(?<![^\s(\[{])(-?[0-9][0-9.,/:-]*)"
  r"(?=[^\W\d_]{2}|[‰‱])(?!(?:st|nd|rd|th|an)(?![^\W\d_]))"
)
_MINUS_ZERO = re.compile(
  r"(?<![^\s(\[{,;:|])-(?=0+(?:\.0+)?(?![0-9]|[./:-][0-9]))"
)
_RANGE = re.compile(r"(?<=[0-9]) ?- ?(?=[0-9])")
_POINT = re.compile(r"(?<![^\s(\[{,+-])\.(?=[0-9])")
_PLUS = re.compile(r"(?<![^\s(\[{,=])\+(?=[0-9.∞])")
_LIST_COMMA = re.compile(r"(?<=[0-9])[,;](?=-?[.0-9])")
_LIST_MARK = re.compile("[,;、](?=[^,;、])")
_COLON = re.compile(r"(?<=[0-9]) ?: ?(?=[0-9])")
_NUMBER = re.compile(r"(?:(?<![^\s(\[{,;:|])-)?[0-9]+(?:[./:-][0-9]+)*")
_BRACKETS = {
  **dict.fromkeys("()", "round"),
  **dict.fromkeys("[]", "square"),
  **dict.fromkeys("{}", "curly"),
}


def words(text: str) -> list[str]:
  """An answer's words in lower case, without articles and punctuation.

  Signs, decimal points and slashes of numbers are part of them. A formula has
  an operator and no word of three letters. It is one word, or one on each side
  of its equals sign.

  Args:
    text: an answer in any spelling, see `respell`.
  """
  text = _PLUS.sub("", respell(text))
  if _is_formula(text):
    bare = _FORMULA_SPACE.sub("", _numbers(text).casefold()).rstrip(".,;")
    return [side for side in _EQUALS.split(bare) if side]
  text = _RANGE.sub("-", _POINT.sub("0.", _numbers(text)))
  text = _UNIT.sub(r"\1 ", _MINUS_ZERO.sub("", text))
  found = _without_punctuation(text).casefold().split()
  return [word for word in found if word not in _ARTICLES] or found


def token_f1(prediction: str, ground_truth: str) -> float:
  """F1 over the bags of the words of two answers.

  It is a measure for words. Of mathematics it sees how numbers are written:
  -3 is not 3, and 1/2 is not 0.5.

  Args:
    prediction: the answer given; blank scores 0.
    ground_truth: the answer wanted. One that has no words ("?") is compared as
      it is, without regard to case.

  Returns:
    F1 in [0, 1].
  """
  wanted, given = words(ground_truth), words(prediction)
  if not wanted:
    raw = respell(prediction).casefold()
    return float(bool(raw) and raw == respell(ground_truth).casefold())
  if _EXACT & {" ".join(given), " ".join(wanted)}:
    return float(given == wanted)
  common = collections.Counter(given) & collections.Counter(wanted)
  shared = common.total()
  if shared == 0:
    return 0.0
  precision = shared / len(given)
  recall = shared / len(wanted)
  return 2 * precision * recall / (precision + recall)


def is_match(prediction: str, ground_truth: str) -> bool:
  """Whether an answer counts as right.

  Its words are those wanted, in any order; numbers alone have to be in their
  order, and within brackets of the same kind: (1, 2) is not (2, 1).

  Args:
    prediction: the answer given.
    ground_truth: the answer wanted.
  """
  if token_f1(prediction, ground_truth) < 1:
    return False
  given, wanted = words(prediction), words(ground_truth)
  if not all(_NUMBER.fullmatch(word) for word in wanted):
    return True
  ends, wanted_ends = _ends(prediction), _ends(ground_truth)
  same_ends = not ends or not wanted_ends or ends == wanted_ends
  return given == wanted and same_ends


def _is_formula(text: str) -> bool:
  """Whether a respelled text is a formula and not words."""
  if not _OPERATOR.search(text):
    return False
  return not _WORD.search(_COMMAND.sub(" ", text))


def _numbers(text: str) -> str:
  """Numbers without commas between their thousands, and apart in a list."""
  text = _THOUSANDS.sub(lambda match: re.sub("[,']", "", match.group()), text)
  text = _COLON.sub(":", text)
  return _LIST_COMMA.sub(", ", text)


def _without_punctuation(text: str) -> str:
  """The text without punctuation outside of its numbers."""
  parts = []
  start = 0
  for number in _NUMBER.finditer(text):
    between = text[start : number.start()]
    # What stands between two numbers parts them.
    parts += [_bare(between) or " " * bool(start), number.group()]
    start = number.end()
  return "".join([*parts, _bare(text[start:])])


def _bare(text: str) -> str:
  # Lists of words may be written without spaces.
  text = _LIST_MARK.sub(" ", text)
  return drop_punctuation(text)


def drop_punctuation(text: str) -> str:
  """A text without signs of ASCII and punctuation of Unicode."""
  return "".join(c for c in text if not _is_punctuation(c))


def _is_punctuation(character: str) -> bool:
  if character.isascii():
    return not character.isalnum() and not character.isspace()
  category = unicodedata.category(character)
  return category.startswith("P") and character not in "‰‱"


def _ends(text: str) -> tuple[str, str] | None:
  """Kinds of the brackets that an answer stands in."""
  bare = respell(text).strip(" .")
  if bare[:1] in "([{" and bare[-1:] in ")]}" and len(bare) > 1:
    return _BRACKETS[bare[0]], _BRACKETS[bare[-1]]
  return None
