from __future__ import annotations

import dataclasses

import pytest

from rapo_jax.data import Query

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
