from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest

from rapo_jax.corpora import bm25

TEXTS = [
  "The bridge over the river",
  "A river, a RIVER!",
  "bridge",
  "of the",
  "bridge",
  "Zürich",
]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> bm25.Bm25:
  path = tmp_path_factory.mktemp("bm25") / "index"
  bm25.build(TEXTS, path)
  return bm25.Bm25(path)


def test_words_of_two_letters_in_small_ones_without_stop_words():
  assert bm25.split_words(["The Bridge of x-ray 7 42, ZÜRICH", "the"]) == [
    ["bridge", "ray", "42", "zürich"],
    [],
  ]


def test_scores_are_those_of_the_formula(index):
  ids, scores = index.search(["river"], 2)
  lengths = [3, 2, 1, 0, 1, 1]
  mean = sum(lengths) / 6
  idf = math.log(1 + (6 - 2 + 0.5) / (2 + 0.5))
  # Lucene's variant, k1 1.5, b 0.75.
  expected = [
    idf * count / (count + 1.5 * (0.25 + 0.75 * length / mean))
    for count, length in ((2, 2), (1, 3))
  ]
  assert ids.tolist() == [[1, 0]]
  np.testing.assert_allclose(scores, [expected], rtol=1e-6)


def test_ties_go_to_the_lower_row(index):
  ids, scores = index.search(["bridge"], 2)
  assert ids.tolist() == [[2, 4]]
  assert scores[0, 0] == scores[0, 1]
  assert index.search(["bridge"], 1)[0].tolist() == [[2]]


@pytest.mark.parametrize("query", ["", "the", "unknown", "brid", "."])
def test_a_query_that_shares_no_word_finds_nothing(index, query):
  ids, scores = index.search([query], 3)
  assert ids.tolist() == [[-1] * 3]
  assert np.all(scores == -np.inf)


def test_fewer_passages_than_asked_for(index):
  ids, _ = index.search(["zürich", "river zürich"], 4)
  assert ids.tolist() == [[5, -1, -1, -1], [5, 1, 0, -1]]


def test_passages_without_any_word_are_refused(tmp_path):
  with pytest.raises(ValueError, match="no passage has one"):
    bm25.build([". .", "a b"], tmp_path / "index")
  assert not (tmp_path / "index").exists()


def test_files_that_do_not_belong_together(tmp_path):
  path = tmp_path / "index"
  bm25.build(TEXTS, path)
  np.save(path / "word_ids.npy", np.zeros(2, np.int32))
  with pytest.raises(ValueError, match="do not belong together"):
    bm25.Bm25(path)
  (path / "word_ids.npy").write_bytes(b"")
  with pytest.raises(ValueError, match="must hold an index of words"):
    bm25.Bm25(path)


def test_without_the_package(monkeypatch, tmp_path):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"bm25s.*pip install 'bm25s>="):
    bm25.build(TEXTS, tmp_path / "index")
