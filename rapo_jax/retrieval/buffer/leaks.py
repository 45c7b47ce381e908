"""Whether questions of a buffer are questions that agents are tested on.

A step trace tells how its question is solved. If the question is held out for
evaluation, or nearly is, training on the buffer trains on the test. The real
training set overlaps its test sets, so this is looked at and not assumed.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from rapo_jax.errors import InputError
from rapo_jax.retrieval.buffer.agent_trajectory import normalized
from rapo_jax.retrieval.encoder.sentence import SentenceEncoder
from rapo_jax.retrieval.importers.question_files import read_questions

MIN_SIMILARITY = 0.9
"""Least cosine similarity at which two questions count as one by default."""
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Overlap:
  """A question that is held out.

  Attributes:
    question: the question of the buffer.
    held_out: the question that it is or resembles.
    name: of the set that this one is from.
    similarity: cosine similarity; 1 for the same text.
    same_text: whether they differ at most in case, white space and
      punctuation.
  """

  question: str
  held_out: str
  name: str
  similarity: float
  same_text: bool


class LeakCheck:
  """Finds questions that are held out.

  Args:
    sets: held-out questions by name of their set.
    encoder: compares what differs in its text; None compares texts alone.
    min_similarity: least cosine similarity that counts, in (0, 1].
  """

  def __init__(
    self,
    sets: Iterable[tuple[str, Sequence[str]]],
    encoder: SentenceEncoder | None = None,
    min_similarity: float = MIN_SIMILARITY,
  ):
    if not 0 < min_similarity <= 1:
      raise InputError(
        "min_similarity is a cosine and must lie in (0, 1], got "
        f"{min_similarity}: 1 finds equal texts."
      )
    self._encoder = encoder
    self._min_similarity = min_similarity
    # (name, question) by its letters; the first of those that are equal.
    self._known: dict[str, tuple[str, str]] = {}
    for name, questions in sets:
      for question in questions:
        self._known.setdefault(normalized(question), (name, question))
    self._vectors: np.ndarray | None = None

  @classmethod
  def of_files(
    cls,
    paths: Iterable[pathlib.Path],
    encoder: SentenceEncoder | None = None,
    min_similarity: float = MIN_SIMILARITY,
  ) -> LeakCheck:
    """Reads the held-out questions from files; see `read_questions`."""
    sets = [(str(path), read_questions(path)) for path in paths]
    return cls(sets, encoder, min_similarity)

  def __len__(self) -> int:
    """Returns the number of distinct questions held out."""
    return len(self._known)

  def overlaps(self, questions: Iterable[str]) -> list[Overlap]:
    """Finds those of the questions that are held out, each once.

    Returns:
      For each such question the same text, if there is one, or else the one
      most similar; in the order of the questions.
    """
    distinct = list(dict.fromkeys(questions))
    found: dict[str, Overlap] = {}
    others = []
    for question in distinct:
      known = self._known.get(normalized(question))
      if known:
        name, held_out = known
        found[question] = Overlap(question, held_out, name, 1.0, True)
      else:
        others.append(question)
    if self._encoder is not None and self._known:
      for overlap in self._similar(others, self._encoder):
        found[overlap.question] = overlap
    return [found[question] for question in distinct if question in found]

  def _similar(
    self, questions: Sequence[str], encoder: SentenceEncoder
  ) -> Iterable[Overlap]:
    known = list(self._known.values())
    if self._vectors is None:
      self._vectors = encoder.encode([question for _, question in known])
    for first in range(0, len(questions), _BLOCK):
      block = questions[first : first + _BLOCK]
      similarities = encoder.encode(block) @ self._vectors.T
      best = similarities.argmax(axis=1)
      for row, column in enumerate(best):
        similarity = float(similarities[row, column])
        if similarity >= self._min_similarity:
          name, held_out = known[column]
          yield Overlap(block[row], held_out, name, min(similarity, 1.0), False)


def overlap_counts(
  overlaps: Iterable[Overlap],
) -> dict[str, tuple[int, int]]:
  """By set: questions with the same text, and questions alike."""
  counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for overlap in overlaps:
    counts[overlap.name][0 if overlap.same_text else 1] += 1
  return {name: (same, alike) for name, (same, alike) in counts.items()}
