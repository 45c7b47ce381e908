r"""One spelling for answers that are written in several.

`\text{Paris}` and Paris, `\dfrac{1}{2}` and 1/2, U+2212 and the hyphen differ
in how they are written, not in meaning. The meaning of a text is left alone:
signs, decimal points and operators stay. No mathematics is done: 1/2 and 0.5
remain two answers.
"""

from __future__ import annotations

import re
import unicodedata

# Compatibility forms that NFKC would run into the digits before them.
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
# Thin spaces between the thousands of a number, and a sign apart from it.
_THIN = re.compile("(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_BY_CATEGORY = {
  category: "".join(
    c for c in map(chr, range(0x10000)) if unicodedata.category(c) == category
  )
  for category in ("Sc", "Cf")
}
_MONEY_SIGNS = re.escape(_BY_CATEGORY["Sc"])
# After a number or a name, a dash with spaces is no sign. One letter may be a
# variable.
_LOOSE_SIGN = re.compile(
  rf"(^|[(\[{{,;:=|] ?|(?<!\S)[a-z]{{2,}} )([-+±]) (?=\\?[0-9.{_MONEY_SIGNS}])"
)
_MONEY = re.compile(
  rf"((?<![\w)\]}}$])-)?((?:\b[A-Z]{{1,3}})?\\?[{_MONEY_SIGNS}])"
  r" ?(-?)(?=[0-9.])"
)
_EMPHASIS = ("**", "__", "*", "'", '"')
_MIXED = re.compile("(?<=[0-9])(?=[¼-¾⅐-⅞↉])|(?<=[①-⑳])(?=[①-⑳])")
_CHARACTERS = str.maketrans(
  {
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys("‘’‚‛`´′ʼ", "'"),
    **dict.fromkeys("“”„‟″", '"'),
    **dict.fromkeys("×·⋅∙", "*"),
    **dict.fromkeys("⁄∕÷", "/"),
    # Marks that say nothing, and characters that nobody sees.
    **dict.fromkeys("™®©\ufe0e\ufe0f", ""),
    **dict.fromkeys(_BY_CATEGORY["Cf"], ""),
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
  }
)
# Names of characters, as words and as TeX's commands.
_NAMES = re.compile(
  r"(?<![A-Za-z\\])(?:(sqrt)(?![A-Za-z])|(pi)(?![A-Za-z])"
  r"|((?i:inf(?:ini)?ty))\b)"
)
_NAMED = ("√", "π", "∞")
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|ln|log|exp"
"""Names that are written with and without TeX's backslash."""
# In Unicode's order, where a final sigma has a place of its own.
_GREEK = (
  "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi"
  "|omicron|pi|rho|varsigma|sigma|tau|upsilon|phi|chi|psi|omega"
)
_FONTS = (
  "text|textbf|textit|textrm|textsf|texttt|textnormal|textup|textsc|textmd"
  "|textsl|mathrm|mathbf|mathit|mathsf|mathtt|mathbb|mathcal|mathnormal|mathbfit"
  "|boldsymbol|bm|pmb|emph|mbox|hbox|operatorname|underline|boxed|fbox|framebox"
)
_SIZES = (
  "displaystyle|textstyle|rm|bf|it|sf|tt|sl|sc|em|left|right|limits"
  "|bfseries|itshape|normalsize|small|large|Large|LARGE|huge|Huge"
  "|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr"
)
# By name; a command ends where its letters end.
_COMMANDS = {
  **dict.fromkeys(["circ", "degree"], "°"),
  **dict.fromkeys(["quad", "qquad"], " "),
  **dict.fromkeys(["times", "cdot", "ast"], "*"),
  **dict.fromkeys(["le", "leq", "leqslant"], "<="),
  **dict.fromkeys(["ge", "geq", "geqslant"], ">="),
  **dict.fromkeys(["ne", "neq"], "!="),
  **dict.fromkeys(["lt"], "<"),
  **dict.fromkeys(["gt"], ">"),
  **{"bigcup": "∪", "bigcap": "∩"},
  **dict.fromkeys(["dbinom", "tbinom"], "\\binom"),
  **dict.fromkeys(["dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"], "\\frac"),
  **dict.fromkeys(["ldots", "dots"], "..."),
  **dict.fromkeys(["vert", "lvert", "rvert", "mid"], "|"),
  **dict.fromkeys(["textquotesingle", "textquoteright"], "'"),
  **{"pm": "±", "mp": "∓", "div": "/", "colon": ":", "textdegree": "°"},
  **{"lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]"},
  **{"infty": "∞", "sqrt": "√", "cup": "∪", "cap": "∩", "in": "∈"},
  **dict.fromkeys(["emptyset", "varnothing"], "∅"),
  **{"to": "→", "rightarrow": "→", "approx": "≈", "prime": "'"},
  **{"lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉"},
  **{name: f" {name} " for name in FUNCTIONS.split("|")},
  **{f"var{name}": chr(0x3B1 + i) for i, name in enumerate(_GREEK.split("|"))},
  **{name: chr(0x3B1 + i) for i, name in enumerate(_GREEK.split("|"))},
  **{name.title(): chr(0x391 + i) for i, name in enumerate(_GREEK.split("|"))},
  **{"o": "ø", "O": "Ø", "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ"},
  **{"aa": "å", "AA": "Å", "l": "ł", "L": "Ł", "i": "i", "j": "j"},
}
# Accents of TeX, and the character that puts the same above a letter.
_ACCENTS = {
  **{"`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303"},
  **{"=": "\u0304", "u": "\u0306", ".": "\u0307", '"': "\u0308"},
  **{"r": "\u030a", "H": "\u030b", "v": "\u030c", "c": "\u0327", "k": "\u0328"},
}
# Without braces only within a word: models escape quotes as in JSON.
_ACCENT = re.compile(
  r"\\([`'^~=.\"]) ?\{ ?\\?([A-Za-z]) ?\}|\\([urHvck]) ?\{ ?([A-Za-z]) ?\}"
  r"|(?<=[A-Za-z])\\([`'^\"])([aeiouy])|(?<=[A-Za-z])\\(~)(n)"
)
_COLOUR = re.compile(r"\\(?:text)?color ?\{[A-Za-z]{1,20}\}")
# Degrees end a number: minutes or a scale may follow.
_DEGREES = re.compile("[°˚](?= ?[0-9A-Z])")
_PRIME = re.compile(r"\^ ?(?:\{ ?\\prime ?\}|\\prime(?![A-Za-z]))")
# The index of a formula of chemistry, of which Unicode has its own digits.
_INDEX = re.compile(
  r"(?:(?<=[A-Z])|(?<=[A-Z][a-z])|(?<=[A-Za-z]\)))"
  r"_(?:\{([0-9]{1,3})\}|([0-9])(?![0-9]))"
)
# More than one character under a root or above a base stands in braces.
_BARE_ROOT = re.compile(r"√ ?([0-9]{2,})")
_ROUND = re.compile(r"([√^]) ?\(([^(){}]{1,100})\)")
_BARE_POWER = re.compile(r"\^(-?[0-9]{2,}|-[0-9])")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SIZE = re.compile(rf"\\(?:{_SIZES})(?![A-Za-z])")
_FONT = re.compile(rf"\\(?:{_FONTS})(?![A-Za-z])")
# With braces in it, of two levels.
_IN_FONT = re.compile(
  rf"\\(?:{_FONTS}) ?\{{((?:[^{{}}]"
  r"|\{(?:[^{}]|\{[^{}]{0,100}\}){0,100}\}){0,200})\}"
)
# `^\circ` and `^{\circ}` before the command goes, so that no `^` is left.
_DEGREE = re.compile(r"\^\s?(?:\{\s?)?\\(?:circ|degree)(?![A-Za-z])(?:\s?\})?")
_GROUPED = re.compile(
  r"(?<=[0-9])(?:\{,\}|\\[,!;: ]|~|,\\!)(?=[0-9]{3}(?![0-9]))"
)
_SPACE = re.compile(r"\\[ ,;:>]|~")
_NOTHING = re.compile(r"\\[!()\[\]]|\$")
_ESCAPED = re.compile(r"\\([%&#_${}'\"])")
_SPACES = re.compile(r"\s+")
_PART = r" ?(?:\{((?:[^{}]|\{[^{}]{0,100}\}){0,200})\}|([^\W_]))"
_FRACTION = re.compile(rf"\\frac{_PART}{_PART}")
_TWO_WORDS = re.compile(r"[^\W\d_]{2,} [^\W\d_]{2,}")
# What needs no brackets below a slash, and above it.
_NUMBER = r"[0-9.]+(?:,[0-9]{3})*"
_RAISED = r"(?:[√^](?:[^\W_]|\{[^{}]{1,100}\}))"
_FACTOR = rf"-?(?:{_NUMBER}|[^\W\d_]{_RAISED}?|{_RAISED})"
_PRODUCT = rf"-?(?:[0-9.]|,[0-9]{{3}}|[^\W\d_]|{_RAISED}){{1,100}}"
_SIMPLE = (re.compile(_PRODUCT), re.compile(_FACTOR))
_ROUND_PART = re.compile(
  rf"(?<![^\s(\[{{,=+*-])\(({_PRODUCT})\)(?=/)|(?<=/)\(({_FACTOR})\)"
)
_SINGLE = re.compile(r"\{ ?([-+±]|[^\W_]) ?\}")


def respell_characters(text: str) -> str:
  """The text with characters and TeX in one spelling; plain ASCII stays.

  It is for metrics with a rule of their own for plain text.

  Args:
    text: an answer. The time taken is linear in its length.
  """
  text = _one_spelling(text)
  if "\\" in text:
    text = _SPACES.sub(" ", _without_tex(text))
  return text.strip()


def respell(text: str) -> str:
  """The text in one spelling.

  Unicode's compatibility forms, dashes, quotes and a few signs of mathematics
  become ASCII; TeX's commands for fonts and spaces go; a fraction of simple
  parts becomes a slash. Other braces stay; callers may read them.

  Args:
    text: an answer. The time taken is linear in its length.
  """
  text = _LOOSE_SIGN.sub(r"\1\2", _one_spelling(text).strip())
  text = _MONEY.sub(r"\2 \1\3", text)
  if any(character in text for character in "\\$~{"):
    text = _SPACES.sub(" ", _without_tex(text))
  text = _NAMES.sub(lambda match: _NAMED[(match.lastindex or 1) - 1], text)
  if "√" in text or "^" in text:
    text = _BARE_ROOT.sub(r"√{\1}", _ROUND.sub(r"\1{\2}", text))
    text = _SINGLE.sub(r"\1", _BARE_POWER.sub(r"^{\1}", text))
  text = _INDEX.sub(r"\1\2", text)
  text = _ROUND_PART.sub(r"\1\2", text)
  return _LOOSE_SIGN.sub(r"\1\2", _without_emphasis(text.strip()))


def _one_spelling(text: str) -> str:
  """The text with Unicode's characters in one spelling, in single spaces."""
  text = _SUPERSCRIPT.sub(
    lambda match: "^" + match.group().translate(_SUPERSCRIPTS), text
  )
  # Some characters fall apart in NFKC, others come out of it.
  text = _without_degrees(_THIN.sub(",", text))
  text = _MIXED.sub(" ", text).translate(_CHARACTERS)
  text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
  return _SPACES.sub(" ", text)


def _without_emphasis(text: str) -> str:
  """The text without Markdown's marks, or quotes, around all of it."""
  for mark in _EMPHASIS:
    inside = text[len(mark) : -len(mark)]
    if inside and text == f"{mark}{inside}{mark}" and mark[0] not in inside:
      return inside.strip()
  return text


def _without_tex(text: str) -> str:
  # A row's end is no backslash before what follows it.
  text = text.replace(r"\\", "\n")
  text = _ACCENT.sub(_accented, _COLOUR.sub("", _GROUPED.sub(",", text)))
  text = _PRIME.sub("'", text)
  text = _COMMAND.sub(_named, _SIZE.sub("", _DEGREE.sub("°", text)))
  # Twice: a font may stand in another.
  text = _FONT.sub("", _IN_FONT.sub(r"\1", _IN_FONT.sub(r"\1", text)))
  # Twice: a fraction may stand in another.
  text = _FRACTION.sub(_slash, _FRACTION.sub(_slash, _SPACE.sub(" ", text)))
  text = _NOTHING.sub("", _ESCAPED.sub(r"\1", text))
  text = _SINGLE.sub(r"\1", text).replace("\n", r" \\ ")
  return _without_degrees(text)


def _without_degrees(text: str) -> str:
  return _DEGREES.sub(" ", text).replace("°", "").replace("˚", "")


def _named(match: re.Match[str]) -> str:
  """A command's character; one without stays apart from the next command."""
  apart = match.string[match.end() : match.end() + 1] == "\\"
  return _COMMANDS.get(match.group(1), match.group() + " " * apart)


def _accented(match: re.Match[str]) -> str:
  accent, letter = filter(None, match.groups())
  return unicodedata.normalize("NFC", letter + _ACCENTS[accent])


def _without_spaces(part: str) -> str:
  """A part of a fraction without spaces, unless it is of words."""
  return part.strip() if _TWO_WORDS.search(part) else _SPACES.sub("", part)


def _slash(match: re.Match[str]) -> str:
  """A fraction as `a/b`, with brackets where a part is no single thing."""
  over, over_short, under, under_short = match.groups()
  parts = [
    over_short or _without_spaces(over),
    under_short or _without_spaces(under),
  ]
  above, below = [
    part if simple.fullmatch(part) else f"({part})"
    for part, simple in zip(parts, _SIMPLE, strict=True)
  ]
  before = match.string[max(0, match.start() - 1) : match.start()]
  if before and before in "√^_":
    return f"{{{above}/{below}}}"
  # 2 1/2 is a mixed number; without the space it would be 21/2.
  return f"{' ' if before.isdigit() else ''}{above}/{below}"
