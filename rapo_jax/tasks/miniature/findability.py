"""Whether MiniLM tells the miniature world's texts apart.

The search tool returns its top document and the Step-Trace Buffer its nearest
key. The testbed measures a training method, not an encoder, so both have to be
right nearly always. The names and sentences in `lexicon` and `world` are chosen
for it. These figures say how well that works in a given world.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapo_jax.errors import InputError
from rapo_jax.retrieval import ExactIndex, SentenceEncoder, key_text
from rapo_jax.tasks.miniature import demonstrations, lexicon
from rapo_jax.tasks.miniature.world import Family, Question, World, search_query


def search_accuracy(
  world: World, family: Family, encoder: SentenceEncoder
) -> float:
  """Share of the facts whose document is the first that its query finds.

  Args:
    world: the world.
    family: "multihop" or "web".
    encoder: what the search tool encodes with.

  Raises:
    InputError: for a family without documents.
  """
  documents = world.documents(family)
  if not documents:
    raise InputError(
      f"the family {family} has no documents to search; use multihop or web."
    )
  if family == "multihop":
    queries = [
      search_query(entity, relation)
      for entity, relations in world.facts.items()
      for relation in relations
    ]
  else:
    queries = [
      search_query(page.entity, lexicon.PAGE) for page in world.pages.values()
    ]
  index = ExactIndex.build(encoder.encode(documents))
  ids = index.search(encoder.encode_queries(queries), 1).ids[:, 0]
  return float(np.mean(ids == np.arange(len(documents))))


def key_accuracy(
  questions: Sequence[Question],
  encoder: SentenceEncoder,
  *,
  num_wordings: int = 5,
  seed: int = 0,
) -> float:
  """Share of histories whose nearest key is of their question and step.

  Keys are the histories of expert solutions in `num_wordings` random wordings,
  as in a buffer of several trajectories a question; the histories that look
  them up are worded anew.

  Args:
    questions: whose solutions are in the buffer.
    encoder: what the buffer encodes with.
    num_wordings: trajectories a question in the buffer.
    seed: of the wordings.
  """
  rng = np.random.default_rng(seed)
  keys, owners = _histories(list(questions) * num_wordings, encoder, rng)
  queries, wanted = _histories(questions, encoder, rng)
  index = ExactIndex.build(encoder.encode(keys))
  ids = index.search(encoder.encode_queries(queries), 1).ids[:, 0]
  found = [owners[i] for i in ids.tolist()]
  return float(np.mean([f == w for f, w in zip(found, wanted, strict=True)]))


def _histories(
  questions: Sequence[Question],
  encoder: SentenceEncoder,
  rng: np.random.Generator,
) -> tuple[list[str], list[tuple[str, int]]]:
  """Key texts at every step boundary, and the (question, step) of each."""
  texts = []
  owners = []
  for question in questions:
    history: list[str] = []
    for number, step in enumerate(question.steps, 1):
      wording = int(rng.integers(len(lexicon.STEP_THOUGHTS)))
      history.append(demonstrations.step_text(step, wording))
      texts.append(key_text(question.question, history, encoder))
      owners.append((question.query_id, number))
  return texts, owners
