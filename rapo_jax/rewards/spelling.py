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
_LOOSE_SIGN = re.compile(r"^([-+±]) (?=[0-9.])")
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
    **dict.fromkeys("°˚™®©\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
  }
)
# Names of characters, as words and as TeX's commands.
_NAMES = re.compile(
  r"(?<![A-Za-z\\])(?:(sqrt)(?![A-Za-z])|(pi)(?![A-Za-z])|(inf(?:ini)?ty)\b)"
)
_NAMED = ("√", "π", "∞")
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
  **dict.fromkeys(_FONTS.split("|"), ""),
  **dict.fromkeys(["circ", "degree"], ""),
  **dict.fromkeys(["quad", "qquad"], " "),
  **dict.fromkeys(["times", "cdot", "ast"], "*"),
  **dict.fromkeys(["le", "leq", "leqslant"], "<="),
  **dict.fromkeys(["ge", "geq", "geqslant"], ">="),
  **dict.fromkeys(["ne", "neq"], "!="),
  **dict.fromkeys(["lt"], "<"),
  **dict.fromkeys(["gt"], ">"),
  **dict.fromkeys(["dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"], "\\frac"),
  **dict.fromkeys(["ldots", "dots"], "..."),
  **dict.fromkeys(["vert", "lvert", "rvert", "mid"], "|"),
  **dict.fromkeys(["textquotesingle", "textquoteright"], "'"),
  **{"pm": "±", "mp": "∓", "div": "/", "colon": ":", "textdegree": ""},
  **{"lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]"},
  **{"pi": "π", "infty": "∞", "sqrt": "√", "cup": "∪", "cap": "∩", "in": "∈"},
  **dict.fromkeys(["emptyset", "varnothing"], "∅"),
  **dict.fromkeys(["epsilon", "varepsilon"], "ε"),
  **dict.fromkeys(["phi", "varphi"], "φ"),
  **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "theta": "θ"},
  **{"lambda": "λ", "mu": "μ", "rho": "ρ", "sigma": "σ", "omega": "ω"},
  **{"Delta": "Δ", "Omega": "Ω", "Sigma": "Σ"},
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
# More than one character under a root or above a base stands in braces.
_BARE_ROOT = re.compile(r"√ ?([0-9]{2,})")
_ROUND_ROOT = re.compile(r"√ ?\(([^(){}]{1,100})\)")
_BARE_POWER = re.compile(r"\^(-?[0-9]{2,}|-[0-9])")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SIZE = re.compile(rf"\\(?:{_SIZES})(?![A-Za-z])")
_IN_FONT = re.compile(rf"\\(?:{_FONTS}) ?\{{([^{{}}\\]*)\}}")
# `^\circ` and `^{\circ}` before the command goes, so that no `^` is left.
_DEGREE = re.compile(r"\^\s?(?:\{\s?)?\\(?:circ|degree)(?![A-Za-z])(?:\s?\})?")
_GROUPED = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!;:]|,\\!)(?=[0-9]{3}(?![0-9]))")
_SPACE = re.compile(r"\\[ ,;:>]|~")
_NOTHING = re.compile(r"\\[!()\[\]]|\$")
_ESCAPED = re.compile(r"\\([%&#_${}'\"])")
_SPACES = re.compile(r"\s+")
_FRACTION = re.compile(
  r"\\frac ?(?:\{([^{}]{0,200})\}|([0-9A-Za-z]))"
  r" ?(?:\{([^{}]{0,200})\}|([0-9A-Za-z]))"
)
_SIMPLE = re.compile(r"-?[0-9.]+|[A-Za-zπ]")
_SINGLE = re.compile(r"\{ ?([0-9A-Za-z]) ?\}")


def respell(text: str) -> str:
  """The text in one spelling.

  Unicode's compatibility forms, dashes, quotes and a few signs of mathematics
  become ASCII; TeX's commands for fonts and spaces go; a fraction of simple
  parts becomes a slash. Other braces stay; callers may read them.

  Args:
    text: an answer. The time taken is linear in its length.
  """
  text = _SUPERSCRIPT.sub(
    lambda match: "^" + match.group().translate(_SUPERSCRIPTS), text
  )
  # Some characters fall apart in NFKC, others come out of it.
  text = _THIN.sub(",", text)
  text = _MIXED.sub(" ", text).translate(_CHARACTERS)
  text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
  text = _SPACES.sub(" ", text)
  if any(character in text for character in "\\$~{"):
    text = _SPACES.sub(" ", _without_tex(text))
  text = _NAMES.sub(lambda match: _NAMED[(match.lastindex or 1) - 1], text)
  if "√" in text or "^" in text:
    text = _BARE_ROOT.sub(r"√{\1}", _ROUND_ROOT.sub(r"√{\1}", text))
    text = _SINGLE.sub(r"\1", _BARE_POWER.sub(r"^{\1}", text))
  return _LOOSE_SIGN.sub(r"\1", _without_emphasis(text.strip()))


def _without_emphasis(text: str) -> str:
  """The text without Markdown's marks, or quotes, around all of it."""
  for mark in _EMPHASIS:
    inside = text[len(mark) : -len(mark)]
    if inside and text == f"{mark}{inside}{mark}" and mark[0] not in inside:
      return inside.strip()
  return text


def _without_tex(text: str) -> str:
  text = _ACCENT.sub(_accented, _COLOUR.sub("", _GROUPED.sub(",", text)))
  text = _IN_FONT.sub(r"\1", _SIZE.sub("", _DEGREE.sub("", text)))
  text = _COMMAND.sub(
    lambda match: _COMMANDS.get(match.group(1), match.group()), text
  )
  text = _FRACTION.sub(_slash, _SPACE.sub(" ", text))
  text = _NOTHING.sub("", _ESCAPED.sub(r"\1", text))
  return _SINGLE.sub(r"\1", text)


def _accented(match: re.Match[str]) -> str:
  accent, letter = filter(None, match.groups())
  return unicodedata.normalize("NFC", letter + _ACCENTS[accent])


def _slash(match: re.Match[str]) -> str:
  """A fraction as `a/b`, with brackets where a part is no single thing."""
  over, over_short, under, under_short = match.groups()
  parts = [over_short or over.strip(), under_short or under.strip()]
  shown = [p if _SIMPLE.fullmatch(p) else f"({p})" for p in parts]
  # 2 1/2 is a mixed number; without the space it would be 21/2.
  before = match.string[: match.start()][-1:]
  return f"{' ' if before.isdigit() else ''}{shown[0]}/{shown[1]}"
