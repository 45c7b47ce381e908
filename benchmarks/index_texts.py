"""Keys and waiting histories made from the texts of question answering sets.

A trajectory on a multi-hop question looks its paragraphs up one after another,
in an order of its own; cut into steps it gives the question and the history so
far as keys, as a Step-Trace Buffer has them. A waiting history is one of them
in other words: its thoughts, its search queries and how much of each paragraph
was shown are drawn anew. Questions of a training set are keys with no history.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
from collections.abc import Sequence

import pyarrow.parquet as pq

_THOUGHTS = (
  "I need to find out about {}.",
  "Let me look up {} first.",
  "The question depends on {}, so I will search for it.",
  "Next I should check what is known of {}.",
  "{} is mentioned; a search may help.",
  "To answer this, {} has to be identified.",
  "It is not clear yet who or what {} is.",
  "Now for {}.",
)
_QUERIES = (
  "{}",
  "{} wikipedia",
  "who or what is {}",
  "{} facts",
  "information about {}",
  "{} history and background",
)
_MAX_STEPS = 3
_MAX_SENTENCES = 2
_MAX_SENTENCE_CHARACTERS = 100


@dataclasses.dataclass(frozen=True)
class Source:
  """A question and what can be looked up for it.

  Attributes:
    question: the question.
    paragraphs: title and sentences of each paragraph.
  """

  question: str
  paragraphs: tuple[tuple[str, tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True)
class History:
  """A question and the paragraphs looked up so far, by their numbers."""

  source: Source
  order: tuple[int, ...]

  def steps(self, rng: random.Random) -> list[str]:
    """The steps' texts, in words drawn from `rng`."""
    return [_step(self.source.paragraphs[i], rng) for i in self.order]


def _step(paragraph: tuple[str, tuple[str, ...]], rng: random.Random) -> str:
  title, sentences = paragraph
  shown = " ".join(sentences[: rng.randint(1, _MAX_SENTENCES)])
  return (
    f"<think> {rng.choice(_THOUGHTS).format(title)} </think>"
    f"<search> {rng.choice(_QUERIES).format(title)} </search>"
    f"<result> {shown} </result>"
  )


def read_histories(
  data: pathlib.Path, count: int, rng: random.Random
) -> list[History]:
  """Reads `count` distinct histories from a folder of data sets.

  A quarter of them are questions of the training set `rl_train` alone, like the
  key of every first step. The others are of trajectories on the questions of
  hotpotqa, 2wikimultihopqa and musique, of up to three steps.

  Raises:
    FileNotFoundError: if the folder lacks one of the sets.
  """
  alone = [History(Source(q, ()), ()) for q in _training_questions(data)]
  histories = set(rng.sample(alone, min(count // 4, len(alone))))
  sources = _sources(data)
  while len(histories) < count:
    source = rng.choice(sources)
    length = min(_MAX_STEPS, len(source.paragraphs))
    order = rng.sample(range(len(source.paragraphs)), length)
    for t in range(length + 1):
      histories.add(History(source, tuple(order[:t])))
  ordered = sorted(histories, key=lambda h: (h.source.question, h.order))
  return rng.sample(ordered, count)


def paragraph_words(data: pathlib.Path) -> list[str]:
  """Words of paragraphs of hotpotqa, 2wikimultihopqa and musique, in order."""
  return [
    word
    for source in _sources(data)
    for _, sentences in source.paragraphs
    for sentence in sentences
    for word in sentence.split()
  ]


def _sources(data: pathlib.Path) -> list[Source]:
  """Questions with paragraphs to look up."""
  multi_hop = [
    *json.loads(
      (data / "hotpotqa" / "hotpot_dev_distractor_v1.json").read_text(
        encoding="utf-8"
      )
    ),
    *json.loads(
      (data / "2wikimultihopqa" / "dev.json").read_text(encoding="utf-8")
    ),
  ]
  sources = [
    Source(
      row["question"],
      tuple((title, _shortened(text)) for title, text in row["context"]),
    )
    for row in multi_hop
  ]
  musique = (data / "musique" / "musique_ans_v1.0_dev.jsonl").read_text(
    encoding="utf-8"
  )
  for line in musique.splitlines():
    row = json.loads(line)
    sources.append(
      Source(
        row["question"],
        tuple(
          (p["title"], _shortened(p["paragraph_text"].split(". ")))
          for p in row["paragraphs"]
        ),
      )
    )
  return sources


def _shortened(sentences: Sequence[str]) -> tuple[str, ...]:
  return tuple(
    sentence.strip()[:_MAX_SENTENCE_CHARACTERS]
    for sentence in sentences[:_MAX_SENTENCES]
  )


def _training_questions(data: pathlib.Path) -> list[str]:
  """Questions for search; those of mathematics are left out."""
  table = pq.read_table(
    data / "rl_train" / "train_10k.parquet", columns=["ability", "extra_info"]
  )
  return list(
    dict.fromkeys(
      row["extra_info"]["question"]
      for row in table.to_pylist()
      if row["ability"] == "qa"
    )
  )
