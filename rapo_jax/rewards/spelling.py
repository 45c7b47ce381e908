r"""One spelling for answers that are written in several.

`\text{Paris}` and Paris, `\dfrac{1}{2}` and 1/2, U+2212 and the hyphen differ
in how they are written, not in what they say. What a text says is left alone:
signs, decimal points and operators stay. No mathematics is done: 1/2 and 0.5
remain two answers.
"""

from __future__ import annotations

import re
import unicodedata

# Compatibility forms that NFKC would run into the digits before them.
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_MIXED = re.compile("(?<=[0-9])(?=[¼-¾⅐-⅞↉])")
_CHARACTERS = str.maketrans(
  {
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys("‘’‚‛`´′ʼ", "'"),
    **dict.fromkeys("“”„‟″", '"'),
    **dict.fromkeys("×·⋅∙", "*"),
    **dict.fromkeys("⁄∕÷", "/"),
    # Marks that say nothing, and characters that nobody sees.
    **dict.fromkeys("°™®©\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "√": "sqrt",
    "π": "pi",
    "∞": "infty",
  }
)
_FONTS = (
  "text|textbf|textit|textrm|textsf|texttt|textnormal|textup|textsc|mathrm"
  "|mathbf|mathit|mathsf|mathtt|mathbb|mathcal|mathnormal|boldsymbol|bm|emph"
  "|mbox|hbox|operatorname|underline|boxed|fbox"
)
_SIZES = (
  "displaystyle|textstyle|rm|bf|it|left|right|limits"
  "|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr"
)
# By name; a command ends where its letters end.
_COMMANDS = {
  **dict.fromkeys(f"{_FONTS}|{_SIZES}".split("|"), ""),
  **dict.fromkeys(["circ", "degree"], ""),
  **dict.fromkeys(["quad", "qquad"], " "),
  **dict.fromkeys(["times", "cdot", "ast"], "*"),
  **dict.fromkeys(["le", "leq", "leqslant"], "<="),
  **dict.fromkeys(["ge", "geq", "geqslant"], ">="),
  **dict.fromkeys(["ne", "neq"], "!="),
  **dict.fromkeys(["lt"], "<"),
  **dict.fromkeys(["gt"], ">"),
  **dict.fromkeys(["dfrac", "tfrac", "cfrac"], "\\frac"),
  "div": "/",
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_IN_FONT = re.compile(rf"\\(?:{_FONTS}) ?\{{([^{{}}\\]*)\}}")
# `^\circ` and `^{\circ}` before the command goes, so that no `^` is left.
_DEGREE = re.compile(r"\^\s?(?:\{\s?)?\\(?:circ|degree)(?![A-Za-z])(?:\s?\})?")
_GROUPED = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!;:]|,\\!)(?=[0-9]{3}(?![0-9]))")
_SPACE = re.compile(r"\\[ ,;:>]|~")
_NOTHING = re.compile(r"\\[!()\[\]]|\$")
_ESCAPED = re.compile(r"\\([%&#_${}])")
_SPACES = re.compile(r"\s+")
_FRACTION = re.compile(
  r"\\frac ?(?:\{([^{}]{0,200})\}|([0-9A-Za-z]))"
  r" ?(?:\{([^{}]{0,200})\}|([0-9A-Za-z]))"
)
_SIMPLE = re.compile(r"-?[0-9.]+|[A-Za-z]")
_SINGLE = re.compile(r"\{ ?([0-9A-Za-z]) ?\}")


def respell(text: str) -> str:
  """The text in one spelling.

  Unicode's compatibility forms, dashes, quotes and a few signs of mathematics
  become ASCII; TeX's commands for fonts and spaces go; a fraction of simple
  parts becomes a slash. Other braces stay, for whoever reads on.

  Args:
    text: an answer. The time taken is linear in its length.
  """
  text = _SUPERSCRIPT.sub(
    lambda match: "^" + match.group().translate(_SUPERSCRIPTS), text
  )
  # Some characters fall apart in NFKC, others come out of it.
  text = _MIXED.sub(" ", text).translate(_CHARACTERS)
  text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
  text = _SPACES.sub(" ", text)
  if any(character in text for character in "\\$~{"):
    text = _SPACES.sub(" ", _without_tex(text))
  return text.strip()


def _without_tex(text: str) -> str:
  text = _GROUPED.sub(",", text)
  text = _IN_FONT.sub(r"\1", _DEGREE.sub("", text))
  text = _COMMAND.sub(
    lambda match: _COMMANDS.get(match.group(1), match.group()), text
  )
  text = _FRACTION.sub(_slash, _SPACE.sub(" ", text))
  text = _NOTHING.sub("", _ESCAPED.sub(r"\1", text))
  return _SINGLE.sub(r"\1", text)


def _slash(match: re.Match[str]) -> str:
  """A fraction as `a/b`, with brackets where a part is no single thing."""
  over, over_short, under, under_short = match.groups()
  parts = [over_short or over.strip(), under_short or under.strip()]
  shown = [p if _SIMPLE.fullmatch(p) else f"({p})" for p in parts]
  # 2 1/2 is a mixed number; without the space it would be 21/2.
  before = match.string[: match.start()][-1:]
  return f"{' ' if before.isdigit() else ''}{shown[0]}/{shown[1]}"
