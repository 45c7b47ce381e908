"""A finished trajectory of any agent, as text, to build a buffer from."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from rapo_jax.errors import InputError

# Not the signs of arithmetic: 3 + 4 is another question than 3 - 4. Nor the
# point of a number: 1.5 is another one than 15. Nor 5! and f'(2).
_LOOKS = re.compile(
  r"""(?:(?=[\W_])(?:
    \\[()\[\]] | [\s,;?"`$_¿¡。、•\\]
    | (?<=[^\W\d_])[.:] | [.:](?!\d)
    | (?<![\d)!])(?<!\b[a-z])!+
    | (?<!')(?<!\b[a-z])'+ | '+(?![('])
    | (?<![\w)\]}])\*\* | \*\*(?![\w(\[{])
    | (?<=[^\W\d_]{2})-(?=\s*[^\W\d_]{2}) | (?<=[^\W\d_]{2}\s)-(?=\s)
  ))+""",
  re.VERBOSE,
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# NFKC makes 21/2 of two and a half.
_MIXED = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_FRACTION = re.compile(r"\\[dt]frac\b")
_SIGNS = str.maketrans(
  dict.fromkeys("‐‑‒–—−", "-")
  | dict.fromkeys("‘’‚‛′", "'")
  | dict.fromkeys("“”„‟«»‹›", '"')
  | {"×": "*", "⁄": "/"}
)
# NFKC would run them into the digits before them.
_POWERS = str.maketrans({c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})


@dataclasses.dataclass(frozen=True)
class AgentTrajectory:
  """What an agent wrote on one question, cut at tool boundaries.

  Attributes:
    question: the question.
    steps: texts of its steps in order: thought, action and `<result>`; the
      last one has an answer instead of an action. None is blank.
    reward: outcome reward, finite.
    source: name of the agent.
    query_id: id of the question, the same for all agents.
    trajectory_id: id of this trajectory, unique in a buffer.
    history: steps before `steps` that belong to another trajectory, from which
      this one branched off; mostly none.
    extras: what else the source said of it, JSON values by name.
  """

  question: str
  steps: tuple[str, ...]
  reward: float
  source: str
  query_id: str
  trajectory_id: str
  history: tuple[str, ...] = ()
  extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.question.strip():
      raise InputError("the question is blank: give it a text.")
    if not self.steps:
      raise InputError("there is no step: leave the trajectory out.")
    for number, step in enumerate(self.steps):
      if not step.strip():
        raise InputError(f"step {number} is blank: leave the trajectory out.")
    if not math.isfinite(self.reward):
      raise InputError(
        f"the reward must be finite, got {self.reward}: fix its score."
      )


def normalized(question: str) -> str:
  """A question's text without what only changes its looks.

  These do not count: case, white space, punctuation, kinds of quotes and of
  dashes, Markdown's `**`, TeX's `$` and backslashes, invisible characters, and
  compatibility forms (full width, ligatures). These do: signs of arithmetic,
  brackets, points within numbers, and what keeps two numbers apart. A text of
  nothing else stays.
  """
  question = _MIXED.sub(" ", question).translate(_POWERS)
  folded = unicodedata.normalize("NFKC", question).casefold()
  if not folded.isascii():
    folded = "".join(c for c in folded if unicodedata.category(c) != "Cf")
  folded = _FRACTION.sub(r"\\frac", folded.translate(_SIGNS))
  folded = _THOUSANDS.sub("", folded)
  return _LOOKS.sub(_gap, folded).strip() or folded.strip()


def _gap(looks: re.Match[str]) -> str:
  """What is left of a text's looks: two numbers are not run into one."""
  text, begin, end = looks.string, looks.start(), looks.end()
  before, after = text[max(begin - 1, 0) : begin], text[end : end + 1]
  return " " if before.isdigit() and after.isdigit() else ""


def question_id(question: str) -> str:
  """Id of a question whose source gives none: a hash of its text."""
  data = normalized(question).encode("utf-8", "surrogatepass")
  return hashlib.blake2b(data, digest_size=8).hexdigest()
