from __future__ import annotations

import dataclasses

import pytest

from rapo_jax.data import Query, check_query_ids

QUERY = Query("q", "Who?", ("Paris",), ({"role": "user", "content": "?"},), "t")


@pytest.mark.parametrize("truth", ["Paris", {"target": "Paris"}, (42,), None])
def test_a_ground_truth_is_a_tuple_of_texts(truth):
  unchecked = getattr(Query.__post_init__, "__wrapped__", Query.__post_init__)
  query = dataclasses.replace(QUERY)
  object.__setattr__(query, "ground_truth", truth)
  with pytest.raises(ValueError, match="must be a tuple of texts"):
    unchecked(query)


@pytest.mark.parametrize("truth", [(), ("",), ("Paris", " ")])
def test_a_query_needs_answers(truth):
  with pytest.raises(ValueError, match="drop the question"):
    dataclasses.replace(QUERY, ground_truth=truth)


def test_one_id_for_two_questions_is_refused():
  again = dataclasses.replace(QUERY)
  check_query_ids([QUERY, again, dataclasses.replace(QUERY, query_id="r")])
  for changes in ({"question": "Where?"}, {"ground_truth": ("Rome",)}):
    other = dataclasses.replace(QUERY, **changes)
    with pytest.raises(ValueError, match="'q' is that of 'Who"):
      check_query_ids([QUERY, other])
