"""Keeps what is trained on and what is evaluated apart, by question."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from rapo_jax.data import Query
from rapo_jax.errors import InputError
from rapo_jax.retrieval import normalized

_log = logging.getLogger(__name__)


def split_by_question(
  queries: Sequence[Query], num_held_out: int
) -> tuple[list[Query], list[Query]]:
  """Training and held-out questions; the first ones are held out.

  Questions differ if their texts do, apart from case, white space and
  punctuation (`retrieval.normalized`). A question that is held out is evaluated
  once, and its other copies are in neither part. All copies of a training
  question stay.

  Args:
    queries: in the order of the file.
    num_held_out: distinct questions to hold out.

  Returns:
    Training questions, then held-out ones.

  Raises:
    InputError: there are fewer distinct questions.
  """
  held_out: dict[str, Query] = {}
  train = []
  for query in queries:
    text = normalized(query.question)
    if text not in held_out and len(held_out) < num_held_out:
      held_out[text] = query
    elif text not in held_out:
      train.append(query)
  if len(held_out) < num_held_out:
    raise InputError(
      f"held_out must be at most the number of distinct questions "
      f"({len(held_out)}), got {num_held_out}: lower it, or raise limit."
    )
  num_copies = len(queries) - len(held_out) - len(train)
  if num_copies:
    _log.warning(
      "left out %d rows whose question is held out already.", num_copies
    )
  return train, list(held_out.values())


def leaks(
  train: Iterable[Query], evaluation: Mapping[str, Iterable[Query]]
) -> dict[str, set[str]]:
  """Ids of the training questions that stand in each evaluation set.

  Questions are one if their texts differ at most in case, white space and
  punctuation (`retrieval.normalized`).

  Args:
    train: training questions.
    evaluation: evaluation sets by name.

  Returns:
    For each set that has any, the query ids of the training questions.
  """
  by_text: dict[str, set[str]] = {}
  for query in train:
    by_text.setdefault(normalized(query.question), set()).add(query.query_id)
  found: dict[str, set[str]] = {}
  for name, queries in evaluation.items():
    for query in queries:
      shared = by_text.get(normalized(query.question))
      if shared:
        found.setdefault(name, set()).update(shared)
  return found
