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
# point of a number: 1.5 is another one than 15.
_LOOKS = re.compile(
  r"""[\s,;!?'"`‘’“”$_\u00ad\u200b-\u200d\u2060\ufeff]+|\\[()\[\]]|\\"""
  r"|(?<=[^\W\d_])[.:]|[.:](?!\d)"
)
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-"))
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

  These do not count: case, white space, punctuation, TeX's `$` and backslashes,
  kinds of dashes, invisible characters, and compatibility forms (full width,
  ligatures). Points within numbers do. A text of nothing else stays.
  """
  question = question.translate(_POWERS)
  folded = unicodedata.normalize("NFKC", question).casefold()
  folded = folded.translate(_DASHES)
  return _LOOKS.sub("", folded) or folded.strip()


def question_id(question: str) -> str:
  """Id of a question whose source gives none: a hash of its text."""
  data = normalized(question).encode("utf-8", "surrogatepass")
  return hashlib.blake2b(data, digest_size=8).hexdigest()
